"""How many rows the tables of the views have, for all of them in a few statements."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import connections

from ..databases import catalog_of
from ..definition import ViewDefinition
from .transactions import alias

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
    estimates = catalog_of(alias()).estimated_rows().items()
    counts = {name: RowCount(rows, False) for name, rows in estimates if name in wanted}
    counts |= _counted(name for name, count in counts.items() if count.rows < WORTH_COUNTING)
    return {label: counts[name] for label, name in tables.items() if name in counts}


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
