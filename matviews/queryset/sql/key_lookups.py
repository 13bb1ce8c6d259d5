"""Looking up keys that were given: whether they exist, how they are spelled, which are equal."""

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, connections, transaction

from ...databases import ROWS, errors_of
from ...databases.fields import TEXT, WHOLE
from ...databases.keys import Key, Keys
from ...databases.sql import SQL, equal, joined, qualified
from .statements import KEYS, Statements

__all__ = ["equal_keys", "may_differ_in_spelling", "spellings", "unknown"]

FOUND = "matviews_found"  # alias of the keys that the view and the source have
OTHERS = "matviews_others"  # alias of the keys with which keys are compared


def unknown(statements: Statements, keys: Sequence[Key]) -> list[Key]:
    """The keys that neither the view nor the source has; as many as one statement takes."""
    within = Keys(tuple(keys), tuple(statements.kinds))
    known, columns = _known(statements, within), qualified(FOUND, statements.key)
    among = [statements.dialect.among(columns, Keys((key,), within.kinds)) for key in keys]
    found = joined(
        ", ", (SQL(f"EXISTS (SELECT 1 FROM {FOUND} WHERE {e.text})", e.params) for e in among)
    )
    row = statements.row(
        SQL(f"WITH {FOUND} AS ({known.text}) SELECT {found.text}", (*known.params, *found.params))
    )
    return [key for key, is_known in zip(keys, row or (), strict=True) if not is_known]


def spellings(statements: Statements, keys: Sequence[Key]) -> set[Key]:
    """These keys as the view and the source spell them; as many as one statement takes."""
    known = _known(statements, Keys(tuple(keys), tuple(statements.kinds)))
    query = f"SELECT {', '.join(statements.exact)} FROM ({known.text}) {KEYS}"
    return set(_fetched(statements, SQL(query, known.params)))


def may_differ_in_spelling(statements: Statements) -> bool:
    """Whether two keys may be equal to the database that differ in Python."""
    dialect, fields = statements.dialect, statements.key_fields
    return bool(statements.exact) and not all(
        kind == WHOLE or (kind == TEXT and not dialect.has_ci_collation(field))
        for kind, field in zip(statements.kinds, fields, strict=True)
    )


def equal_keys(
    statements: Statements, keys: Sequence[Key], others: Sequence[Key]
) -> dict[Key, Key]:
    """By key, the first of some other keys that is equal to it, however it is spelled.

    Two keys are equal if the database says so of the columns of the view's key. Keys that equal
    none of the others are left out. No statement is needed where a key has only one spelling.
    """
    listed = set(others)
    found = {key: key for key in keys if key in listed}
    if not (keys and others and may_differ_in_spelling(statements)):
        return found
    size, using = statements.dialect.max_keys, statements.dialect.using
    try:
        with transaction.atomic(using=using):
            for first in reversed(range(0, len(others), size)):
                for start in range(0, len(keys), size):
                    pairs = _equal_pairs(
                        statements, keys[start : start + size], others[first : first + size]
                    )
                    found |= {keys[start + one]: others[first + other] for one, other in pairs}
    except DatabaseError as error:
        # A key that the columns cannot hold is equal to none.
        if not errors_of(using).is_data_error(error):
            raise
    return found


def _equal_pairs(
    statements: Statements, keys: Sequence[Key], others: Sequence[Key]
) -> list[tuple[int, int]]:
    """The places of equal keys, the first of several others last."""
    dialect, table, fields = statements.dialect, statements.table, statements.key_fields
    one, other = (
        dialect.numbered(table, fields, Keys(tuple(some), tuple(statements.kinds)))
        for some in (keys, others)
    )
    same = equal(qualified(KEYS, statements.key), qualified(OTHERS, statements.key))
    return _fetched(
        statements,
        SQL(
            f"SELECT {KEYS}.place, {OTHERS}.place FROM ({one.text}) {KEYS} "
            f"JOIN ({other.text}) {OTHERS} ON {same} ORDER BY {OTHERS}.place DESC",
            (*one.params, *other.params),
        ),
    )


def _known(statements: Statements, within: Keys) -> SQL:
    """A query for those of some keys that the view and the source have."""
    of_view, of_source = joined(" AND ", statements.of_view(within)), statements.reader.keys(within)
    names = ", ".join(statements.key)
    return SQL(
        f"SELECT {names} FROM {statements.table} WHERE {of_view.text} "
        f"UNION ALL SELECT {names} FROM ({of_source.text}) {ROWS}",
        (*of_view.params, *of_source.params),
    )


def _fetched(statements: Statements, query: SQL) -> list[Any]:
    with connections[statements.dialect.using].cursor() as cursor:
        cursor.execute(*query)
        return list(cursor.fetchall())
