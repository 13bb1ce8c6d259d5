"""What `--check` tells: whether views are on time, or whether changes of their sources are pending."""

from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError

from matviews import engine
from matviews.engine import ViewStatus
from matviews.exceptions import MatviewsError
from matviews.models import ViewControl
from matviews.phases import Phase
from matviews.redact import error_text
from matviews.registry import registry
from matviews.states import ViewState

from . import tables
from .requests import Requests

__all__ = ["check"]


def check(requests: Requests) -> None:
    """Tell which views are on time, or, if that was asked for, which are up to date.

    Raises:
        CommandError: one is not, or could not say.
    """
    if requests.asked.pending:
        _check_pending(requests)
    else:
        _check_on_time(requests)


def _check_on_time(requests: Requests) -> None:
    """Of the views that were named, else of all that nobody holds. Asks no hook and no source."""
    requests.refuse_without_views()
    named, output = requests.asked.labels, requests.output
    found = engine.view_statuses(named or None)
    statuses = found if named else [each for each in found if _is_expected(each)]
    for status in statuses:
        output.entries.append(tables.timeliness_as_dict(status))
        output.say(f"{status.label}: {tables.timeliness_in_words(status)}")
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


def _check_pending(requests: Requests) -> None:
    labels = requests.labels()
    changed = _changed_phases(labels)
    entries = [_pending(label, requests, changed.get(label, [])) for label in labels]
    requests.output.entries += entries
    behind = [entry["view"] for entry in entries if entry["pending"]]
    unknown = [entry["view"] for entry in entries if entry["error"] and not entry["pending"]]
    sentences = [_sentence(behind, len(labels), "out of date")] if behind else []
    sentences += [_sentence(unknown, len(labels), "not able to tell")] if unknown else []
    if sentences:
        raise CommandError(" ".join(sentences))


def _changed_phases(labels: Sequence[str]) -> dict[str, list[Phase]]:
    controls = ViewControl.objects.filter(label__in=labels)
    return {
        control.label: engine.changed_phases(control.definition, control)
        for control in controls
        if control.definition
    }


def _pending(label: str, requests: Requests, changed: Sequence[Phase]) -> dict[str, Any]:
    """Which phases have work; hooks are not asked where another definition wrote the rows."""
    phases: dict[str, bool] = {}
    errors = []
    try:
        wanted = engine.check_phases(registry.usable(label), requests.phases_of(label))
    except MatviewsError as error:
        wanted, errors = (), [str(error)]
    rebuilt = [phase for phase in wanted if phase in changed]
    phases |= dict.fromkeys(rebuilt, False)
    for phase in () if rebuilt else wanted:
        try:
            phases[phase] = engine.is_fresh(label, phases=[phase])
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            trusted = engine.raised_by_hook(error)
            errors.append(f"{phase}: {error_text(error, trusted=trusted)}")
    pending = [phase for phase, fresh in phases.items() if not fresh]
    if rebuilt:
        requests.output.say(f"{label}: definition changed ({', '.join(rebuilt)})")
    elif pending:
        requests.output.say(
            f"{label}: source changed since the last refresh ({', '.join(pending)})"
        )
    elif not errors:
        requests.output.say(f"{label}: nothing pending")
    for line in errors:
        requests.fail(label, line)
    return {
        "view": label,
        "pending": pending,
        "fresh": False if pending else None if errors else True,
        "phases": phases,
        "changed": rebuilt,
        "error": "\n".join(errors),
    }
