"""`--explain`: how views are derived from their `source()`."""

from dataclasses import replace
from typing import Any

from django.db import DatabaseError

from matviews import changes, engine, queryset
from matviews.exceptions import MatviewsError
from matviews.models import ViewControl
from matviews.registry import registry

from . import formatting
from .failures import report_failure
from .targets import Targets

__all__ = ["explain"]


def explain(targets: Targets) -> None:
    """Show the strategy, the indexes, the SQL of each phase and what changes lead to.

    Raises:
        CommandError: a source cannot be derived from.
    """
    labels = targets.labels_with_source()
    for label in labels:
        try:
            explanation = queryset.explain(registry.usable(label), engine.alias())
            tracking = _tracking(label)
        except (MatviewsError, DatabaseError) as error:
            text = report_failure(label, error, targets)
            targets.output.entries.append({"view": label, "error": text})
            continue
        if not targets.options.sql:
            explanation = replace(explanation, staging="", statements={})
        entry = formatting.explanation_as_dict(explanation)
        targets.output.entries.append({**entry, "tracking": tracking})
        for line in formatting.explanation_in_lines(explanation):
            targets.output.say(line)
        for line in formatting.tracking_in_lines(tracking):
            targets.output.say(line)
    targets.raise_failed(labels)


def _tracking(label: str) -> dict[str, Any]:
    """Which changes of which tables lead to which keys, and whether they are logged."""
    using = engine.alias()
    plan = queryset.plan_of(registry.usable(label), using)
    tracking = changes.tracking_of(plan)
    control = ViewControl.objects.filter(label=label).first()
    untracked = changes.untracked_tables(control.pk if control else 0, tracking, using)
    tables = {
        table: {
            "columns": None if spec.columns is None else sorted(spec.columns),
            "links": [_link(plan, link) for link in plan.links.get(table, ())],
            "logged": table not in untracked,
        }
        for table, spec in sorted(tracking.tables.items())
    }
    return {
        "reason": tracking.reason,
        "incremental_obstacle": plan.strategy.incremental_obstacle,
        "tables": tables,
    }


def _link(plan: queryset.Plan, link: queryset.Link) -> dict[str, Any]:
    """How a changed row leads to keys, or to a part of them that many keys may share."""
    return {
        "columns": list(link.columns),
        "through": [step.table for step in link.steps],
        "key_part": None if link.key_part is None else plan.key_fields[link.key_part].name,
        "declared": link.dependency is not None,
    }
