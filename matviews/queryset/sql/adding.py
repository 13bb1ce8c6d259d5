"""Adding logged values to the sums of an additive view, and recomputing sums.

Each entry that is committed and visible is counted once: it is deleted in the transaction that adds
it. If the sums of some groups, or of all, are recomputed, the same snapshot has the rows of the
source and the entries that are deleted. Entries that commit later stay in the log. No number or
time of an entry is ever compared: entries do not commit in order.
"""

import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

from django.db import connections, transaction

from ...databases.base.sums import GONE, ROWS_KEPT, WEIGHT
from ...databases.keys import Key, Keys, from_json
from ...databases.sql import SQL
from .adding_in_parts import add_in_parts, build_in_parts
from .moved_rows import MovedRows
from .sums import GroupSums

__all__ = [
    "Cut", "add", "build", "count_differing", "count_groups", "count_moved", "count_rows",
    "lacks_values",
]  # fmt: skip

TOTALS, ADDED = "matviews_totals", "matviews_added"  # parts of the statement that adds


class Cut(NamedTuple):
    """What the addition found."""

    #: How many entries were added.
    entries: int
    #: Whether changes are missing in the log.
    incomplete: bool
    #: Groups with sums that cannot be right.
    suspect: set[Key]
    #: Groups of which only the source knows the sums: they may have lost an extreme value, or a row
    #: that was not logged.
    doubtful: set[Key]
    #: Whether rows may have moved because lookups have changed.
    moves: bool


def add(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Cut:
    """Add what has been logged to the sums. Call it in a transaction in READ COMMITTED.

    Args:
        sums: the SQL of the sums.
        log: the name of the value log of the aggregated table.
        table: the name of the table of sums.
        recomputed: keys of groups whose sums are computed from the source, in the snapshot that
            decides what has been logged; at most as many as a statement takes.

    Raises:
        DatabaseError: a value cannot be computed or added.
    """
    keys = sums.keys(recomputed) if recomputed else None
    if sums.additive.lookups and not _has_moved(sums):
        with transaction.atomic(using=sums.dialect.using):
            if found := _add(sums, log, table, keys, moves=False):
                return found
            transaction.set_rollback(True, using=sums.dialect.using)
    found = _add(sums, log, table, keys, moves=True)
    assert found is not None
    return found


def _add(sums: GroupSums, log: str, table: str, keys: Keys | None, *, moves: bool) -> Cut | None:
    """As `add`; None if the lookups of rows have changed, unless it `moves` them."""
    at_once = sums.dialect.has_writing_parts
    found = (_add_at_once if at_once else add_in_parts)(sums, log, table, keys, moves=moves)
    return found and Cut(*found, moves)


def _has_moved(sums: GroupSums) -> bool:
    """Whether the value log of a lookup has entries."""
    with connections[sums.dialect.using].cursor() as cursor:
        for log in sums.additive.lookup_logs.values():
            cursor.execute(f"SELECT 1 FROM {sums.dialect.name(log.name)} LIMIT 1")
            if cursor.fetchone():
                return True
    return False


def count_moved(sums: GroupSums, most: int) -> int:
    """How many rows of the aggregated table are behind lookups that have changed, up to `most`."""
    if not _has_moved(sums):
        return 0
    rows = MovedRows(sums.additive, sums.tables, sums.dialect)
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(rows.counted(sums.logged().lookups, most))
        return int(cursor.fetchone()[0])


def _add_at_once(
    sums: GroupSums, log: str, table: str, keys: Keys | None, *, moves: bool
) -> tuple[int, bool, set[Key], set[Key]] | None:
    """A `Cut`, by one statement; None as in `_add`."""
    name, numbers = sums.dialect.name(table), sums.columns.numbers
    gone, logs = [*_gone(sums, log, moves=moves)], sums.additive.lookup_logs
    of_lookups = {each: f"{GONE}{number}" for number, each in enumerate(logs)} if moves else {}
    totals = sums.totals(sums.logged(GONE, of_lookups))
    gained = sums.gained(SQL(TOTALS), sums.columns.all, keys)
    added = sums.tables.upsert(name, sums.columns, gained)
    returned = ", ".join(["ctid", *sums.columns.key, *numbers])
    suspect = f"SELECT * FROM {ADDED} WHERE {sums.tables.suspect(sums.places)}"
    nothing = " AND ".join(f"{number} = 0" for number in numbers)
    entries = [f"SELECT {WEIGHT} FROM {each}" for each in (GONE, *of_lookups.values())]
    moved = [f"SELECT 1 FROM {sums.dialect.name(each.name)}" for each in logs.values()]
    moved = [] if moves else [f"EXISTS ({each})" for each in moved]
    with connections[sums.dialect.using].cursor() as cursor:
        if keys:
            among = sums.among(keys)
            cursor.execute(f"DELETE FROM {name} WHERE {among.text}", among.params)
        cursor.execute(
            f"WITH {', '.join(gone)}, "
            f"{TOTALS} AS ({totals.text}), {ADDED} AS ({added.text} RETURNING {returned}) "
            f"SELECT (SELECT count(*) FROM {GONE}), "
            f"(SELECT count(*) FROM ({' UNION ALL '.join(entries)}) e WHERE {WEIGHT} IS NULL), "
            f"{' OR '.join(moved) or 'false'}, "
            f"(SELECT array_agg(ctid::text) FROM {ADDED} WHERE {nothing}), "
            f"({_listed(sums, suspect)}), "
            f"({_listed(sums, sums.tables.left(name, sums.columns, TOTALS))})",
            (*totals.params, *added.params),
        )
        count, incomplete, others_moved, empty, *groups = cursor.fetchone()
        if others_moved:
            return None
        if empty:
            cursor.execute(f"DELETE FROM {name} WHERE ctid = ANY(%s::tid[])", [empty])
    suspects, doubtful = ({from_json(key) for key in json.loads(each or "[]")} for each in groups)
    return count, bool(incomplete), suspects, doubtful


def _gone(sums: GroupSums, log: str, *, moves: bool) -> Iterator[str]:
    """The parts that delete entries; those of lookups if they `move`."""
    columns = ", ".join([WEIGHT, *sums.log_columns])
    yield f"{GONE} AS (DELETE FROM {sums.dialect.name(log)} RETURNING {columns})"
    for number, each in enumerate(sums.additive.lookup_logs.values() if moves else ()):
        columns = ", ".join([WEIGHT, *map(sums.dialect.name, each.columns)])
        name = sums.dialect.name(each.name)
        yield f"{GONE}{number} AS (DELETE FROM {name} RETURNING {columns})"


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
            f"WITH {', '.join(_gone(sums, log, moves=True))} "
            f"INSERT INTO {name} ({', '.join(sums.columns.all)}) {totals.text}",
            totals.params,
        )


def count_rows(sums: GroupSums, table: str, keys: Collection[Key] = ()) -> int:
    """How many source rows the groups with some keys have, or all groups, according to the sums."""
    among = sums.among(sums.keys(keys)) if keys else SQL("1 = 1")
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(
            f"SELECT COALESCE(SUM({ROWS_KEPT}), 0) FROM {sums.dialect.name(table)} "
            f"WHERE {among.text}",
            among.params,
        )
        return int(cursor.fetchone()[0])


def lacks_values(sums: GroupSums, log: str) -> bool:
    """Whether an entry of the value logs says that changes are missing there."""
    conditions = {log: f"{WEIGHT} IS NULL"}
    doubts = f" OR {WEIGHT} = 0" if sums.tables.has_doubts else ""  # which row was replaced?
    for each in sums.additive.lookup_logs.values():
        conditions[each.name] = f"{WEIGHT} IS NULL{doubts}"
    with connections[sums.dialect.using].cursor() as cursor:
        for name, condition in conditions.items():
            cursor.execute(f"SELECT 1 FROM {sums.dialect.name(name)} WHERE {condition} LIMIT 1")
            if cursor.fetchone():
                return True
    return False


def count_groups(sums: GroupSums) -> tuple[int, int]:
    """How many source rows have a key, and in how many groups they are now."""
    totals = sums.totals()
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(
            f"SELECT COALESCE(SUM({ROWS_KEPT}), 0), COUNT(*) FROM ({totals.text}) matviews_groups",
            totals.params,
        )
        rows, groups = cursor.fetchone()
    return int(rows), int(groups)


def count_differing(sums: GroupSums, log: str, table: str) -> int:
    """In how many groups the sums with what is logged differ from the source.

    The arguments are those of `add`.
    """
    with connections[sums.dialect.using].cursor() as cursor:
        cursor.execute(*sums.differing(log, table))
        return int(cursor.fetchone()[0])
