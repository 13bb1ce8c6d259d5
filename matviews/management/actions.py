"""What the command does instead of refreshing views itself."""

from collections.abc import Sequence
from typing import Any

from django.core.management.base import CommandError

from matviews import engine, tasks
from matviews.exceptions import MatviewsError
from matviews.models import Heartbeat, ViewControl
from matviews.phases import Phase
from matviews.registry import registry
from matviews.tasks import schedules

from . import tables
from .requests import Requests

__all__ = ["check", "enqueue", "list_schedules", "list_views"]


def list_views(requests: Requests) -> None:
    """Show the state of every view, or of those that were named."""
    named, output = requests.asked.labels, requests.output
    statuses = [each for each in engine.view_statuses() if not named or each.label in named]
    output.entries += map(tables.status_as_dict, statuses)
    if output.as_json:
        return
    console = output.console()
    if statuses:
        tables.print_statuses(statuses, console)
    else:
        console.print("No view is defined.")


def list_schedules(requests: Requests) -> None:
    """Show what beat asks for and when, for every view or those that were named, and how `watch` is."""
    output, heartbeat = requests.output, Heartbeat.objects.first()
    planned = schedules.timetable(requests.asked.labels or None)
    watch = schedules.watch_problem()
    output.subject = "schedules"
    output.entries += map(tables.plan_as_dict, planned)
    output.watch = {
        "ran_at": heartbeat and heartbeat.ran_at.isoformat(),
        "problem": watch,
    }
    if output.as_json:
        return
    console = output.console()
    if planned:
        tables.print_plans(planned, console)
    else:
        console.print("No view has a schedule: give it one in the admin, or refresh_every in code.")
    tables.print_watch(heartbeat, watch, console)


def check(requests: Requests) -> None:
    """Tell which views are not fresh.

    Raises:
        CommandError: one is not, or could not say.
    """
    labels = requests.labels()
    changed = _changed_phases(labels)
    entries = [_freshness(label, requests, changed.get(label, [])) for label in labels]
    requests.output.entries += entries
    if stale := [entry["view"] for entry in entries if not entry["fresh"]]:
        count = f"{len(stale)} of {len(labels)}"
        raise CommandError(f"{count} views not known to be fresh: {', '.join(stale)}.")


def _changed_phases(labels: Sequence[str]) -> dict[str, list[Phase]]:
    controls = ViewControl.objects.filter(label__in=labels)
    return {
        control.label: engine.changed_phases(control.definition, control)
        for control in controls
        if control.definition
    }


def _freshness(label: str, requests: Requests, changed: Sequence[Phase]) -> dict[str, Any]:
    """How a view stands; its hooks are not asked where another definition wrote its rows."""
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
            errors.append(f"{phase}: {type(error).__name__}: {error}")
    stale = [phase for phase, fresh in phases.items() if not fresh]
    if rebuilt:
        requests.output.say(f"{label}: definition changed ({', '.join(rebuilt)})")
    elif stale:
        requests.output.say(f"{label}: not fresh ({', '.join(stale)})")
    elif not errors:
        requests.output.say(f"{label}: fresh")
    for line in errors:
        requests.fail(label, line)
    fresh = False if stale else None if errors else True
    return {
        "view": label,
        "fresh": fresh,
        "phases": phases,
        "changed": rebuilt,
        "error": "\n".join(errors),
    }


def enqueue(requests: Requests) -> None:
    """Leave the refreshes to Celery workers.

    Raises:
        CommandError: one was refused.
    """
    labels = requests.labels()
    for label in labels:
        if refresh := requests.request(label):
            done = refresh.finished_at is not None
            sent = not done and tasks.dispatch(refresh.view_id)
            requests.output.entries.append(
                {
                    "view": label,
                    "refresh": refresh.pk,
                    "state": refresh.state if done else "requested",
                    "sent": sent,
                    "error": "",
                }
            )
            asked = "nothing has changed" if done else f"refresh {refresh.pk} requested"
            requests.output.say(f"{label}: {asked}")
            if not (done or sent):
                requests.output.warn(
                    f"{label}: recorded, but the broker took no message; watch sends it when the "
                    f"broker is back"
                )
    requests.raise_failed(labels)
