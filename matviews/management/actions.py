"""`--list`, `--schedules` and `--enqueue`."""

from django.core.management.base import CommandError
from django.utils import translation

from matviews import engine, tasks
from matviews.models import Heartbeat, Refresh
from matviews.tasks import broker_errors, schedules

from . import tables
from .targets import Targets
from .waiting import wait

__all__ = ["enqueue", "list_schedules", "list_views"]


def list_views(targets: Targets) -> None:
    """Show the state of every view, or of the named ones.

    Raises:
        CommandError: a view that is neither paused nor disabled is invalid, suspended or failed.
    """
    named, output = targets.options.labels, targets.output
    statuses = [each for each in engine.view_statuses() if not named or each.label in named]
    recent = {each.label: engine.recent_refreshes(each.label) for each in statuses}
    output.entries += [
        {**tables.status_as_dict(each), **tables.recent_as_dict(recent[each.label])}
        for each in statuses
    ]
    if statuses and not output.as_json:
        tables.print_statuses(statuses, output.console())
        tables.print_usually_full(recent, output.console())
    elif not output.as_json:
        output.console().print("No view is defined.")
    if failed := [each.label for each in statuses if each.failed]:
        raise CommandError(f"{len(failed)} of {len(statuses)} views failed: {', '.join(failed)}.")


def list_schedules(targets: Targets) -> None:
    """Show when beat requests refreshes of the views, and whether the maintenance task runs."""
    output, heartbeat = targets.output, Heartbeat.objects.first()
    ran_at = heartbeat.maintenance_ended_at if heartbeat else None
    with translation.override(None):  # in English, as all that is printed
        statuses = schedules.timetable(targets.options.labels or None)
        problem = schedules.maintenance_problem()
    output.subject = "schedules"
    output.entries += map(tables.schedule_as_dict, statuses)
    output.facts["maintenance"] = {
        "ran_at": ran_at and ran_at.isoformat(),
        "problem": problem,
    }
    if output.as_json:
        return
    console = output.console()
    if statuses:
        tables.print_schedules(statuses, console)
    else:
        console.print("No view has a schedule: add one in the admin, or set refresh_every in code.")
    tables.print_maintenance(ran_at, problem, console)


def _send(refresh: Refresh, targets: Targets) -> bool:
    """Send the messages that are due in a view, now or after the caller's transaction commits."""
    if engine.in_transaction():
        tasks.dispatch_on_commit(refresh.view_id)
        return True
    with broker_errors.collected() as errors:
        sent = tasks.dispatch(refresh.view_id)
    if not sent:
        targets.output.warn(
            f"{refresh.view.label}: recorded, but the broker is unreachable ({'; '.join(errors)}); "
            f"the message will be sent when it is back"
        )
    return sent


def enqueue(targets: Targets) -> None:
    """Leave the refreshes to Celery workers; with `--wait`, wait until they have ended.

    Raises:
        CommandError: one was refused, or has failed while the command waited for it.
    """
    if targets.options.wait:
        targets.refuse_in_transaction()
    order = engine.Order(targets.labels())
    labels = order.labels
    open_refreshes = []
    for label in labels:
        if refresh := targets.request(label, order):
            _enqueue(refresh, targets)
            open_refreshes += [] if refresh.finished_at else [refresh]
    if targets.options.wait:
        wait(open_refreshes, targets)
    targets.raise_failed(labels)


def _enqueue(refresh: Refresh, targets: Targets) -> None:
    label, done = refresh.view.label, refresh.finished_at is not None
    sent = not done and _send(refresh, targets)
    targets.output.entries.append(
        {
            "view": label,
            "refresh": refresh.pk,
            "state": refresh.state if done else "requested",
            "requests": refresh.requests,
            "upstream_refreshes": refresh.upstream_refreshes,
            "sent": sent,
            "error": "",
        }
    )
    answer = f"refresh {refresh.pk} requested"
    if refresh.requests > 1:
        answer = f"joined refresh {refresh.pk}, which had not begun"
    elif done:
        answer = "nothing has changed"
    targets.output.say(f"{label}: {answer}")
