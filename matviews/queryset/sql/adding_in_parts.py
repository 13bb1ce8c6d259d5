"""The same as `adding`, where no statement writes to several tables: through a temporary table.

One statement copies what its snapshot sees into the temporary table: entries, and when the sums are
recomputed, these too. All that follows goes by the copy.
"""

from django.db import connections

from ...databases.base.sums import ENTRY, ROWS_KEPT, WEIGHT
from ...databases.sql import SQL
from .sums import GroupSums

__all__ = ["add_in_parts", "build_in_parts"]

COPY = "matviews_cut"


def add_in_parts(sums: GroupSums, log: str, table: str) -> tuple[int, bool, int, int]:
    """Entries, whether some are missing, suspect groups and lost extremes, as in `Cut`."""
    tables, name = sums.tables, sums.dialect.name(table)
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(tables.drop_copy(COPY))
        cursor.execute(tables.copy_entries(COPY, sums.dialect.name(log)))
        cursor.execute(f"SELECT COUNT(*), COUNT({WEIGHT}) FROM {tables.temporary(COPY)}")
        entries, weighted = cursor.fetchone()
        suspect = left = 0
        if weighted:
            rows = f"(SELECT * FROM {tables.temporary(COPY)} WHERE {WEIGHT} IS NOT NULL)"
            totals = sums.totals(rows)
            if sums.columns.extremes:
                cursor.execute(tables.left(name, sums.columns, f"({totals.text})"), totals.params)
                left = cursor.fetchone()[0]
            given = SQL(
                f"SELECT * FROM ({totals.text}) matviews_totals WHERE {sums.changed}",
                totals.params,
            )
            cursor.execute(*tables.upsert(name, sums.columns, given))
            nothing = " AND ".join(f"{number} = 0" for number in sums.columns.numbers)
            cursor.execute(f"DELETE FROM {name} WHERE {ROWS_KEPT} = 0 AND {nothing}")
            cursor.execute(f"SELECT COUNT(*) FROM {name} WHERE {tables.suspect(sums.places)}")
            suspect = cursor.fetchone()[0]
        if entries:
            cursor.execute(tables.delete_copied(COPY, sums.dialect.name(log)))
        cursor.execute(tables.drop_copy(COPY))
    return entries, weighted < entries, suspect, left


def build_in_parts(sums: GroupSums, log: str, table: str) -> None:
    """Recompute the sums, as `build`."""
    tables, name = sums.tables, sums.dialect.name(table)
    totals, columns = sums.totals(), ", ".join(sums.columns.all)
    nothing = ", ".join(["NULL"] * len(sums.columns.all))
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(tables.drop_copy(COPY))
        cursor.execute(
            f"CREATE TEMPORARY TABLE {COPY} AS SELECT {columns}, {ENTRY} FROM "
            f"(SELECT {columns}, 0 AS {ENTRY} FROM ({totals.text}) matviews_totals UNION ALL "
            f"SELECT {nothing}, {tables.entry} FROM {sums.dialect.name(log)}) matviews_both",
            totals.params,
        )
        cursor.execute(f"DELETE FROM {name}")
        cursor.execute(
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {tables.temporary(COPY)} "
            f"WHERE {ENTRY} = 0"
        )
        cursor.execute(tables.delete_copied(COPY, sums.dialect.name(log)))
        cursor.execute(tables.drop_copy(COPY))
