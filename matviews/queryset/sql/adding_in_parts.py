"""The same as `adding`, where no statement writes to several tables: through a temporary table.

One statement copies into it what its snapshot sees: the numbers of the entries, and the changes of
the sums, or the new sums. All later statements read the copy.
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
LOG = "matviews_log"  # the number of the log that an entry is of; 0 for what the sums gain
MISSING = "matviews_missing"  # whether an entry says that changes are missing


def add_in_parts(
    sums: GroupSums, log: str, table: str, recomputed: Keys | None, *, moves: bool
) -> tuple[int, bool, set[Key], set[Key]] | None:
    """A `Cut`; None if the lookups of rows have changed, unless it `moves` them."""
    tables, name = sums.tables, sums.dialect.name(table)
    names = [*sums.columns.all, *(each.gone for each in sums.columns.extremes)]
    names += [UNSURE] if tables.has_doubts else []
    totals = sums.totals(sums.logged(sums.dialect.name(log), None if moves else {}))
    logged = SQL(f"({totals.text}) matviews_totals", totals.params)
    with connections[sums.dialect.using].cursor() as cursor:
        _cut(cursor, sums, log, names, sums.gained(logged, names, recomputed))
        copy, of_own = tables.temporary(COPY), f"CASE WHEN {LOG} = 1 THEN 1 END"
        cursor.execute(
            f"SELECT COUNT(*), COUNT({of_own}), SUM({MISSING}) FROM {copy} WHERE {LOG} > 0"
        )
        entries, own, missing = cursor.fetchone()
        if entries > own and not moves:
            cursor.execute(tables.drop_copy(COPY))
            return None
        suspect, doubtful = set[Key](), set[Key]()
        if entries or recomputed:
            suspect, doubtful = _add_copied(cursor, sums, name, recomputed)
        _delete_copied(cursor, sums, log, entries=entries)
    return own, bool(missing), suspect, doubtful


def _cut(cursor: Any, sums: GroupSums, log: str, names: Sequence[str], rows: SQL) -> None:
    """Copy rows with these columns, and the numbers of the entries, all of one snapshot."""
    tables, columns = sums.tables, ", ".join(names)
    nothing = ", ".join(f"NULL AS {name}" for name in names)
    missing = f"{WEIGHT} IS NULL"
    entries = ""
    for number, each in enumerate(_logs(sums, log), 1):
        entries += (
            f" UNION ALL SELECT {nothing}, {tables.entry}, {number}, "
            f"CASE WHEN {missing} THEN 1 ELSE 0 END FROM {each}"
        )
        if tables.has_doubts:  # which row of a lookup may have been replaced is not known
            missing = f"{WEIGHT} IS NULL OR {WEIGHT} = 0"
    cursor.execute(tables.drop_copy(COPY))
    cursor.execute(
        f"CREATE TEMPORARY TABLE {COPY} AS SELECT {columns}, {ENTRY}, {LOG}, {MISSING} FROM "
        f"(SELECT {columns}, 0 AS {ENTRY}, 0 AS {LOG}, 0 AS {MISSING} "
        f"FROM ({rows.text}) matviews_rows{entries}) matviews_both",
        rows.params,
    )


def _logs(sums: GroupSums, log: str) -> list[str]:
    """The value logs, that of the aggregated table first; quoted."""
    others = (each.name for each in sums.additive.lookup_logs.values())
    return [sums.dialect.name(each) for each in (log, *others)]


def _delete_copied(cursor: Any, sums: GroupSums, log: str, *, entries: int) -> None:
    for number, each in enumerate(_logs(sums, log) if entries else (), 1):
        cursor.execute(sums.tables.delete_copied(COPY, each, f"{LOG} = {number}"))
    cursor.execute(sums.tables.drop_copy(COPY))


def _add_copied(
    cursor: Any, sums: GroupSums, name: str, recomputed: Keys | None
) -> tuple[set[Key], set[Key]]:
    """Add the rows that were copied; the suspect groups and the doubtful ones."""
    tables, doubtful = sums.tables, set[Key]()
    rows = f"(SELECT * FROM {tables.temporary(COPY)} WHERE {LOG} = 0)"
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
            f"WHERE {LOG} = 0"
        )
        _delete_copied(cursor, sums, log, entries=1)
