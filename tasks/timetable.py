"""What runs when, and whether `matviews.maintain` does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .. import engine
from ..models import Heartbeat, RefreshSchedule
from .periodic import MAINTENANCE, crontab_after, disabled_reason, from_beat, name_of, our_tasks
from .queues import queues_in_words

__all__ = ["ScheduleStatus", "maintenance_problem", "timetable"]

MAX_SILENCE = timedelta(minutes=5)
MAX_SENT = 5  # that often beat sends `matviews.maintain` in that time
NOT_WRITTEN = "its periodic task is missing or disabled: `matviews.maintain` or `manage.py migrate` restores it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleStatus:
    """What comes of a schedule.

    Attributes:
        schedule: the schedule, its view loaded.
        runs: whether it asks for refreshes at present.
        disabled_reason: why it does not, "" if it does.
        last_sent: when beat last sent its request since it was switched on; beat writes that down
            every three minutes. None if it did not.
        next_due: when beat is to send the next, None if it is off. The refresh starts within the
            jitter after that.
    """

    schedule: RefreshSchedule
    runs: bool
    disabled_reason: str
    last_sent: datetime | None
    next_due: datetime | None


def timetable(labels: Iterable[str] | None = None) -> list[ScheduleStatus]:
    """What runs when, by view. It asks the database only, in a constant number of statements.

    Args:
        labels: the views to tell of; all by default.
    """
    schedules = RefreshSchedule.objects.select_related("view", "crontab")
    tasks = our_tasks()
    if labels is not None:
        schedules = schedules.filter(view__label__in=labels)
        tasks = tasks.filter(name__in=[name_of(schedule) for schedule in schedules])
    by_name = {task.name: task for task in tasks}
    return [
        _planned(schedule, by_name.get(name_of(schedule)))
        for schedule in sorted(schedules, key=lambda each: (each.view.label, each.pk))
    ]


def _planned(schedule: RefreshSchedule, task: Any) -> ScheduleStatus:
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
    """What keeps `matviews.maintain` from running, in a sentence with the way out; "" if nothing does."""
    task = our_tasks().filter(name=MAINTENANCE).first()
    if task is None:
        return (
            f"The periodic task {MAINTENANCE!r} is missing, so nobody sends lost messages again: run "
            f"`manage.py migrate`, which makes it."
        )
    if not task.enabled:
        return (
            f"The periodic task {MAINTENANCE!r} is disabled, so nobody sends lost messages again: run "
            f"`manage.py migrate`, which enables it."
        )
    heartbeat = Heartbeat.objects.first()
    if not _silent(task, heartbeat):
        return ""
    seconds = (engine.now() - heartbeat.ran_at).total_seconds() if heartbeat else 0
    since = f"for {seconds / 60:.0f} minutes" if heartbeat else "yet"
    return (
        f"matviews.maintain has not run {since}, so nobody sends lost messages again: see that "
        f"`celery beat`, with django-celery-beat's DatabaseScheduler, is running, and a worker that listens "
        f"to {queues_in_words('matviews.maintain')}."
    )


def _silent(task: Any, heartbeat: Heartbeat | None) -> bool:
    long_ago = engine.now() - MAX_SILENCE
    if heartbeat:
        return heartbeat.ran_at < long_ago
    # Beat changes the row each time that it writes down what it has sent.
    sent: int = task.total_run_count
    return bool(task.date_changed < long_ago) or sent >= MAX_SENT
