"""How key columns are stored, according to the models and in the database."""

from collections.abc import Iterable, Sequence
from typing import Any

from ...databases import Dialect, dialect_of
from ...databases.fields import AnyField, family
from ...databases.keys import Key
from ...databases.sql import qualified

__all__ = ["as_exact", "exact_values", "same_type"]


def same_type(one: AnyField, other: AnyField, using: str) -> bool:
    """Whether two fields store values alike, so that they are equal and ordered alike."""
    dialect = dialect_of(using)
    first, second = ((family(field), *_stored(field, dialect)) for field in (one, other))
    return first == second


def _stored(field: AnyField, dialect: Dialect) -> tuple[str, str]:
    """The kind of a field's column and its collation, "" for the database's."""
    return dialect.kind_of(field), field.db_parameters(dialect.connection).get("collation") or ""


def exact_values(
    fields: Sequence[AnyField], table: str, dialect: Dialect, kinds: Sequence[str] = ()
) -> list[str]:
    """The columns of fields as exact values; empty if one of them has no exact form.

    `kinds` are the kinds of the columns, if they may differ from the model's.
    """
    kinds = kinds or [dialect.kind_of(field) for field in fields]
    columns = qualified(table, dialect.names(fields))
    found = [dialect.exact(*pair) for pair in zip(kinds, columns, strict=True)]
    return [value for value in found if value] if all(found) else []


def as_exact(
    values: Iterable[Sequence[Any]], fields: Sequence[AnyField], dialect: Dialect
) -> set[Key]:
    """Keys, or parts of keys, that triggers logged, in the form of `exact_values`."""
    kinds = [dialect.kind_of(field) for field in fields]
    return {tuple(map(dialect.as_exact, kinds, value)) for value in values}
