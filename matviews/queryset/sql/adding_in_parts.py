"""The same as `adding`, where no statement writes to several tables: through a temporary table.

One statement copies into it what its snapshot sees: the numbers of the entries, and what the sums
gain, or what they are. All that follows goes by the copy.
"""

from collections.abc import Sequence
from typing import Any

from django.db import connections

from ...databases.base.sums import ENTRY, ROWS_KEPT, UNSURE, WEIGHT
from ...databases.keys import Key, Keys
from ...databases.sql import SQL
from .sums import GroupSums

__all__ = ["add_in_parts", "build_in_parts"]

COPY = "matviews_cut"
MISSING = "matviews_missing"  # whether an entry says that changes are missing


def add_in_parts(
    sums: GroupSums, log: str, table: str, recomputed: Keys | None
) -> tuple[int, bool, set[Key], set[Key]]:
    """Entries, whether some are missing, suspect groups and doubtful ones, as in `Cut`."""
    tables, name, own_log = sums.tables, sums.dialect.name(table), sums.dialect.name(log)
    names = [*sums.columns.all, *(each.gone for each in sums.columns.extremes)]
    names += [UNSURE] if tables.has_doubts else []
    totals = sums.totals(f"(SELECT * FROM {own_log} WHERE {WEIGHT} IS NOT NULL)")
    logged = SQL(f"({totals.text}) matviews_totals", totals.params)
    with connections[sums.dialect.using].cursor() as cursor:
        _cut(cursor, sums, log, names, sums.gained(logged, names, recomputed))
        copy = tables.temporary(COPY)
        cursor.execute(f"SELECT COUNT(*), SUM({MISSING}) FROM {copy} WHERE {ENTRY} <> 0")
        entries, missing = cursor.fetchone()
        suspect, doubtful = set[Key](), set[Key]()
        if entries or recomputed:
            suspect, doubtful = _add_copied(cursor, sums, name, recomputed)
        if entries:
            cursor.execute(tables.delete_copied(COPY, own_log))
        cursor.execute(tables.drop_copy(COPY))
    return entries, bool(missing), suspect, doubtful


def _cut(cursor: Any, sums: GroupSums, log: str, names: Sequence[str], rows: SQL) -> None:
    """Copy rows with these columns, and the numbers of the entries, all of one snapshot."""
    tables, columns = sums.tables, ", ".join(names)
    nothing = ", ".join(f"NULL AS {name}" for name in names)
    cursor.execute(tables.drop_copy(COPY))
    cursor.execute(
        f"CREATE TEMPORARY TABLE {COPY} AS SELECT {columns}, {ENTRY}, {MISSING} FROM "
        f"(SELECT {columns}, 0 AS {ENTRY}, 0 AS {MISSING} FROM ({rows.text}) matviews_rows "
        f"UNION ALL SELECT {nothing}, {tables.entry}, CASE WHEN {WEIGHT} IS NULL THEN 1 ELSE 0 END "
        f"FROM {sums.dialect.name(log)}) matviews_both",
        rows.params,
    )


def _add_copied(
    cursor: Any, sums: GroupSums, name: str, recomputed: Keys | None
) -> tuple[set[Key], set[Key]]:
    """Add the rows that were copied; the suspect groups and the doubtful ones."""
    tables, doubtful = sums.tables, set[Key]()
    rows = f"(SELECT * FROM {tables.temporary(COPY)} WHERE {ENTRY} = 0)"
    if sums.columns.extremes:
        doubtful |= _keys(cursor, sums, tables.left(name, sums.columns, rows))
    if tables.has_doubts:
        doubtful |= _keys(cursor, sums, f"SELECT * FROM {rows} matviews_totals WHERE {UNSURE} > 0")
    if recomputed:
        among = sums.among(recomputed)
        cursor.execute(f"DELETE FROM {name} WHERE {among.text}", among.params)
    given = SQL(f"SELECT * FROM {rows} matviews_totals WHERE {sums.changed}")
    cursor.execute(*tables.upsert(name, sums.columns, given))
    nothing = " AND ".join(f"{number} = 0" for number in sums.columns.numbers)
    cursor.execute(f"DELETE FROM {name} WHERE {ROWS_KEPT} = 0 AND {nothing}")
    impossible = f"SELECT * FROM {name} WHERE {tables.suspect(sums.places)}"
    return _keys(cursor, sums, impossible), doubtful


def _keys(cursor: Any, sums: GroupSums, query: str) -> set[Key]:
    """The keys that a query finds, at most one more than a statement takes."""
    key = ", ".join(sums.exact_key)
    limit = sums.dialect.max_keys + 1
    cursor.execute(f"SELECT {key} FROM ({query}) matviews_found LIMIT {limit}")
    return set(cursor.fetchall())


def build_in_parts(sums: GroupSums, log: str, table: str) -> None:
    """Recompute the sums, as `build`."""
    tables, name = sums.tables, sums.dialect.name(table)
    columns = ", ".join(sums.columns.all)
    with connections[sums.dialect.using].cursor() as cursor:
        _cut(cursor, sums, log, sums.columns.all, sums.totals())
        cursor.execute(f"DELETE FROM {name}")
        cursor.execute(
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {tables.temporary(COPY)} "
            f"WHERE {ENTRY} = 0"
        )
        cursor.execute(tables.delete_copied(COPY, sums.dialect.name(log)))
        cursor.execute(tables.drop_copy(COPY))
