"""How the changes of a view stand at one moment: one statement, whatever the size of its tables."""

import json
from typing import Any, NamedTuple

from django.db import connections

from ..models import Change, Stripe, ViewChange, ViewControl, WatchedTable
from .dialects import dialect_of
from .triggers import is_watched, read_record, record_of
from .watched import Tracking

__all__ = ["Standing", "standing"]


class Standing(NamedTuple):
    """What is known of a view's changes.

    Attributes:
        view_id: primary key of its control.
        enabled: as the control has it.
        complete: whether all changes that count are logged, and none waits to be taken.
        changes, covered: as its stripe has them.
    """

    view_id: int
    enabled: bool
    complete: bool
    changes: int
    covered: dict[str, list[Any]]


def standing(label: str, tracking: Tracking, using: str) -> Standing | None:
    """Read it: the log, the queue, the triggers and what is covered; None if nothing is known.

    At one moment, for a change is in the log, then in the queue, then counted by the stripe.
    """
    connection: Any = connections[using]
    dialect = dialect_of(using)
    models = (ViewControl, Stripe, Change, ViewChange, WatchedTable)
    names = [*(model._meta.db_table for model in models), "table"]
    control, stripe, log, queue, watched, table = map(connection.ops.quote_name, names)
    tables = list(tracking.tables)
    marks = ", ".join(["%s"] * len(tables))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT control.id, control.enabled, stripe.changes, stripe.covered, "
            f"EXISTS (SELECT 1 FROM {log} WHERE {table} IN ({marks})) "
            f"OR EXISTS (SELECT 1 FROM {queue} WHERE view_id = control.id), "
            f"{record_of('watched', dialect)} FROM {control} control JOIN {stripe} stripe ON stripe.view_id = control.id "
            f"JOIN {watched} watched ON watched.{table} IN ({marks}) WHERE control.label = %s",
            [*tables, *dialect.ours, *tables, label],
        )
        rows = cursor.fetchall()
    if len(rows) != len(tables) or not rows:
        return None
    view_id, enabled, changes, covered, waiting, *_record = rows[0]
    logged = all(
        is_watched(record, view_id, tracking.tables[record.table], present)
        for record, present in (read_record(row[5:]) for row in rows)
    )
    return Standing(view_id, bool(enabled), logged and not waiting, changes, json.loads(covered))
