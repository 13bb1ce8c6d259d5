"""What is pending for each view, in a few statements whatever the size of its tables."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Min, QuerySet

from ..databases import triggers_of
from ..databases.clock import UtcNow
from ..databases.trigger_spec import TriggerSpec
from ..json_fields import Checkpoint
from ..models import Change, Refresh, TrackedTable, ViewChange, ViewControl, ViewShard
from ..states import RefreshState
from .tracking_spec import Tracking
from .trust import is_tracked, row_to_tracked, select_tracked

__all__ = ["ChangeStatus", "change_status", "oldest_waiting", "unlogged_tables"]


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
    #: The next three are those of the view's shard.
    claims: int
    drain_number: int
    checkpoints: dict[str, Checkpoint]


def change_status(label: str, tracking: Tracking, using: str) -> ChangeStatus | None:
    """The log, queue, triggers and checkpoints of a view; None if it has no records.

    One statement, because a change is first in the log, then in the queue, then counted by the
    shard.
    """
    connection: Any = connections[using]
    dialect = triggers_of(using)
    models = (ViewControl, ViewShard, Change, ViewChange, TrackedTable, Refresh)
    names = [*(model._meta.db_table for model in models), "table"]
    control, shard, log, queue, tracked, refresh, table = map(connection.ops.quote_name, names)
    tables = list(tracking.tables)
    marks = ", ".join(["%s"] * len(tables))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT control.id, control.enabled, shard.drain_number, shard.checkpoints, "
            f"EXISTS (SELECT 1 FROM {log} WHERE {table} IN ({marks})) "
            f"OR EXISTS (SELECT 1 FROM {queue} WHERE view_id = control.id), "
            f"EXISTS (SELECT 1 FROM {refresh} WHERE view_id = control.id AND state = %s), "
            f"shard.claims, {select_tracked('tracked', dialect)} "
            f"FROM {control} control JOIN {shard} shard ON shard.view_id = control.id "
            f"JOIN {tracked} tracked ON tracked.{table} IN ({marks}) WHERE control.label = %s",
            [*tables, RefreshState.OPEN.value, *dialect.NAME_PATTERN, *tables, label],
        )
        rows = cursor.fetchall()
    if len(rows) != len(tables) or not rows:
        return None
    view_id, enabled, drain_number, checkpoints, waiting, refreshing, claims, *_record = rows[0]
    logged = all(
        is_tracked(record, view_id, tracking.tables[record.table], present)
        for record, present in (row_to_tracked(row[7:]) for row in rows)
    )
    return ChangeStatus(
        view_id=view_id,
        enabled=bool(enabled),
        complete=logged and not waiting,
        refreshing=bool(refreshing),
        claims=claims,
        drain_number=drain_number,
        checkpoints={phase: Checkpoint(*each) for phase, each in json.loads(checkpoints).items()},
    )


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


def oldest_waiting() -> dict[int, timedelta]:
    """The age of the oldest change in the log or in a view's queue, by the view's control.

    The number of statements does not depend on the number of views.
    """
    ages: dict[int, timedelta] = {}

    def note(view: int, age: timedelta) -> None:
        ages[view] = max(age, ages.get(view, timedelta()))

    # The log first: an entry that is moved meanwhile is found in the queue.
    logged = dict(_ages(Change.objects.all(), "table"))
    for record in TrackedTable.objects.filter(table__in=logged):
        for view in record.views:
            note(view, logged[record.table])
    for view, age in _ages(ViewChange.objects.all(), "view"):
        note(view, age)
    return ages


def _ages(rows: QuerySet[Any], by: str) -> QuerySet[Any, tuple[Any, timedelta]]:
    """The age of the oldest row of each group."""
    return rows.order_by().values(by).values_list(by, UtcNow() - Min("logged_at"))
