"""Writing the rows of django-celery-beat from the schedules of the views."""

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connections
from django.db.models import F
from django.db.models.deletion import Collector
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

from .. import engine
from ..logs import log
from ..redact import loggable
from .heartbeat import maintenance_problem
from .periodic import (
    DEFAULTS,
    DesiredTask,
    TaskSource,
    alias,
    desired_tasks,
    from_beat,
    our_tasks,
    task_sources,
    to_beat,
)
from .timetable import ScheduleStatus, timetable

__all__ = [
    "ScheduleStatus",
    "delete_all",
    "maintenance_problem",
    "reconcile",
    "reconcile_if_possible",
    "timetable",
]  # fmt: skip

logger = logging.getLogger(__name__)

MISSING = 0  # no row has this primary key
OURS = "matviews."  # prefix of our Celery tasks
#: The columns of a periodic task that are ours to set.
_COMPARED = (
    *DEFAULTS, "args", "kwargs", "crontab_id", "queue", "headers", "enabled", "description",
    "interval_id", "last_run_at", "total_run_count",
)  # fmt: skip
_READ = ("pk", "name", "task", *(name for name in _COMPARED if name != "task"))
NAME, TASK, ENABLED = _READ.index("name"), _READ.index("task"), _READ.index("enabled")
RUNS = 2  # the last columns: they change whenever beat saves what it has sent
MAX_AHEAD = timedelta(minutes=1)  # of beat's clock


def reconcile() -> int:
    """Write the periodic tasks as the schedules define them; restore what was edited or deleted.

    The number of statements depends neither on the number of schedules nor on how many rows differ,
    apart from the size limits of one statement. If nothing differs, it only reads. Two calls at
    once do no harm.

    Returns:
        How many periodic tasks were created, changed or deleted.
    """
    if not _find_changes():
        return 0
    changed = PeriodicTasks.objects.using(alias())
    changed.get_or_create(ident=1, defaults={"last_update": engine.now()})
    with engine.short_transaction(durable=False):
        # The row lock makes others that write periodic tasks wait until the commit. It comes first,
        # because on SQLite a transaction that has read cannot always write.
        changed.filter(ident=1).update(last_update=F("last_update"))
        _make_intervals()
        changes = _find_changes()
        changes.write()
        if changes:
            PeriodicTasks.update_changed()
    return len(changes)


def reconcile_if_possible() -> None:
    """`reconcile` for callers that must not fail, even without django-celery-beat's tables."""
    try:
        reconcile()
    except Exception as error:  # noqa: BLE001 - whatever a database raises
        sentence = "periodic tasks not written: matviews.maintain will write them"
        log(logger, logging.WARNING, sentence, exception=loggable(error, trusted=False))


def delete_all() -> None:
    """Delete our periodic tasks, if django-celery-beat has its tables; ours no longer exist."""
    if PeriodicTask._meta.db_table in connections[alias()].introspection.table_names():
        our_tasks().filter(task__startswith=OURS).delete()


@dataclass
class _Changes:
    """The periodic tasks that have to be written."""

    #: The tasks that are missing.
    created: list[Any] = field(default_factory=list)
    #: The tasks that differ, by the columns in which they do.
    updated: dict[frozenset[str], list[Any]] = field(default_factory=lambda: defaultdict(list))
    #: The tasks that belong to no schedule.
    orphans: list[Any] = field(default_factory=list)

    def compare(
        self,
        name: str,
        desired: DesiredTask,
        row: tuple[Any, ...] | None,
        intervals: dict[tuple[int, str], int],
    ) -> bool:
        """Compare a row, if there is one, with what it should be; whether it has to be written."""
        task = dict(zip(_READ, row, strict=True)) if row else None
        values = _values(desired, task, intervals)
        if task is None:
            self.created.append(PeriodicTask(name=name, **values))
            return True
        different = {key: value for key, value in values.items() if task[key] != value}
        if different:
            self.updated[frozenset(different)].append(PeriodicTask(pk=task["pk"], **different))
        return bool(different)

    def __len__(self) -> int:
        return len(self.created) + sum(map(len, self.updated.values())) + len(self.orphans)

    def write(self) -> None:
        collector = Collector(using=alias())
        for task in self.orphans:
            task.no_changes = True  # or each would notify beat
        collector.collect(self.orphans)
        collector.delete()
        tasks = PeriodicTask.objects.using(alias())
        tasks.bulk_create(self.created)
        for columns, different in self.updated.items():
            tasks.bulk_update(different, sorted(columns))


def _find_changes() -> _Changes:
    """Compare rows with what they should be; models are made of those that differ only.

    What this process found right is not compared again, as long as nothing of it changes.
    """
    changes, intervals = _Changes(), _intervals()
    rows = our_tasks().values_list(*_READ)
    present = {row[NAME]: row for row in rows}
    sources, others = task_sources()
    right = {}
    for source in sources:
        row, state = present.pop(source.name, None), source.state
        seen = row and state and (state, intervals.get(_interval(source)), row[:-RUNS])
        is_right = seen and seen == _RIGHT.get(source.name) and _runs(row)
        if not is_right:
            is_right = not changes.compare(source.name, source.desired(), row, intervals)
        if seen and is_right:
            right[source.name] = seen
    for name, desired in others.items():
        changes.compare(name, desired, present.pop(name, None), intervals)
    _RIGHT.clear()
    _RIGHT.update(right)
    left = [row[0] for row in present.values() if row[TASK].startswith(OURS)]
    changes.orphans += our_tasks().filter(pk__in=left) if left else ()
    return changes


#: By name, what the periodic tasks that were right depend on, and their rows without their runs.
_RIGHT: dict[str, Any] = {}


def _interval(source: TaskSource) -> tuple[int, str]:
    return source.row.known.every or 0, source.row.known.period


def _runs(row: Any) -> bool:
    """Whether the first interval of a task began before: beat counts from its last run."""
    last = row[-RUNS]
    if not row[ENABLED]:
        return True
    return last is not None and from_beat(last) <= engine.now() + MAX_AHEAD


def _values(
    desired: DesiredTask, task: dict[str, Any] | None, intervals: dict[tuple[int, str], int]
) -> dict[str, Any]:
    """The values that a task should have; `task` are those that it has, if it is there."""
    values = dict(desired.fields)
    values["interval_id"] = intervals.get(desired.interval, MISSING) if desired.interval else None
    if desired.fields["enabled"] and (task is None or _starts(desired, task)):
        values |= {"last_run_at": to_beat(desired.starts_after), "total_run_count": 0}
    return values


def _starts(desired: DesiredTask, task: dict[str, Any]) -> bool:
    """Whether its first interval begins now: beat would add another, or run a past crontab.

    Or the clock of beat was ahead when it sent the last message, and beat would wait until then.
    """
    other_crontab = desired.fields["crontab_id"] not in (None, task["crontab_id"])
    if other_crontab or not task["enabled"] or task["last_run_at"] is None:
        return True
    return from_beat(task["last_run_at"]) > engine.now() + MAX_AHEAD


def _intervals() -> dict[tuple[int, str], int]:
    """The row to use for each number and unit. Rows are shared, and not unique."""
    rows = IntervalSchedule.objects.using(alias()).order_by("-pk")
    return {(every, period): pk for pk, every, period in rows.values_list("pk", "every", "period")}


def _make_intervals() -> None:
    desired = {task.interval for task in desired_tasks().values() if task.interval}
    missing = sorted(desired - _intervals().keys())
    IntervalSchedule.objects.using(alias()).bulk_create(
        IntervalSchedule(every=every, period=period) for every, period in missing
    )
