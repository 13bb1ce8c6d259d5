"""Which schedules on change have changes to follow: one statement for all views.

It reads only the oldest entries of the log, and not the queues of other views, so a backlog of
theirs costs it nothing.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections

from ..databases import clock, dialect_of, floors_of
from ..models import (
    ParkedKey,
    Refresh,
    RefreshSchedule,
    ShardChange,
    TrackedTable,
    ViewControl,
    ViewShard,
)
from ..states import RefreshState

__all__ = ["Followed", "PendingSchedule", "followed_changes"]

#: Entries of the log that are read. If there are more, it is to be moved first.
MAX_READ = 1_000


class PendingSchedule(NamedTuple):
    """A schedule on change whose view may have changes to process."""

    #: Whether some of the changes wait to be drained. If not, only some phases have them left to
    #: process, or there are parked keys to try again.
    waiting: bool
    #: The label of the view.
    label: str


class Followed(NamedTuple):
    """What is pending and what is running, as one statement has seen it."""

    #: By primary key of the schedule.
    pending: dict[int, PendingSchedule]
    #: The views with an open refresh that may go on: by label, the primary key of the control.
    running: dict[str, int]
    #: Whether the log has more entries than were read.
    is_long: bool


def followed_changes(using: str) -> Followed:
    """The schedules on change whose views may have changes to process.

    They are enabled, and their views are neither held nor waiting or suspended after failures, and
    have no open refresh.
    """
    connection: Any = connections[using]
    moment = connection.ops.adapt_datetimefield_value(clock.now(using))
    in_utc = datetime.fromtimestamp(clock.timestamp(using), UTC)  # as `UtcNow` has stored it
    if not connection.features.supports_timezones:
        in_utc = in_utc.replace(tzinfo=None)
    _sql, params = _drained(using)
    with connection.cursor() as cursor:
        cursor.execute(_statement(using), [*params, moment, str(in_utc), str(in_utc)])
        rows = cursor.fetchall()
    return Followed(
        pending={
            schedule: PendingSchedule(bool(waiting), label)
            for schedule, waiting, _view, label in rows
            if schedule
        },
        running={label: view for schedule, _waiting, view, label in rows if label and not schedule},
        is_long=any(not view for _schedule, _waiting, view, _label in rows),
    )


@lru_cache(maxsize=8)
def _statement(using: str) -> str:
    """The statement; its parameters are those of `_drained`, the time, and twice that in UTC."""
    quote = connections[using].ops.quote_name
    models = (ViewShard, ParkedKey, RefreshSchedule, ViewControl, Refresh, ShardChange)
    shard, parked, schedule, control, refresh, queue_of_shard = (
        quote(model._meta.db_table) for model in models
    )
    (drained, _params), floors, table = _drained(using), floors_of(using), quote("table")
    followed = f"SELECT view_id FROM {schedule} WHERE on_change AND enabled"
    log, queue = floors.log(MAX_READ + 1, alone=False), floors.queued(followed, alone=False)
    goes_on = (
        "control.enabled AND NOT control.paused AND control.suspended_at IS NULL "
        "AND (control.retry_at IS NULL OR control.retry_at <= %s)"
    )
    # Found once, and not for each view: planners take the tables of young projects for empty.
    # Databases without parts that write do so anyway, and may not know the word.
    once = "MATERIALIZED " if dialect_of(using).has_writing_parts else ""
    return (
        f"WITH {floors.part}logged AS {once}(SELECT {table}, changed FROM {log} entry "
        f"ORDER BY id LIMIT {MAX_READ + 1}), "
        f"pending AS {once}("
        f"{_logged(using)} "
        f"UNION ALL SELECT followed.view_id, 1 FROM {schedule} followed "
        f"WHERE followed.on_change AND followed.enabled "
        f"AND EXISTS (SELECT 1 FROM {queue} queued WHERE queued.view_id = followed.view_id) "
        f"UNION ALL SELECT drained.view_id, 0 FROM ({drained}) drained "
        f"UNION ALL SELECT shard.view_id, 1 FROM {queue_of_shard} queued "
        f"JOIN {shard} shard ON shard.id = queued.shard_id "
        f"UNION ALL SELECT shard.view_id, 0 FROM {parked} parked "
        f"JOIN {shard} shard ON shard.id = parked.shard_id WHERE parked.retry_at <= %s"
        f") SELECT schedule.id, MAX(pending.waiting), MAX(control.id), MAX(control.label) "
        f"FROM pending "
        f"JOIN {schedule} schedule ON schedule.view_id = pending.view_id "
        f"AND schedule.on_change AND schedule.enabled "
        f"JOIN {control} control ON control.id = pending.view_id AND {goes_on} "
        f"WHERE NOT EXISTS (SELECT 1 FROM {refresh} refresh WHERE refresh.view_id = control.id "
        f"AND refresh.state = '{RefreshState.OPEN.value}') "
        f"GROUP BY schedule.id "
        # No join: planners would begin with the views, of which most have no open refresh.
        f"UNION ALL SELECT 0, 0, refresh.view_id, (SELECT control.label FROM {control} control "
        f"WHERE control.id = refresh.view_id AND {goes_on}) "
        f"FROM {refresh} refresh WHERE refresh.state = '{RefreshState.OPEN.value}' "
        f"UNION ALL SELECT 0, 0, 0, '' FROM "
        f"(SELECT {table} FROM logged LIMIT 1 OFFSET {MAX_READ}) further"
    )


def _logged(using: str) -> str:
    """The views that need one of the entries `logged`."""
    quote, dialect = connections[using].ops.quote_name, dialect_of(using)
    table = quote("table")
    views, view = dialect.numbers_in("tracked.views")
    concerned = dialect.shares_name("log.changed", "tracked.view_columns", view)
    return (
        f"SELECT {view} AS view_id, 1 AS waiting "
        f"FROM logged log JOIN {quote(TrackedTable._meta.db_table)} tracked "
        f"ON tracked.{table} = log.{table} "
        f"{views} WHERE {concerned}"
    )


@lru_cache(maxsize=8)
def _drained(using: str) -> tuple[str, tuple[Any, ...]]:
    """The views with drained changes that some phase has yet to process."""
    shards = ViewShard.objects.using(using).exclude(pending_drains=[]).order_by().values("view_id")
    sql, params = shards.query.get_compiler(using).as_sql()
    return sql, params
