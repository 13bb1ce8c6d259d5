"""Adding logged values to the sums of an additive view, and recomputing the sums.

Each entry that is committed and visible is counted once: it is deleted in the transaction that adds
it, and recomputing deletes those entries that the very same snapshot has seen. What commits
later stays in the log. No number or time of an entry is ever compared: entries do not commit in
their order.
"""

from typing import NamedTuple

from django.db import connections

from ...databases.base.sums import GONE, WEIGHT
from ...databases.sql import SQL
from .adding_in_parts import add_in_parts, build_in_parts
from .sums import GroupSums

__all__ = ["Cut", "add", "build", "count_differing"]


class Cut(NamedTuple):
    """What adding found."""

    #: How many entries were added.
    entries: int
    #: Whether changes are missing in the log.
    incomplete: bool
    #: How many groups have sums that cannot be right.
    suspect: int
    #: How many groups may have lost an extreme value, which only the source knows then.
    left: int


def add(sums: GroupSums, log: str, table: str) -> Cut:
    """Add what has been logged to the sums. Call it in a transaction in READ COMMITTED.

    Args:
        sums: the SQL of the sums.
        log: the name of the value log.
        table: the name of the table of sums.

    Raises:
        DatabaseError: a value cannot be computed or added.
    """
    if not sums.dialect.has_writing_parts:
        return Cut(*add_in_parts(sums, log, table))
    totals = sums.totals(f"(SELECT * FROM {GONE} WHERE {WEIGHT} IS NOT NULL)")
    names = ", ".join([WEIGHT, *sums.log_columns])
    given = SQL(f"SELECT * FROM matviews_totals WHERE {sums.changed}")
    added = sums.tables.upsert(sums.dialect.name(table), sums.columns, given)
    left = sums.tables.left(sums.dialect.name(table), sums.columns, "matviews_totals")
    numbers = sums.columns.numbers
    nothing = " AND ".join(f"{name} = 0" for name in numbers)
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(
            f"WITH {GONE} AS (DELETE FROM {sums.dialect.name(log)} RETURNING {names}), "
            f"matviews_totals AS ({totals.text}), "
            f"matviews_added AS ({added.text} RETURNING ctid, {', '.join(numbers)}) "
            f"SELECT (SELECT count(*) FROM {GONE}), "
            f"(SELECT count(*) FROM {GONE} WHERE {WEIGHT} IS NULL), "
            f"count(*) FILTER (WHERE {sums.tables.suspect(sums.places)}), "
            f"array_agg(ctid::text) FILTER (WHERE {nothing}), ({left}) FROM matviews_added",
            (*totals.params, *added.params),
        )
        entries, incomplete, suspect, empty, lost = cursor.fetchone()
        if empty:
            cursor.execute(
                f"DELETE FROM {sums.dialect.name(table)} WHERE ctid = ANY(%s::tid[])", [empty]
            )
    return Cut(entries, bool(incomplete), suspect, lost)


def build(sums: GroupSums, log: str, table: str) -> None:
    """Compute the sums from the source, and delete the entries that they include.

    The arguments are those of `add`.

    Raises:
        DatabaseError: the source cannot be computed.
    """
    if not sums.dialect.has_writing_parts:
        build_in_parts(sums, log, table)
        return
    totals, name = sums.totals(), sums.dialect.name(table)
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(f"DELETE FROM {name}")
        cursor.execute(
            f"WITH {GONE} AS (DELETE FROM {sums.dialect.name(log)}) "
            f"INSERT INTO {name} ({', '.join(sums.columns.all)}) {totals.text}",
            totals.params,
        )


def count_differing(sums: GroupSums, log: str, table: str) -> int:
    """In how many groups the sums with what is logged differ from the source.

    The arguments are those of `add`.
    """
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(*sums.differing(log, table))
        return int(cursor.fetchone()[0])
