"""What the command does with a view's `source()`: hold the view against it, and explain it."""

from dataclasses import replace
from typing import Any

from django.core.management.base import CommandError
from django.db import DatabaseError

from matviews import api, changes, engine, queryset
from matviews.engine import Verification
from matviews.exceptions import MatviewsError
from matviews.models import ViewControl
from matviews.redact import error_words
from matviews.registry import registry

from . import findings
from .options import refusal
from .requests import Requests

__all__ = ["explain", "verify"]


def verify(requests: Requests) -> None:
    """Tell whether views equal what their sources yield now; mend them if that was asked for.

    Raises:
        CommandError: one differs, or could not be compared.
    """
    if requests.asked.repair:
        requests.refuse_in_transaction()
    labels = _labels(requests)
    differing = [label for label in labels if not _verified(label, requests)]
    sentences = []
    if requests.failed:
        names = ", ".join(requests.failed)
        sentences.append(f"{len(requests.failed)} of {len(labels)} views failed: {names}.")
    if differing:
        sentences.append(
            f"{len(differing)} of {len(labels)} views differ from their source: "
            f"{', '.join(differing)}. --verify --repair mends what differs."
        )
    if sentences:
        raise CommandError(" ".join(sentences))


def _verified(label: str, requests: Requests) -> bool:
    """Hold one view against its source; whether it equals that now, or has failed."""
    asked, output = requests.asked, requests.output
    try:
        found = api.verify(label, repair=asked.repair, sample=asked.sample)
    except (MatviewsError, DatabaseError) as error:
        output.entries.append(
            {"view": label, "equal": None, "error": _told(label, error, requests)}
        )
        return True
    output.entries.append(findings.verification_as_dict(found))
    for line in findings.verification_in_lines(found):
        output.say(line)
    return _is_right(found)


def _told(label: str, error: Exception, requests: Requests) -> str:
    """Tell why a view failed; the text of it."""
    told = error_words(engine.not_migrated(error, registry.find(label)))
    text = f"{told} {engine.denied_for(error)}".strip()
    requests.fail(label, text)
    return text


def _is_right(found: Verification) -> bool:
    return found.equal or found.repaired is not None


def explain(requests: Requests) -> None:
    """Show how views are derived from their sources: the path, the indexes, the SQL of the phases.

    Raises:
        CommandError: a source cannot be derived from.
    """
    labels = _labels(requests)
    for label in labels:
        try:
            explanation = queryset.explain(registry.usable(label), engine.alias())
            tracking = _tracking(label)
        except (MatviewsError, DatabaseError) as error:
            requests.output.entries.append({"view": label, "error": _told(label, error, requests)})
            continue
        if not requests.asked.sql:
            explanation = replace(explanation, staging="", statements={})
        entry = findings.explanation_as_dict(explanation)
        requests.output.entries.append({**entry, "tracking": tracking})
        for line in findings.explanation_in_lines(explanation):
            requests.output.say(line)
        for line in findings.tracking_in_lines(tracking):
            requests.output.say(line)
    requests.raise_failed(labels)


def _tracking(label: str) -> dict[str, Any]:
    """Which changes of which tables lead to what, and whether they are logged."""
    using = engine.alias()
    plan = queryset.plan_of(registry.usable(label), using)
    tracking = changes.tracking_of(plan)
    control = ViewControl.objects.filter(label=label).first()
    lacking = changes.untracked_tables(control.pk if control else 0, tracking, using)
    tables = {
        table: {
            "columns": None if spec.columns is None else sorted(spec.columns),
            "links": [_link(plan, link) for link in plan.links.get(table, ())],
            "logged": table not in lacking,
        }
        for table, spec in sorted(tracking.tables.items())
    }
    return {
        "reason": tracking.reason,
        "incremental_obstacle": plan.strategy.incremental_obstacle,
        "tables": tables,
    }


def _link(plan: queryset.Plan, link: queryset.Link) -> dict[str, Any]:
    """How a changed row of a table leads to keys, or to a part of them that many may have."""
    return {
        "columns": list(link.columns),
        "through": [step.table for step in link.steps],
        "key_part": None if link.key_part is None else plan.key_fields[link.key_part].name,
        "declared": link.dependency is not None,
    }


def _labels(requests: Requests) -> list[str]:
    """The views asked for that have a `source()`.

    Raises:
        CommandError: one that was named has none.
    """
    labels = requests.labels()
    without = [label for label in labels if not registry.find(label).has_source]
    if without and requests.asked.labels:
        raise refusal(
            f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} no source(), only "
            f"hooks know their rows. Name views with a source()."
        )
    if without:
        requests.output.say(f"Skipped (no source()): {', '.join(without)}.")
    return [label for label in labels if label not in without]
