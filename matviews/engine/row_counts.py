"""Row counts of the views' tables, in a few statements for all of them.

A table that another session has locked delays them by some seconds and no longer.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from django.db import DatabaseError, connections

from ..databases import catalog_of
from ..definition import ViewDefinition
from .transactions import alias, snapshot

__all__ = ["RowCount", "count_rows"]

MAX_ROWS_COUNTED = 100_000  # estimated rows; for larger tables the database's estimate has to do
MAX_SECONDS = 2.0  # for a statement that counts, also where it waits for a lock
TABLES_PER_STATEMENT = 500  # PostgreSQL allows 1,664 columns


class RowCount(NamedTuple):
    """A number of rows, and whether it was counted or is the database's estimate."""

    rows: int
    exact: bool


def count_rows(definitions: Iterable[ViewDefinition]) -> dict[str, RowCount]:
    """The rows of each view's table, by label; views whose table is missing are left out."""
    tables = {view.label: view.model._meta.db_table for view in definitions}
    names = set(tables.values())
    estimates = catalog_of(alias()).estimated_rows().items()
    counts = {name: RowCount(max(rows, 0), False) for name, rows in estimates if name in names}
    counts |= _counted(name for name, count in counts.items() if count.rows < MAX_ROWS_COUNTED)
    return {label: counts[name] for label, name in tables.items() if name in counts}


def _counted(tables: Iterable[str]) -> dict[str, RowCount]:
    """The rows of these tables, without those that could not be counted."""
    connection: Any = connections[alias()]
    names = sorted(tables)
    counts: dict[str, RowCount] = {}
    with (
        suppress(DatabaseError),
        snapshot(MAX_SECONDS, durable=False),
        connection.cursor() as cursor,
    ):
        for start in range(0, len(names), TABLES_PER_STATEMENT):
            batch = names[start : start + TABLES_PER_STATEMENT]
            quoted = map(connection.ops.quote_name, batch)
            cursor.execute(f"SELECT {', '.join(f'(SELECT count(*) FROM {q})' for q in quoted)}")
            counts |= {
                n: RowCount(rows, True) for n, rows in zip(batch, cursor.fetchone(), strict=True)
            }
    return counts
