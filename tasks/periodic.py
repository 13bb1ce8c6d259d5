"""The rows of django-celery-beat: those that are ours, and how the schedules define them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import router
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django_celery_beat.models import PeriodicTask

from .. import engine
from ..conf import get_settings
from ..models import MAX_JITTER, Period, RefreshSchedule
from ..phases import Phase
from .expiry import headers_for
from .schedule_rows import ScheduleRow, read_schedules

__all__ = [
    "DEFAULTS",
    "MAINTENANCE",
    "MINUTE",
    "PREFIX",
    "PULSE",
    "DesiredTask",
    "TaskSource",
    "alias",
    "crontab_after",
    "desired_tasks",
    "disabled_reason",
    "name_of",
    "our_tasks",
    "task_sources",
]  # fmt: skip

PREFIX = "matviews: "
MAINTENANCE = f"{PREFIX}maintenance"
PULSE = f"{PREFIX}pulse"
MAX_NAME_LENGTH = 200  # characters
STARTS_PER_SECOND = 10  # that the default jitter aims at, so that few schedules need none
MAX_DEFAULT_JITTER = 60  # seconds
MIN_EXPIRY = 60  # seconds; a worker may be busy that long
# Seconds. A crontab picks a time of day, perhaps to avoid the load hours later.
CRONTAB_EXPIRY = 3600
MINUTE = timedelta(minutes=1)
#: The columns of which all of our tasks have the same value.
DEFAULTS = {
    "solar_id": None,
    "clocked_id": None,
    "one_off": False,
    "start_time": None,
    "expires": None,
    "exchange": None,
    "routing_key": None,
    "priority": None,
    "expire_seconds": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DesiredTask:
    """A periodic task as it should be."""

    #: The values of its columns, except name and interval.
    fields: dict[str, Any]
    #: The number and unit of its interval; None for a crontab or an invalid schedule.
    interval: tuple[int, str] | None
    #: When its first interval begins, if it is new or enabled again.
    starts_after: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSource:
    """What a periodic task is made from."""

    #: The row of its schedule.
    row: ScheduleRow
    #: The default jitter, in seconds.
    spread: int

    @property
    def name(self) -> str:
        """The name of the task."""
        return _name(self.row.known.pk, self.row.view["label"])

    @property
    def state(self) -> tuple[object, ...] | None:
        """All that the task depends on, apart from its start; None if that is the time, too."""
        if self.row.known.crontab_id is not None:
            return None
        return self.spread, get_settings().CELERY_QUEUE, *self.row.state

    def desired(self) -> DesiredTask:
        """The task as it should be."""
        with translation.override(None):  # in English, because it is stored
            return _desired(self.row.load(), engine.now(), self.spread)


def task_sources() -> tuple[list[TaskSource], dict[str, DesiredTask]]:
    """What the tasks of schedules by time are made from; and the other tasks, by name.

    One for all on change, and the maintenance task.
    """
    rows, now = read_schedules(), engine.now()
    timed = [row for row in rows if not row.known.on_change]
    spread = _default_jitter(len(timed))
    on_change = (row.load() for row in rows if row.known.on_change)
    follows = any(not disabled_reason(each) for each in on_change)
    pulse = {PULSE: _pulse(now)} if follows and get_settings().PULSE_SECONDS else {}
    sources = [TaskSource(row=row, spread=spread) for row in timed]
    return sources, {MAINTENANCE: _maintenance(now)} | pulse


def desired_tasks() -> dict[str, DesiredTask]:
    """The periodic tasks that should exist, by name."""
    sources, others = task_sources()
    return others | {each.name: each.desired() for each in sources}


def name_of(schedule: RefreshSchedule) -> str:
    """The name of a schedule's periodic task."""
    return _name(schedule.pk, schedule.view.label)


def _name(pk: int, label: str) -> str:
    return f"{PREFIX}schedule {pk} of {label}"[:MAX_NAME_LENGTH]


def disabled_reason(schedule: RefreshSchedule) -> str:
    """Why a schedule requests no refreshes at present, in the active language; "" if it does."""
    return next(_reasons(schedule), "")


def _reasons(schedule: RefreshSchedule) -> Iterator[str]:
    view = schedule.view
    if not schedule.enabled:
        yield _("the schedule is disabled")
    if view.definition is None:
        yield _("the code no longer defines %(view)s") % {"view": view.label}
    elif view.definition.errors:
        yield _("the view has errors, see `manage.py check`")
    if not view.enabled:
        yield _("the view is disabled")
    if view.paused:
        yield _("the view is paused")
    yield from schedule.faults().values()
    if schedule.on_change and (reason := engine.on_change_obstacle(view.definition)):
        yield _("its changes are not tracked: %(reason)s") % {"reason": reason}
    if schedule.crontab and crontab_after(schedule.crontab, engine.now()) is None:
        yield _("its crontab never matches a time")


def crontab_after(crontab: Any, last: datetime) -> datetime | None:
    """When a crontab is next due, None if never."""
    try:
        aware = timezone.make_aware(last) if timezone.is_naive(last) else last
        remaining: timedelta = crontab.schedule.remaining_estimate(aware)
    except Exception:  # noqa: BLE001 - an impossible crontab raises anything, and would kill beat
        return None
    return timezone.now() + remaining


def _desired(schedule: RefreshSchedule, now: datetime, spread: int) -> DesiredTask:
    reason = disabled_reason(schedule)
    faulty = bool(reason and schedule.faults())
    label, by_crontab = schedule.view.label, schedule.crontab_id is not None
    description = f"Generated from refresh schedule {schedule.pk} of {label}: change it there."
    disabled = f" Disabled: {reason}."
    return DesiredTask(
        fields={
            **DEFAULTS,
            "task": f"matviews.{schedule.kind}",
            "args": json.dumps([label]),
            "kwargs": "{}" if faulty else _kwargs(schedule, spread),
            "crontab_id": schedule.crontab_id,
            "queue": schedule.view.queue_name,
            "headers": headers_for(
                _expiry(None if faulty else schedule.interval), schedule.view.queue_name
            ),
            "enabled": not reason,
            "description": description + (reason and disabled),
        },
        interval=None if faulty or by_crontab else (schedule.every or 0, schedule.period),
        starts_after=now if reason or by_crontab else _last_success(schedule, now),
    )


def _maintenance(now: datetime) -> DesiredTask:
    return DesiredTask(
        fields={
            **DEFAULTS,
            "task": "matviews.maintain",
            "args": "[]",
            "kwargs": "{}",
            "crontab_id": None,
            "queue": get_settings().CELERY_QUEUE,
            "headers": headers_for(_expiry(MINUTE)),
            "enabled": True,
            "description": "Re-sends lost messages of matviews. It is always enabled.",
        },
        interval=(1, Period.MINUTES.value),
        starts_after=now - MINUTE,
    )


def _pulse(now: datetime) -> DesiredTask:
    return DesiredTask(
        fields={
            **DEFAULTS,
            "task": "matviews.pulse",
            "args": "[]",
            "kwargs": "{}",
            "crontab_id": None,
            "queue": get_settings().CELERY_QUEUE,
            "headers": headers_for(MIN_EXPIRY),
            "enabled": True,
            "description": "Makes a worker check what is due on change. Exists while a "
            "schedule is on change and MATVIEWS['PULSE_SECONDS'] is not 0.",
        },
        interval=(get_settings().PULSE_SECONDS, Period.SECONDS.value),
        starts_after=now,
    )


def _kwargs(schedule: RefreshSchedule, spread: int) -> str:
    kwargs: dict[str, object] = {}
    if not schedule.refreshes and schedule.sample:
        kwargs["sample"] = schedule.sample
    if schedule.phases:
        kwargs["phases"] = [phase.value for phase in Phase if phase in schedule.phases]
    if jitter := _jitter(schedule, spread):
        kwargs["jitter"] = jitter
    if schedule.crontab_id and schedule.refreshes:
        kwargs["crontab"] = True
    return json.dumps(kwargs)


def _jitter(schedule: RefreshSchedule, spread: int) -> int:
    if schedule.jitter is not None:
        return min(schedule.jitter, MAX_JITTER)
    seconds = schedule.interval.total_seconds() if schedule.interval else 0
    return min(int(seconds), spread)


def _default_jitter(schedules: int) -> int:
    """Seconds, a power of two, so that a new schedule rarely changes the rows of others."""
    seconds = schedules // STARTS_PER_SECOND
    step = 1 << (seconds - 1).bit_length() if seconds else 0
    return min(step, MAX_DEFAULT_JITTER)


def _expiry(interval: timedelta | None) -> int:
    if interval is None:
        return CRONTAB_EXPIRY
    return max(2 * int(interval.total_seconds()), MIN_EXPIRY)


def _last_success(schedule: RefreshSchedule, now: datetime) -> datetime:
    """When its phases last succeeded, at most one interval ago; if overdue, it is due at once.

    A view that has never been verified is verified after an interval: it may not be built yet.
    """
    overdue = now - (schedule.interval or timedelta())
    if not schedule.refreshes:
        found = schedule.view.verification
        return max(overdue, datetime.fromisoformat(found["at"])) if found else now
    phases = schedule.phases or schedule.view.options.phases
    times = [getattr(schedule.view, Phase(phase).success_field) for phase in phases]
    return overdue if None in times else max(overdue, min(times))


def our_tasks() -> Any:
    """The rows with our prefix, in upper or lower case as some collations ignore that."""
    tasks = PeriodicTask.objects.using(alias()).filter(name__istartswith=PREFIX)
    return tasks.order_by("pk")


def alias() -> str:
    """The database of the periodic tasks."""
    name: str = router.db_for_write(PeriodicTask)
    return name


def to_beat(when: datetime) -> datetime:
    """A time as beat stores it: without USE_TZ, beat reads naive times as UTC."""
    return when if timezone.is_aware(when) else timezone.make_naive(timezone.make_aware(when), UTC)


def from_beat(when: datetime) -> datetime:
    """A time that beat has stored: the inverse of `to_beat`."""
    return when if timezone.is_aware(when) else timezone.make_naive(when.replace(tzinfo=UTC))
