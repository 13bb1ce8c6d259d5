"""How the changes of views stand, in a few statements, whatever the size of their tables."""

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
from .triggers import is_tracked, read_record, record_of

__all__ = ["ChangeStatus", "change_status", "oldest_waiting", "unlogged_tables"]


class ChangeStatus(NamedTuple):
    """What is known of a view's changes.

    Attributes:
        view_id: primary key of its control.
        enabled: as the control has it.
        complete: whether all changes that count are logged, and none waits to be taken.
        refreshing: whether a refresh of it is open.
        claims, drain_number, checkpoints: as its shard has them.
    """

    view_id: int
    enabled: bool
    complete: bool
    refreshing: bool
    claims: int
    drain_number: int
    checkpoints: dict[str, Checkpoint]


def change_status(label: str, tracking: Tracking, using: str) -> ChangeStatus | None:
    """Read it: the log, the queue, the triggers and the checkpoints; None if nothing is known.

    At one moment, for a change is in the log, then in the queue, then counted by the shard.
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
            f"EXISTS (SELECT 1 FROM {refresh} WHERE view_id = control.id AND state = %s), shard.claims, "
            f"{record_of('tracked', dialect)} FROM {control} control JOIN {shard} shard ON shard.view_id = control.id "
            f"JOIN {tracked} tracked ON tracked.{table} IN ({marks}) WHERE control.label = %s",
            [*tables, RefreshState.OPEN.value, *dialect.ours, *tables, label],
        )
        rows = cursor.fetchall()
    if len(rows) != len(tables) or not rows:
        return None
    view_id, enabled, drain_number, checkpoints, waiting, refreshing, claims, *_record = rows[0]
    logged = all(
        is_tracked(record, view_id, tracking.tables[record.table], present)
        for record, present in (read_record(row[7:]) for row in rows)
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
    """The tables whose changes should be logged for a view and are not: triggers are missing, switched off,
    made by somebody else, or of another version.

    Two statements, however many views and tables.

    Args:
        trackings: on what the views depend, by primary keys of their controls.
        using: alias of the database.
    """
    records = {each.table: each for each in TrackedTable.objects.order_by("pk")}
    present = triggers_of(using).present() if trackings else {}

    def logged(view: int, table: str, spec: TriggerSpec) -> bool:
        record, found = records.get(table), present.get(table, {}).values()
        return record is not None and is_tracked(record, view, spec, found)

    return {
        view: {table for table, spec in each.tables.items() if not logged(view, table, spec)}
        for view, each in trackings.items()
    }


def oldest_waiting() -> dict[int, timedelta]:
    """How long ago the oldest change was logged that waits in the log or in a view's queue.

    By primary key of the view's control. The number of statements does not depend on that of the views.
    """
    ages: dict[int, timedelta] = {}

    def note(view: int, age: timedelta) -> None:
        ages[view] = max(age, ages.get(view, timedelta()))

    # The log first: what is moved meanwhile is in the queue by then.
    logged = dict(_ages(Change.objects.all(), "table"))
    for record in TrackedTable.objects.filter(table__in=logged):
        for view in record.views:
            note(view, logged[record.table])
    for view, age in _ages(ViewChange.objects.all(), "view"):
        note(view, age)
    return ages


def _ages(rows: QuerySet[Any], by: str) -> QuerySet[Any, tuple[Any, timedelta]]:
    """How long ago the oldest of rows was logged, by what they belong to."""
    return rows.order_by().values(by).values_list(by, UtcNow() - Min("logged_at"))
