"""`--explain`: how views are derived from their `source()`."""

from dataclasses import replace
from typing import Any

from django.db import DatabaseError

from matviews import changes, engine, queryset
from matviews.exceptions import MatviewsError
from matviews.models import ViewControl
from matviews.registry import registry

from . import formatting, tables
from .failures import report_failure
from .targets import Targets

__all__ = ["explain"]


def explain(targets: Targets) -> None:
    """Show strategy, indexes, the SQL of each phase, what changes lead to, and what refreshes cost.

    Raises:
        CommandError: a source cannot be derived from.
    """
    labels = targets.labels_with_source()
    for label in labels:
        try:
            explanation = queryset.explain(registry.usable(label), engine.alias())
            tracking = _tracking(label)
            costs = formatting.costs_as_dict(engine.known_costs(registry.usable(label)))
            recent = engine.recent_refreshes(label)
        except (MatviewsError, DatabaseError) as error:
            text = report_failure(label, error, targets)
            targets.output.entries.append({"view": label, "error": text})
            continue
        if not targets.options.sql:
            explanation = replace(explanation, staging="", statements={})
        entry = formatting.explanation_as_dict(explanation)
        definition = registry.usable(label)
        plan = queryset.plan_of(definition, engine.alias())
        obstacle = engine.parking_obstacle(definition, plan)
        not_current = engine.current_obstacle(definition, plan)
        entry |= {"tracking": tracking, "costs": costs, "parking_obstacle": obstacle}
        choice = engine.additive_choice(plan)
        entry |= {"additive": choice.is_additive, "additive_reason": choice.reason}
        entry["not_current"] = not_current
        targets.output.entries.append(entry | tables.recent_as_dict(recent))
        lines = [
            *formatting.explanation_in_lines(explanation),
            f"  additive: {'yes' if choice.is_additive else 'no'}: {choice.reason}",
            *formatting.tracking_in_lines(tracking),
            *formatting.costs_in_lines(costs, tracking["incremental_obstacle"]),
        ]
        lines += [f"  {recent.in_words}"] * bool(recent.in_words)
        lines += [f"  one bad row fails the phase: {obstacle}"] * bool(obstacle)
        lines += [f"  View.current cannot read it: {not_current}"] * bool(not_current)
        for line in lines:
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
        "way_out": plan.strategy.way_out,
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
