"""Which schedules on change have changes to follow: one statement for all views.

It does not read the queues of other views, so what these leave waiting costs it nothing, and of the
log only the oldest entries.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

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
from .concerned import concerned_sql

__all__ = ["LONG_LOG", "followed_changes"]

#: Entries of the log that are read. If there are more, it is to be moved first.
MAX_READ = 1_000
#: Stands for a schedule in the answer if the log is longer.
LONG_LOG = 0


def followed_changes(using: str) -> dict[int, bool]:
    """The schedules on change whose views may have changes to process, by primary key.

    They are enabled, and their views are neither held nor waiting or suspended after failures, and
    have no open refresh. `LONG_LOG` is one of the keys if the log has more entries than are read.

    Returns:
        Whether some of the changes wait to be drained. If not, only some phases have them left to
        process, or there are parked keys to try again.
    """
    connection: Any = connections[using]
    moment = connection.ops.adapt_datetimefield_value(clock.now(using))
    in_utc = datetime.fromtimestamp(clock.timestamp(using), UTC)  # as `UtcNow` has stored it
    if not connection.features.supports_timezones:
        in_utc = in_utc.replace(tzinfo=None)
    _sql, params = _drained(using)
    with connection.cursor() as cursor:
        cursor.execute(_statement(using), [*params, moment, str(in_utc)])
        return {pk: bool(waiting) for pk, waiting in cursor.fetchall()}


@lru_cache(maxsize=8)
def _statement(using: str) -> str:
    """The statement; its parameters are those of `_drained`, the time, and the time in UTC."""
    quote = connections[using].ops.quote_name
    models = (ViewShard, ViewChange, ParkedKey, RefreshSchedule, ViewControl, Refresh, Change)
    shard, queue, parked, schedule, control, refresh, log = (
        quote(model._meta.db_table) for model in models
    )
    (drained, _params), table = _drained(using), quote("table")
    return (
        f"SELECT schedule.id, MAX(pending.waiting) FROM ("
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
        f"JOIN {control} control ON control.id = pending.view_id "
        f"AND control.enabled AND NOT control.paused AND control.suspended_at IS NULL "
        f"AND (control.retry_at IS NULL OR control.retry_at <= %s) "
        f"WHERE NOT EXISTS (SELECT 1 FROM {refresh} refresh WHERE refresh.view_id = control.id "
        f"AND refresh.state = '{RefreshState.OPEN.value}') "
        f"GROUP BY schedule.id "
        f"UNION ALL SELECT {LONG_LOG}, 0 FROM "
        f"(SELECT {table} FROM {log} ORDER BY id LIMIT 1 OFFSET {MAX_READ}) further"
    )


def _logged(using: str) -> str:
    """The views that need one of the oldest entries of the log."""
    quote = connections[using].ops.quote_name
    table, log = quote("table"), quote(Change._meta.db_table)
    views, view = dialect_of(using).numbers_in("tracked.views")
    concerned = concerned_sql("tracked", view, using)
    return (
        f"SELECT {view} AS view_id, 1 AS waiting "
        f"FROM (SELECT {table}, changed, by_batch FROM {log} ORDER BY id LIMIT {MAX_READ}) log "
        f"JOIN {quote(TrackedTable._meta.db_table)} tracked ON tracked.{table} = log.{table} "
        f"{views} WHERE {concerned}"
    )


@lru_cache(maxsize=8)
def _drained(using: str) -> tuple[str, tuple[Any, ...]]:
    """The views with drained changes that some phase has yet to process."""
    shards = ViewShard.objects.using(using).exclude(pending=[]).order_by().values("view_id")
    sql, params = shards.query.get_compiler(using).as_sql()
    return sql, params
