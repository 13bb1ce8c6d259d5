"""What a view's page shows of its `source()`: the strategy."""

from typing import Any

from django.db import DatabaseError
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import engine
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewControl
from ..queryset import plan_of, source_sql
from .phrases import number

__all__ = ["source_context"]


def source_context(control: ViewControl, definition: ViewDefinition | None) -> dict[str, Any]:
    """The strategy for a view's source; {} if it has no source."""
    if definition is None or not definition.has_source:
        return {}
    return {
        **_strategy(control, definition),
        "recent": engine.recent_refreshes(control.label),
    }


def _strategy(control: ViewControl, definition: ViewDefinition) -> dict[str, str]:
    try:
        plan = plan_of(definition, engine.alias())
        sql = source_sql(plan, engine.alias())
    except (InvalidView, DatabaseError) as error:
        return {"problem": str(error)}
    return {
        "strategy": plan.strategy.name,
        "reason": plan.strategy.reason,
        "sql": sql,
        "additive": _additive(control) if plan.additive and control.is_additive else "",
    }


def _additive(control: ViewControl) -> str:
    """How many changes wait to be added up."""
    pending = engine.count_pending_values(control.pk)
    if pending is None:
        return _("Additive; its sums are not used until a full refresh has computed them.")
    return ngettext(
        "Additive: %(count)s entry pending in its value logs.",
        "Additive: %(count)s entries pending in its value logs.",
        pending,
    ) % {"count": number(pending)}
