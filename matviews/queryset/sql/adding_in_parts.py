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


def add_in_parts(sums: GroupSums, log: str, table: str) -> tuple[int, bool, int]:
    """Entries, whether some are missing, and suspect groups, as in `Cut`."""
    tables, name = sums.tables, sums.dialect.name(table)
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(tables.drop_copy(COPY))
        cursor.execute(tables.copy_entries(COPY, sums.dialect.name(log)))
        cursor.execute(f"SELECT COUNT(*), COUNT({WEIGHT}) FROM {tables.temporary(COPY)}")
        entries, weighted = cursor.fetchone()
        suspect = 0
        if weighted:
            rows = f"(SELECT * FROM {tables.temporary(COPY)} WHERE {WEIGHT} IS NOT NULL)"
            totals = sums.totals(rows)
            changed = " OR ".join(f"{number} <> 0" for number in sums.numbers)
            given = SQL(
                f"SELECT * FROM ({totals.text}) matviews_totals WHERE {changed}", totals.params
            )
            cursor.execute(*tables.upsert(name, sums.columns, sums.key, given))
            nothing = " AND ".join(f"{number} = 0" for number in sums.numbers)
            cursor.execute(f"DELETE FROM {name} WHERE {ROWS_KEPT} = 0 AND {nothing}")
            cursor.execute(f"SELECT COUNT(*) FROM {name} WHERE {tables.suspect(sums.places)}")
            suspect = cursor.fetchone()[0]
        if entries:
            cursor.execute(tables.delete_copied(COPY, sums.dialect.name(log)))
        cursor.execute(tables.drop_copy(COPY))
    return entries, weighted < entries, suspect


def build_in_parts(sums: GroupSums, log: str, table: str) -> None:
    """Recompute the sums, as `build`."""
    tables, name = sums.tables, sums.dialect.name(table)
    totals, columns = sums.totals(), ", ".join(sums.columns)
    nothing = ", ".join(["NULL"] * len(sums.columns))
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
