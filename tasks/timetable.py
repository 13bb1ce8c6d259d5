"""When each schedule runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _

from .. import engine
from ..models import RefreshSchedule
from .periodic import crontab_after, disabled_reason, from_beat, name_of, our_tasks

__all__ = ["ScheduleStatus", "timetable"]


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
    #: When beat will send the next one, None if it is disabled or on change. The refresh starts
    #: within the jitter after that.
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
    if not reason and not schedule.on_change and not (task and task.enabled):
        reason = _(
            "its periodic task is missing or disabled: `matviews.maintain` or `manage.py migrate` "
            "restores it"
        )
    # Beat may write what it has sent at the moment when we reset both columns.
    sent = task is not None and task.total_run_count > 0 and task.last_run_at is not None
    return ScheduleStatus(
        schedule=schedule,
        runs=not reason,
        disabled_reason=reason,
        last_sent=from_beat(task.last_run_at) if sent else None,
        next_due=None if reason or schedule.on_change else _next_due(schedule, task),
    )


def _next_due(schedule: RefreshSchedule, task: Any) -> datetime | None:
    now = engine.now()
    last = from_beat(task.last_run_at) if task.last_run_at else now
    due = last + schedule.interval if schedule.interval else crontab_after(schedule.crontab, last)
    return due and max(due, now)
