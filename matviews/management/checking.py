"""`--check`: whether views are on time, or with `--pending` whether their sources have changed."""

from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.engine import Upstream, ViewStatus
from matviews.exceptions import MatviewsError
from matviews.models import ViewControl
from matviews.phases import Phase
from matviews.redact import error_text
from matviews.registry import registry
from matviews.states import ViewState

from . import phrases, tables
from .targets import Targets

__all__ = ["check"]


def check(targets: Targets) -> None:
    """Report which views are on time or, with `--pending`, which are up to date.

    Raises:
        CommandError: a view is not, or it is unknown.
    """
    if targets.options.pending:
        _check_pending(targets)
    else:
        _check_on_time(targets)


def _check_on_time(targets: Targets) -> None:
    """Check the named views, or all that are not held. Calls no hook and reads no source."""
    targets.refuse_without_views()
    named, output = targets.options.labels, targets.output
    found = engine.view_statuses(named or None)
    statuses = found if named else [each for each in found if _is_expected(each)]
    for status in statuses:
        recent = engine.recent_refreshes(status.label)
        entry = tables.timeliness_as_dict(status) | tables.recent_as_dict(recent)
        output.entries.append(entry)
        full = f"; {recent.in_words}" if recent.usually_full else ""
        output.say(f"{status.label}: {phrases.timeliness_in_words(status)}{full}")
    if not statuses:
        output.say("Nothing to check: each view is disabled or paused.")
    late = [status.label for status in statuses if not status.on_time]
    if late:
        raise CommandError(_sentence(late, len(statuses), "not on time"))


def _is_expected(status: ViewStatus) -> bool:
    return not status.held and status.state != ViewState.REMOVED


def _sentence(labels: Sequence[str], count: int, what: str) -> str:
    verb = "is" if len(labels) == 1 else "are"
    return f"{len(labels)} of {count} views {verb} {what}: {', '.join(labels)}."


def _check_pending(targets: Targets) -> None:
    labels = targets.labels()
    changed = _changed_phases(labels)
    entries = [_pending(label, targets, changed.get(label, [])) for label in labels]
    targets.output.entries += entries
    behind = [entry["view"] for entry in entries if entry["pending"]]
    unknown = [entry["view"] for entry in entries if entry["error"] and not entry["pending"]]
    sentences = [_sentence(behind, len(labels), "out of date")] if behind else []
    sentences += [_sentence(unknown, len(labels), "not known to be up to date")] if unknown else []
    if sentences:
        raise CommandError(" ".join(sentences))


def _changed_phases(labels: Sequence[str]) -> dict[str, list[Phase]]:
    controls = ViewControl.objects.filter(label__in=labels)
    return {
        control.label: engine.changed_phases(control.definition, control)
        for control in controls
        if control.definition
    }


def _pending(label: str, targets: Targets, changed: Sequence[Phase]) -> dict[str, Any]:
    """Which phases have pending work; hooks are not called if the definition has changed."""
    phases: dict[str, bool] = {}
    errors = []
    try:
        requested = engine.check_phases(registry.usable(label), targets.phases_of(label))
    except MatviewsError as error:
        requested, errors = (), [str(error)]
    changed_definition = [phase for phase in requested if phase in changed]
    phases |= dict.fromkeys(changed_definition, False)
    for phase in () if changed_definition else requested:
        try:
            phases[phase] = engine.is_fresh(label, phases=[phase])
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            trusted = engine.raised_by_hook(error)
            errors.append(f"{phase}: {error_text(error, trusted=trusted)}")
    pending = [phase for phase, fresh in phases.items() if not fresh]
    upstream, parked = engine.upstream_problems(label), len(engine.list_parked(label))
    if pending or not errors:
        told = _pending_in_words(pending, changed_definition, upstream)
        if parked and pending and not (changed_definition or any(upstream)):
            told = phrases.parked_in_words(label, parked)  # the source was not read
        targets.output.say(f"{label}: {told}")
    for line in errors:
        targets.fail(label, line)
    return {
        "view": label,
        "pending": pending,
        "fresh": False if pending else None if errors else True,
        "phases": phases,
        "definition_changed": changed_definition,
        "parked": parked,
        **tables.upstream_as_dict(upstream),
        "error": "\n".join(errors),
    }


def _pending_in_words(
    pending: Sequence[str], changed_definition: Sequence[str], upstream: Upstream
) -> str:
    """Why a view is not up to date; "nothing pending" if it is."""
    if changed_definition:
        return f"definition changed ({', '.join(changed_definition)})"
    if pending and any(upstream):
        return "; ".join(phrases.upstream_in_words(upstream))
    if pending:
        return f"source changed since the last refresh ({', '.join(pending)})"
    return "nothing pending"
