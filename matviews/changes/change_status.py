"""What is pending for each view, in a few statements whatever the size of its tables."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import DateTimeField, Max, Min, QuerySet, Sum
from django.db.models.expressions import Combinable, RawSQL
from django.db.models.functions import Greatest

from ..databases import Triggers, clock, dialect_of, floors_of, triggers_of
from ..databases.clock import UtcNow
from ..databases.trigger_spec import TriggerSpec
from ..json_fields import Checkpoint
from ..limits import SHARD_COUNT
from ..models import (
    Change,
    ParkedKey,
    Refresh,
    ShardChange,
    TrackedTable,
    ViewChange,
    ViewControl,
    ViewShard,
)
from ..states import RefreshState
from .log_entries import read_log, read_queues
from .tracking_spec import Tracking
from .trust import is_tracked, row_to_tracked, select_tracked

__all__ = [
    "ChangeStatus", "change_status", "count_waiting", "newest_waiting", "oldest_logged",
    "oldest_waiting", "recorded_as_unlogged", "unlogged_tables", "waiting_tables",
]  # fmt: skip


class ChangeStatus(NamedTuple):
    """A view's pending changes and checkpoints."""

    #: The primary key of the view's control.
    view_id: int
    #: Whether the view is enabled.
    enabled: bool
    #: Whether every change is logged and none is waiting.
    complete: bool
    #: Whether the view has an open refresh.
    refreshing: bool
    #: The next four are those of the view's shard; of several, see `_of_all`.
    claims: int
    drain_number: int
    checkpoints: dict[str, Checkpoint]
    #: How many keys are parked.
    parked: int
    #: Whether one of them is to be tried again now.
    due: bool
    #: How often in a row the view has failed.
    failures: int


def change_status(label: str, tracking: Tracking, using: str) -> ChangeStatus | None:
    """The log, queue, triggers and checkpoints of a view; None if it has no records.

    One statement, because a change is first in the log, then in the queue, then counted by the
    shard. It reads the triggers only if no change is pending: on MariaDB and MySQL that takes
    longer than all else. A second statement reads the triggers of partitions.
    """
    connection, dialect = connections[using], triggers_of(using)
    models = (ViewControl, ViewShard, TrackedTable, Refresh, ParkedKey, ShardChange)
    names = [*(model._meta.db_table for model in models), "table"]
    control, shard, tracked, refresh, parked, queue_of_shard, table = map(
        connection.ops.quote_name, names
    )
    queue = floors_of(using).queue("control.id")
    tables = list(tracking.tables)
    marks = ", ".join(["%s"] * len(tables))
    unless = "found.waiting OR found.number > 0"  # the triggers are the same for all shards
    moment = connection.ops.adapt_datetimefield_value(clock.now(using))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT found.*, {select_tracked('tracked', dialect, unless=unless)} FROM ("
            f"SELECT control.id, control.enabled, shard.drain_number, shard.checkpoints, "
            f"EXISTS (SELECT 1 {_from_log('control.id', tables, using)}) "
            f"OR EXISTS (SELECT 1 FROM {queue} entry WHERE view_id = control.id) "
            f"OR EXISTS (SELECT 1 FROM {queue_of_shard} queued JOIN {shard} other "
            f"ON other.id = queued.shard_id WHERE other.view_id = control.id) AS waiting, "
            f"EXISTS (SELECT 1 FROM {refresh} WHERE view_id = control.id AND state = %s) AS taken, "
            f"shard.claims, shard.parked_count, shard.parked_count > 0 AND EXISTS "
            f"(SELECT 1 FROM {parked} WHERE shard_id = shard.id AND retry_at <= %s) AS due, "
            f"control.failures, shard.number "
            f"FROM {control} control JOIN {shard} shard ON shard.view_id = control.id "
            f"WHERE control.label = %s LIMIT {SHARD_COUNT.high}) found "
            f"JOIN {tracked} tracked ON tracked.{table} IN ({marks})",
            [*dialect.NAME_PATTERN, *tables, RefreshState.OPEN.value, moment, label, *tables],
        )
        rows = cursor.fetchall()
    of_shards: dict[int, list[Any]] = {}
    for row in rows:
        of_shards.setdefault(row[10], []).append(row)
    if not rows or any(len(each) != len(tables) for each in of_shards.values()):
        return None
    view_id = rows[0][0]
    read = [row_to_tracked(row[11:]) for row in of_shards[min(of_shards)]]
    complete = not rows[0][4] and _are_logged(view_id, read, tracking, dialect)
    return _of_all([_of_shard(each[0], complete) for _number, each in sorted(of_shards.items())])


def _of_shard(row: Sequence[Any], complete: bool) -> ChangeStatus:
    """The status of a view with one shard, from a row of `change_status`."""
    view_id, enabled, drain_number, checkpoints, _waiting, refreshing, claims, *others = row[:10]
    return ChangeStatus(
        view_id=view_id,
        enabled=bool(enabled),
        complete=complete,
        refreshing=bool(refreshing),
        claims=claims,
        drain_number=drain_number,
        checkpoints={phase: Checkpoint(*each) for phase, each in json.loads(checkpoints).items()},
        parked=others[0],
        due=bool(others[1]),
        failures=others[2],
    )


def _are_logged(
    view_id: int,
    read: Collection[tuple[TrackedTable, Collection[str]]],
    tracking: Tracking,
    dialect: Triggers,
) -> bool:
    """Whether triggers log all changes of tables, which are given with their records."""
    present = dialect.with_partitions({record.table: found for record, found in read})
    return all(
        is_tracked(record, view_id, tracking.tables[record.table], present[record.table])
        for record, _found in read
    )


def _of_all(shards: Sequence[ChangeStatus]) -> ChangeStatus:
    """The status of a view, from those of its shards. Several shards have no common drain number.

    So its drain is 0, and a phase has reached it if it has reached the last drain of each shard.
    """
    first = shards[0]
    if len(shards) == 1:
        return first
    return first._replace(
        claims=sum(each.claims for each in shards),
        drain_number=0,
        checkpoints=_reached_by_all(shards),
        parked=sum(each.parked for each in shards),
        due=any(each.due for each in shards),
    )


def _reached_by_all(shards: Sequence[ChangeStatus]) -> dict[str, Checkpoint]:
    found: dict[str, Checkpoint] = {}
    for phase, of_first in shards[0].checkpoints.items():
        last = [Checkpoint(each.drain_number, of_first.fingerprint) for each in shards]
        reached = [each.checkpoints.get(phase) for each in shards]
        found[phase] = Checkpoint(0 if reached == last else -1, of_first.fingerprint)
    return found


def _from_log(control: str, tables: Collection[str], using: str) -> str:
    """The entries of the log that concern a view, from FROM on; the parameters are its tables."""
    tracked, table = map(connections[using].ops.quote_name, (TrackedTable._meta.db_table, "table"))
    log = floors_of(using).log(tables=tables)
    concerned = dialect_of(using).shares_name("log.changed", "readers.view_columns", control)
    return (
        f"FROM {log} log JOIN {tracked} readers ON readers.{table} = log.{table} "
        f"WHERE log.{table} IN ({', '.join(['%s'] * len(tables))}) AND {concerned}"
    )


def oldest_logged(tracking: Tracking, using: str) -> Combinable:
    """When the oldest entry of the log that concerns a view was logged: for queries of controls."""
    name = connections[using].ops.quote_name
    control = f"{name(ViewControl._meta.db_table)}.{name('id')}"
    tables = list(tracking.tables)
    return RawSQL(
        f"(SELECT MIN(log.logged_at) {_from_log(control, tables, using)})", tables,
        DateTimeField(),
    )  # fmt: skip


def recorded_as_unlogged(view_id: int, tracking: Tracking) -> set[str]:
    """The tables whose changes are not logged for a view, as the triggers were last found."""
    records = {each.table: each for each in TrackedTable.objects.filter(table__in=tracking.tables)}
    return {
        table
        for table, spec in tracking.tables.items()
        if not (record := records.get(table))
        or not is_tracked(record, view_id, spec, record.triggers)
    }


def unlogged_tables(trackings: Mapping[int, Tracking], using: str) -> dict[int, set[str]]:
    """The tables whose changes are not logged for each view.

    A trigger is missing, disabled, foreign or outdated. Two statements, however many views and
    tables.

    Args:
        trackings: what the views depend on, by primary keys of their controls.
        using: alias of the database.
    """
    records = {record.table: record for record in TrackedTable.objects.order_by("pk")}
    present = triggers_of(using).installed_triggers() if trackings else {}

    def logged(view: int, table: str, spec: TriggerSpec) -> bool:
        record, found = records.get(table), present.get(table, {}).values()
        return record is not None and is_tracked(record, view, spec, found)

    return {
        view: {table for table, spec in tracking.tables.items() if not logged(view, table, spec)}
        for view, tracking in trackings.items()
    }


def oldest_waiting(views: Collection[int] | None = None) -> dict[int, timedelta]:
    """The age of the oldest change in the log or in a view's queue, by the view's control.

    The number of statements does not depend on the number of views.

    Args:
        views: the primary keys of the controls whose queues are read; all by default.
    """
    ages: dict[int, timedelta] = {}

    def note(view: int, age: timedelta) -> None:
        ages[view] = max(age, ages.get(view, timedelta()))

    # The log first: an entry that is moved meanwhile is found in the queue.
    logged = read_log(_ages(Change.objects.all(), "table", "changed"))
    records = {
        record.table: record
        for record in TrackedTable.objects.filter(
            table__in={table for table, _changed, _age in logged}
        )
    }
    for table, changed, age in logged:
        for view in records[table].views_reading(changed) if table in records else ():
            note(view, age)
    queues = ViewChange.objects.all()
    of_views = _ages(queues, "view")
    for view, age in of_views if views is None else read_queues(of_views, views):
        note(view, age)
    of_shards = ShardChange.objects.all() if views is None else _of_shards(views)
    for view, age in _ages(of_shards, "shard__view"):
        note(view, age)
    return ages


def _of_shards(views: Collection[int]) -> QuerySet[ShardChange]:
    """The entries in the queues of shards of these views."""
    return ShardChange.objects.filter(shard__view__in=views)


def newest_waiting(view_id: int, tables: Collection[str]) -> timedelta | None:
    """The age of the newest change of these tables in the log, or of a view's queue; or None."""
    logged = Change.objects.filter(table__in=tables)
    queued = ViewChange.objects.filter(view=view_id)
    age = UtcNow() - Max("logged_at")
    kinds = (logged, queued, _of_shards([view_id]))
    newest = [rows.order_by().values("table").values_list(age) for rows in kinds]
    ages = [*read_log(newest[0], tables), *read_queues(newest[1], [view_id]), *newest[2]]
    return min((each for (each,) in ages), default=None)


def waiting_tables(view_id: int, tables: Collection[str]) -> set[str]:
    """The tables that have changes in the log or in a view's queue."""
    logged = Change.objects.filter(table__in=tables)
    queued = ViewChange.objects.filter(table__in=tables, view=view_id)
    kinds = (logged, queued, _of_shards([view_id]).filter(table__in=tables))
    names = [rows.order_by().values_list("table").distinct() for rows in kinds]
    found = [*read_log(names[0], tables), *read_queues(names[1], [view_id]), *names[2]]
    return {table for (table,) in found}


def _ages(rows: QuerySet[Any], *by: str) -> QuerySet[Any, tuple[Any, ...]]:
    """The age of the oldest row of each group, after the group's common value."""
    return rows.order_by().values(*by).values_list(*by, UtcNow() - Min("logged_at"))


def count_waiting() -> dict[int, int]:
    """How many changes are in the log and in a view's queue, by the view's control.

    An entry that may concern any key counts as one.
    """
    counts = Counter[int]()
    logged = read_log(_counted(Change.objects.all(), "table", "changed"))
    tables = {table for table, _changed, _count in logged}
    records = {each.table: each for each in TrackedTable.objects.filter(table__in=tables)}
    for table, changed, count in logged:
        for view in records[table].views_reading(changed) if table in records else ():
            counts[view] += count
    for view, count in _counted(ViewChange.objects.all(), "view"):
        counts[view] += count
    # Each shard has an entry of its own for a change.
    of_shards = Counter[int]()
    for view, _shard, count in _counted(ShardChange.objects.all(), "shard__view", "shard"):
        of_shards[view] = max(count, of_shards[view])
    return counts + of_shards


def _counted(rows: QuerySet[Any], *by: str) -> QuerySet[Any, tuple[Any, ...]]:
    """How many changes the rows of each group have, after the group's common value."""
    grouped: QuerySet[Any, Any] = rows.order_by().values(*by)
    grouped = grouped.annotate(changes=Sum(Greatest("count", 1)))
    return grouped.values_list(*by, "changes")
