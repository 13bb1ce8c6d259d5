"""Which schedules on change have changes to follow: one statement for all views.

It does not read the queues of other views, so what these leave waiting costs it nothing, and of the
log only the oldest entries.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections

from ..databases import clock, dialect_of
from ..models import (
    Change,
    ParkedKey,
    Refresh,
    RefreshSchedule,
    TrackedTable,
    ViewChange,
    ViewControl,
    ViewShard,
)
from ..states import RefreshState

__all__ = ["Followed", "followed_changes"]

#: Entries of the log that are read. If there are more, it is to be moved first.
MAX_READ = 1_000


class Followed(NamedTuple):
    """What is pending and what is running, as one statement has seen it."""

    #: The schedules on change whose views may have changes to process, by primary key: whether some
    #: of the changes wait to be drained. If not, only some phases have them left to process, or
    #: there are parked keys to try again.
    pending: dict[int, bool]
    #: The labels of the views with an open refresh that may go on.
    running: frozenset[str]
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
        pending={schedule: bool(waiting) for schedule, waiting, _label in rows if schedule},
        running=frozenset(label for _schedule, _waiting, label in rows if label),
        is_long=any(not (schedule or label) for schedule, _waiting, label in rows),
    )


@lru_cache(maxsize=8)
def _statement(using: str) -> str:
    """The statement; its parameters are those of `_drained`, the time, and twice that in UTC."""
    quote = connections[using].ops.quote_name
    models = (ViewShard, ViewChange, ParkedKey, RefreshSchedule, ViewControl, Refresh, Change)
    shard, queue, parked, schedule, control, refresh, log = (
        quote(model._meta.db_table) for model in models
    )
    (drained, _params), table = _drained(using), quote("table")
    goes_on = (
        "control.enabled AND NOT control.paused AND control.suspended_at IS NULL "
        "AND (control.retry_at IS NULL OR control.retry_at <= %s)"
    )
    return (
        f"SELECT schedule.id, MAX(pending.waiting), '' FROM ("
        f"{_logged(using)} "
        f"UNION ALL SELECT followed.view_id, 1 FROM {schedule} followed "
        f"WHERE followed.on_change AND followed.enabled "
        f"AND EXISTS (SELECT 1 FROM {queue} queued WHERE queued.view_id = followed.view_id) "
        f"UNION ALL SELECT drained.view_id, 0 FROM ({drained}) drained "
        f"UNION ALL SELECT shard.view_id, 0 FROM {parked} parked "
        f"JOIN {shard} shard ON shard.id = parked.shard_id WHERE parked.retry_at <= %s"
        f") pending "
        f"JOIN {schedule} schedule ON schedule.view_id = pending.view_id "
        f"AND schedule.on_change AND schedule.enabled "
        f"JOIN {control} control ON control.id = pending.view_id AND {goes_on} "
        f"WHERE NOT EXISTS (SELECT 1 FROM {refresh} refresh WHERE refresh.view_id = control.id "
        f"AND refresh.state = '{RefreshState.OPEN.value}') "
        f"GROUP BY schedule.id "
        f"UNION ALL SELECT 0, 0, control.label FROM {refresh} refresh "
        f"JOIN {control} control ON control.id = refresh.view_id AND {goes_on} "
        f"WHERE refresh.state = '{RefreshState.OPEN.value}' "
        f"UNION ALL SELECT 0, 0, '' FROM "
        f"(SELECT {table} FROM {log} ORDER BY id LIMIT 1 OFFSET {MAX_READ}) further"
    )


def _logged(using: str) -> str:
    """The views that need one of the oldest entries of the log."""
    quote, dialect = connections[using].ops.quote_name, dialect_of(using)
    table, log = quote("table"), quote(Change._meta.db_table)
    views, view = dialect.numbers_in("tracked.views")
    concerned = dialect.shares_name("log.changed", "tracked.view_columns", view)
    return (
        f"SELECT {view} AS view_id, 1 AS waiting "
        f"FROM (SELECT {table}, changed FROM {log} ORDER BY id LIMIT {MAX_READ}) log "
        f"JOIN {quote(TrackedTable._meta.db_table)} tracked ON tracked.{table} = log.{table} "
        f"{views} WHERE {concerned}"
    )


@lru_cache(maxsize=8)
def _drained(using: str) -> tuple[str, tuple[Any, ...]]:
    """The views with drained changes that some phase has yet to process."""
    shards = ViewShard.objects.using(using).exclude(pending=[]).order_by().values("view_id")
    sql, params = shards.query.get_compiler(using).as_sql()
    return sql, params
