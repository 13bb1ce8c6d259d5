"""What a view's page shows of its `source()`: the strategy."""

from typing import Any

from django.db import DatabaseError

from .. import engine
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewControl
from ..queryset import plan_of, source_sql

__all__ = ["source_context"]


def source_context(control: ViewControl, definition: ViewDefinition | None) -> dict[str, Any]:
    """The strategy for a view's source; {} if it has no source."""
    if definition is None or not definition.has_source:
        return {}
    return {
        **_strategy(definition),
        "recent": engine.recent_refreshes(control.label),
    }


def _strategy(definition: ViewDefinition) -> dict[str, str]:
    try:
        plan = plan_of(definition, engine.alias())
        sql = source_sql(plan, engine.alias())
    except (InvalidView, DatabaseError) as error:
        return {"problem": str(error)}
    return {"strategy": plan.strategy.name, "reason": plan.strategy.reason, "sql": sql}
