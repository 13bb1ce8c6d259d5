"""Adding logged values to the sums of an additive view, and recomputing sums.

Each entry that is committed and visible is counted once: it is deleted in the transaction that adds
it. Where sums are recomputed, of some groups or of all, the very same snapshot has the rows of the
source and the entries that are deleted. What commits later stays in the log. No number or time of
an entry is ever compared: entries do not commit in their order.
"""

import json
from collections.abc import Collection
from typing import NamedTuple

from django.db import connections

from ...databases.base.sums import GONE, ROWS_KEPT, WEIGHT
from ...databases.keys import Key, from_json
from ...databases.sql import SQL
from .adding_in_parts import add_in_parts, build_in_parts
from .sums import GroupSums

__all__ = ["Cut", "add", "build", "count_differing", "count_rows"]

TOTALS, ADDED = "matviews_totals", "matviews_added"  # parts of the statement that adds


class Cut(NamedTuple):
    """What adding found."""

    #: How many entries were added.
    entries: int
    #: Whether changes are missing in the log.
    incomplete: bool
    #: Groups with sums that cannot be right.
    suspect: set[Key]
    #: Groups of which only the source knows the sums: they may have lost an extreme value, or a row
    #: that was not logged.
    doubtful: set[Key]


def add(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Cut:
    """Add what has been logged to the sums. Call it in a transaction in READ COMMITTED.

    Args:
        sums: the SQL of the sums.
        log: the name of the value log.
        table: the name of the table of sums.
        recomputed: keys of groups whose sums are computed from the source, in the snapshot that
            decides what has been logged; at most as many as a statement takes.

    Raises:
        DatabaseError: a value cannot be computed or added.
    """
    keys = sums.keys(recomputed) if recomputed else None
    if not sums.dialect.has_writing_parts:
        return Cut(*add_in_parts(sums, log, table, keys))
    name, numbers = sums.dialect.name(table), sums.columns.numbers
    totals = sums.totals(f"(SELECT * FROM {GONE} WHERE {WEIGHT} IS NOT NULL)")
    added = sums.tables.upsert(name, sums.columns, sums.gained(SQL(TOTALS), sums.columns.all, keys))
    returned = ", ".join(["ctid", *sums.columns.key, *numbers])
    suspect = f"SELECT * FROM {ADDED} WHERE {sums.tables.suspect(sums.places)}"
    nothing = " AND ".join(f"{number} = 0" for number in numbers)
    with connections[sums.dialect.using].cursor() as cursor:
        if keys:
            among = sums.among(keys)
            cursor.execute(f"DELETE FROM {name} WHERE {among.text}", among.params)
        cursor.execute(
            f"WITH {GONE} AS (DELETE FROM {sums.dialect.name(log)} "
            f"RETURNING {', '.join([WEIGHT, *sums.log_columns])}), "
            f"{TOTALS} AS ({totals.text}), {ADDED} AS ({added.text} RETURNING {returned}) "
            f"SELECT (SELECT count(*) FROM {GONE}), "
            f"(SELECT count(*) FROM {GONE} WHERE {WEIGHT} IS NULL), "
            f"(SELECT array_agg(ctid::text) FROM {ADDED} WHERE {nothing}), "
            f"({_listed(sums, suspect)}), "
            f"({_listed(sums, sums.tables.left(name, sums.columns, TOTALS))})",
            (*totals.params, *added.params),
        )
        entries, incomplete, empty, *groups = cursor.fetchone()
        if empty:
            cursor.execute(f"DELETE FROM {name} WHERE ctid = ANY(%s::tid[])", [empty])
    suspects, doubtful = ({from_json(key) for key in json.loads(each or "[]")} for each in groups)
    return Cut(entries, bool(incomplete), suspects, doubtful)


def _listed(sums: GroupSums, query: str) -> str:
    """A query for the keys that another one finds, as JSON; one more than a statement takes."""
    key = ", ".join(sums.exact_key)
    return (
        f"SELECT json_agg(json_build_array({key}))::text FROM "
        f"({query} LIMIT {sums.dialect.max_keys + 1}) matviews_found"
    )


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


def count_rows(sums: GroupSums, table: str, keys: Collection[Key] = ()) -> int:
    """How many rows of the source the groups with some keys have, or all, as the sums know it."""
    among = sums.among(sums.keys(keys)) if keys else SQL("1 = 1")
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(
            f"SELECT COALESCE(SUM({ROWS_KEPT}), 0) FROM {sums.dialect.name(table)} "
            f"WHERE {among.text}",
            among.params,
        )
        return int(cursor.fetchone()[0])


def count_differing(sums: GroupSums, log: str, table: str) -> int:
    """In how many groups the sums with what is logged differ from the source.

    The arguments are those of `add`.
    """
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(*sums.differing(log, table))
        return int(cursor.fetchone()[0])
