"""What the command does instead of refreshing views itself."""

from django.core.management.base import CommandError

from matviews import engine, tasks
from matviews.models import Heartbeat, Refresh
from matviews.tasks import broker_errors, schedules

from . import tables
from .requests import Requests

__all__ = ["enqueue", "list_schedules", "list_views"]


def list_views(requests: Requests) -> None:
    """Show the state of every view, or of those that were named.

    Raises:
        CommandError: one has errors, or its last refresh failed, and nobody holds it.
    """
    named, output = requests.asked.labels, requests.output
    statuses = [each for each in engine.view_statuses() if not named or each.label in named]
    output.entries += map(tables.status_as_dict, statuses)
    if statuses and not output.as_json:
        tables.print_statuses(statuses, output.console())
    elif not output.as_json:
        output.console().print("No view is defined.")
    if failed := [each.label for each in statuses if each.failed]:
        raise CommandError(f"{len(failed)} of {len(statuses)} views failed: {', '.join(failed)}.")


def list_schedules(requests: Requests) -> None:
    """Show what beat asks for and when, for every view or those that were named, and how the maintenance task is."""
    output, heartbeat = requests.output, Heartbeat.objects.first()
    planned = schedules.timetable(requests.asked.labels or None)
    problem = schedules.maintenance_problem()
    output.subject = "schedules"
    output.entries += map(tables.plan_as_dict, planned)
    output.maintenance = {
        "ran_at": heartbeat and heartbeat.ran_at.isoformat(),
        "problem": problem,
    }
    if output.as_json:
        return
    console = output.console()
    if planned:
        tables.print_plans(planned, console)
    else:
        console.print("No view has a schedule: give it one in the admin, or refresh_every in code.")
    tables.print_maintenance(heartbeat, problem, console)


def _send(refresh: Refresh, requests: Requests) -> bool:
    """Send what is due in a view, or have it sent once the caller's transaction has committed."""
    if engine.in_transaction():
        tasks.dispatch_on_commit(refresh.view_id)
        return True
    with broker_errors.heard() as errors:
        sent = tasks.dispatch(refresh.view_id)
    if not sent:
        requests.output.warn(
            f"{refresh.view.label}: recorded, but the broker is unreachable ({'; '.join(errors)}); the "
            f"message will be sent when it is back"
        )
    return sent


def enqueue(requests: Requests) -> None:
    """Leave the refreshes to Celery workers.

    Raises:
        CommandError: one was refused.
    """
    labels = requests.labels()
    for label in labels:
        if refresh := requests.request(label):
            done = refresh.finished_at is not None
            sent = not done and _send(refresh, requests)
            requests.output.entries.append(
                {
                    "view": label,
                    "refresh": refresh.pk,
                    "state": refresh.state if done else "requested",
                    "requests": refresh.requests,
                    "sent": sent,
                    "error": "",
                }
            )
            asked = f"refresh {refresh.pk} requested"
            if refresh.requests > 1:
                asked = f"joined refresh {refresh.pk}, which had not begun"
            elif done:
                asked = "nothing has changed"
            requests.output.say(f"{label}: {asked}")
    requests.raise_failed(labels)
