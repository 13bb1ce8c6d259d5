"""How many rows the tables of the views have, for all of them in a few statements."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import connections

from ..definition import ViewDefinition
from .databases import alias

__all__ = ["RowCount", "count_rows"]

WORTH_COUNTING = 100_000  # rows; larger tables are taken at their database's own estimate
AT_ONCE = 500  # tables counted in one statement; PostgreSQL allows 1,664 columns


class RowCount(NamedTuple):
    """A number of rows, and whether it was counted or is the database's own estimate."""

    rows: int
    exact: bool


def count_rows(definitions: Iterable[ViewDefinition]) -> dict[str, RowCount]:
    """The rows of each view's table, by label; views whose table is not there are left out."""
    tables = {each.label: each.model._meta.db_table for each in definitions}
    wanted = set(tables.values())
    counts = {name: RowCount(rows, False) for name, rows in _estimates() if name in wanted}
    counts |= _counted(name for name, count in counts.items() if count.rows < WORTH_COUNTING)
    return {label: counts[name] for label, name in tables.items() if name in counts}


def _estimates() -> list[tuple[str, int]]:
    """The tables, and what the database takes their rows to be: -1 where it has no idea."""
    connection = connections[alias()]
    with connection.cursor() as cursor:
        if connection.vendor not in _ESTIMATES:
            return [(name, -1) for name in connection.introspection.table_names(cursor)]
        cursor.execute(_ESTIMATES[connection.vendor])
        return [(name, int(rows)) for name, rows in cursor.fetchall()]


_ESTIMATES = {
    "postgresql": "SELECT relname, reltuples FROM pg_class "
    "WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)",
    "mysql": "SELECT table_name, coalesce(table_rows, -1) FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'",
}


def _counted(tables: Iterable[str]) -> dict[str, RowCount]:
    connection: Any = connections[alias()]
    names = sorted(tables)
    counts: dict[str, RowCount] = {}
    with connection.cursor() as cursor:
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            quoted = map(connection.ops.quote_name, some)
            cursor.execute(f"SELECT {', '.join(f'(SELECT count(*) FROM {q})' for q in quoted)}")
            counts |= {
                n: RowCount(rows, True) for n, rows in zip(some, cursor.fetchone(), strict=True)
            }
    return counts
