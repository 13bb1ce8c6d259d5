"""Splitting the keys of a view into ranges, one for each shard.

The ranges `(low, high]` follow each other, the first open below and the last above, so each key is
in exactly one. The database orders keys as it does in windows: by the columns of the view's key, or
those of the source, which have the same type and collation (`Plan.checked`).
"""

from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

from django.db import connections

from ..databases import catalog_of
from ..databases.keys import Key, Keys, Range
from ..databases.sql import SQL, joined, qualified
from .plan import Plan
from .sql.statements import KEYS
from .strategy.sharding import sharding_obstacle

__all__ = ["Ranges", "cut_ranges", "key_order", "keys_within", "known_rows", "one_shard_reason"]

MIN_ROWS = 1_000  # of the table with the keys, for each shard
CERTAIN_ROWS = 1_000_000  # fewer are counted: the statistics of a table may be old or missing


def one_shard_reason(plan: Plan) -> str:
    """Why a view has one shard, whatever was asked for; "" if it may have several."""
    plan = plan.checked()
    return sharding_obstacle(plan.source, plan.inspection)


def key_order(plan: Plan) -> list[str]:
    """What the order of keys depends on: the kind and collation of each part."""
    dialect = plan.dialect
    return [
        f"{dialect.kind_of(field)} {field.db_parameters(dialect.connection).get('collation') or ''}"
        for field in plan.key_fields
    ]


class Ranges(NamedTuple):
    """Ranges of keys, one for each shard."""

    ranges: list[Range]
    #: The rows of the table that has the keys, about; or more, by the statistics.
    rows: int


def cut_ranges(plan: Plan, count: int) -> Ranges:
    """Ranges with about as many rows of the table that has the keys, one for each shard.

    Only one, with all keys, if the table has too few rows.

    Args:
        plan: that of a view without `one_shard_reason`.
        count: how many shards.
    """
    known = known_rows(plan)
    # Rows without a key are in no range, and statistics do not say how many there are.
    is_certain = known >= CERTAIN_ROWS and not any(field.null for field in plan.strategy.fields)
    keys = known if is_certain else _count_keys(plan)
    rows = max(keys, known)
    if keys < MIN_ROWS * count:
        return Ranges([(None, None)], rows)
    cuts = [_key_at(plan, keys * number // count) for number in range(1, count)]
    if None in cuts:  # the statistics were wrong, or rows have been deleted
        return Ranges([(None, None)], rows)
    return Ranges(list(pairwise([None, *cuts, None])), rows)


def known_rows(plan: Plan) -> int:
    """How many rows the table that has the keys has, by the statistics of the database."""
    model = plan.strategy.model
    estimated = catalog_of(plan.dialect.using).estimated_rows()
    return estimated.get(model._meta.db_table, 0) if model else 0


def _count_keys(plan: Plan) -> int:
    """How many rows have a key."""
    table, _columns, known = _keyed(plan)
    (count,) = plan.statements().row(SQL(f"SELECT COUNT(*) FROM {table} WHERE {known.text}")) or [0]
    return int(count)


def _keyed(plan: Plan) -> tuple[str, str, SQL]:
    """The table with the keys, the columns of these, and a condition: that a row has one."""
    dialect, strategy = plan.dialect, plan.strategy
    assert strategy.model is not None
    names = dialect.names(strategy.fields)
    known = joined(" AND ", [SQL(f"{name} IS NOT NULL") for name in names])
    return dialect.name(strategy.model._meta.db_table), ", ".join(names), known


def _key_at(plan: Plan, place: int) -> Key | None:
    """The key in the row at a place, in the order of keys; None if there are fewer rows."""
    statements = plan.statements()
    table, columns, known = _keyed(plan)
    row = statements.row(
        SQL(
            f"WITH {KEYS} ({', '.join(statements.key)}) AS (SELECT {columns} FROM {table} "
            f"WHERE {known.text} ORDER BY {columns} LIMIT 1 OFFSET %s) "
            f"SELECT {', '.join(statements.exact)} FROM {KEYS}",
            (place,),
        )
    )
    return None if row is None else tuple(row)


def keys_within(plan: Plan, keys: Collection[Key], within: Range) -> set[Key]:
    """The keys that are in a range, to the columns of the view's key.

    Raises:
        DatabaseError: these columns cannot hold one of the keys.
    """
    if within == (None, None):
        return set(keys)
    statements, dialect = plan.statements(), plan.dialect
    listed, found = list(keys), set[Key]()
    columns = qualified(KEYS, statements.key)
    inside = dialect.selects(columns, within, statements.key_fields)
    for start in range(0, len(listed), dialect.max_keys):
        some = listed[start : start + dialect.max_keys]
        numbered = dialect.numbered(
            statements.table, statements.key_fields, Keys(tuple(some), tuple(statements.kinds))
        )
        with connections[dialect.using].cursor() as cursor:
            cursor.execute(
                f"SELECT {KEYS}.place FROM ({numbered.text}) {KEYS} WHERE {inside.text}",
                (*numbered.params, *inside.params),
            )
            found |= {some[place] for (place,) in cursor.fetchall()}
    return found
