"""When each schedule runs, and whether the maintenance task does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

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
from .queues import queues_in_words

__all__ = ["ScheduleStatus", "maintenance_problem", "timetable"]

MAX_SILENCE = timedelta(minutes=5)  # of the maintenance task
MAX_SENT_IN_VAIN = 5  # messages that beat sends in that time
NOT_WRITTEN = (
    "its periodic task is missing or disabled: "
    "`matviews.maintain` or `manage.py migrate` restores it"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleStatus:
    """Whether and when a schedule runs.

    Attributes:
        schedule: the schedule, with its view loaded.
        runs: whether it requests refreshes at present.
        disabled_reason: why it does not, "" if it does.
        last_sent: when beat last sent its request since it was enabled, None if it did not. Beat
            saves this every three minutes.
        next_due: when beat will send the next one, None if it is disabled. The refresh starts
            within the jitter after that.
    """

    schedule: RefreshSchedule
    runs: bool
    disabled_reason: str
    last_sent: datetime | None
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
    written = task is not None and task.enabled
    reason = disabled_reason(schedule) or ("" if written else NOT_WRITTEN)
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
    """What keeps the maintenance task from running, and what to do about it; "" if it runs."""
    task = our_tasks().filter(name=MAINTENANCE).first()
    if task is None:
        return (
            f"The periodic task {MAINTENANCE!r} is missing, so lost messages are not re-sent. Run "
            f"`manage.py migrate`, which creates it."
        )
    if not task.enabled:
        return (
            f"The periodic task {MAINTENANCE!r} is disabled, so lost messages are not re-sent. Run "
            f"`manage.py migrate`, which enables it."
        )
    heartbeat = Heartbeat.objects.first()
    if not _silent(task, heartbeat):
        return ""
    minutes = round((engine.now() - heartbeat.ran_at) / MINUTE) if heartbeat else 0
    since = f"for {format_duration(minutes * MINUTE)}" if heartbeat else "yet"
    return (
        f"The maintenance task has not run {since}, so lost messages are not re-sent. Check that "
        f"celery beat (with the DatabaseScheduler of django-celery-beat) is running, and a worker "
        f"that listens to {queues_in_words('matviews.maintain')}."
    )


def _silent(task: Any, heartbeat: Heartbeat | None) -> bool:
    long_ago = engine.now() - MAX_SILENCE
    if heartbeat:
        return heartbeat.ran_at < long_ago
    # Beat updates the row whenever it saves what it has sent.
    sent: int = task.total_run_count
    return bool(task.date_changed < long_ago) or sent >= MAX_SENT_IN_VAIN
