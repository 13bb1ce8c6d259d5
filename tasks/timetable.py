"""When each schedule runs, and whether the maintenance task does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext as _

from .. import engine
from ..models import Heartbeat, RefreshSchedule
from ..presentation import format_duration
from .periodic import (
    MAINTENANCE,
    MINUTE,
    crontab_after,
    disabled_reason,
    from_beat,
    name_of,
    our_tasks,
)
from .queues import queue_of

__all__ = ["ScheduleStatus", "maintenance_problem", "timetable"]

MAX_SILENCE = timedelta(minutes=5)  # of the maintenance task
MAX_SENT_IN_VAIN = 5  # messages that beat sends in that time


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleStatus:
    """Whether and when a schedule runs."""

    #: The schedule, with its view loaded.
    schedule: RefreshSchedule
    #: Whether it requests refreshes at present.
    runs: bool
    #: Why it does not, in the language that was active; "" if it does.
    disabled_reason: str
    #: When beat last sent its request since it was enabled, None if it did not. Beat saves this
    #: every three minutes.
    last_sent: datetime | None
    #: When beat will send the next one, None if it is disabled. The refresh starts within the
    #: jitter after that.
    next_due: datetime | None


def timetable(labels: Iterable[str] | None = None) -> list[ScheduleStatus]:
    """The status of every schedule, by view, in a constant number of statements.

    Args:
        labels: the views to include; all by default.
    """
    schedules = RefreshSchedule.objects.select_related("view", "crontab")
    tasks = our_tasks()
    if labels is not None:
        schedules = schedules.filter(view__label__in=labels)
        tasks = tasks.filter(name__in=[name_of(schedule) for schedule in schedules])
    by_name = {task.name: task for task in tasks}
    return [
        _status(schedule, by_name.get(name_of(schedule)))
        for schedule in sorted(schedules, key=lambda each: (each.view.label, each.pk))
    ]


def _status(schedule: RefreshSchedule, task: Any) -> ScheduleStatus:
    reason = disabled_reason(schedule)
    if not reason and not (task and task.enabled):
        reason = _(
            "its periodic task is missing or disabled: `matviews.maintain` or `manage.py migrate` "
            "restores it"
        )
    sent = task is not None and task.total_run_count > 0
    return ScheduleStatus(
        schedule=schedule,
        runs=not reason,
        disabled_reason=reason,
        last_sent=from_beat(task.last_run_at) if sent else None,
        next_due=None if reason else _next_due(schedule, task),
    )


def _next_due(schedule: RefreshSchedule, task: Any) -> datetime | None:
    now = engine.now()
    last = from_beat(task.last_run_at) if task.last_run_at else now
    due = last + schedule.interval if schedule.interval else crontab_after(schedule.crontab, last)
    return due and max(due, now)


def maintenance_problem() -> str:
    """What keeps the maintenance task from running, and what to do about it; "" if it runs.

    In the active language.
    """
    task = our_tasks().filter(name=MAINTENANCE).first()
    if task is None:
        return _(
            "The periodic task '%(task)s' is missing, so lost messages are not re-sent. Run "
            "`manage.py migrate`, which creates it."
        ) % {"task": MAINTENANCE}
    if not task.enabled:
        return _(
            "The periodic task '%(task)s' is disabled, so lost messages are not re-sent. Run "
            "`manage.py migrate`, which enables it."
        ) % {"task": MAINTENANCE}
    heartbeat = Heartbeat.objects.first()
    return f"{_since(heartbeat)} {_what_to_check()}" if _silent(task, heartbeat) else ""


def _since(heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return _("The maintenance task has not run yet, so lost messages are not re-sent.")
    minutes = round((engine.now() - heartbeat.ran_at) / MINUTE)
    return _("The maintenance task has not run for %(time)s, so lost messages are not re-sent.") % {
        "time": format_duration(minutes * MINUTE)
    }


def _what_to_check() -> str:
    queue = queue_of("matviews.maintain")
    if not queue:
        return _(
            "Check that celery beat (with the DatabaseScheduler of django-celery-beat) is running, "
            "and a worker that listens to the queue of its tasks."
        )
    return _(
        "Check that celery beat (with the DatabaseScheduler of django-celery-beat) is running, and "
        "a worker that listens to the queue '%(queue)s'."
    ) % {"queue": queue}


def _silent(task: Any, heartbeat: Heartbeat | None) -> bool:
    long_ago = engine.now() - MAX_SILENCE
    if heartbeat:
        return heartbeat.ran_at < long_ago
    # Beat updates the row whenever it saves what it has sent.
    sent: int = task.total_run_count
    return bool(task.date_changed < long_ago) or sent >= MAX_SENT_IN_VAIN
