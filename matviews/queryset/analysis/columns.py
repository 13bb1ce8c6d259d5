"""How the columns of keys are stored, as the models have it and as the database has."""

from collections.abc import Iterable, Sequence
from typing import Any

from ...databases import Dialect, dialect_of
from ...databases.fields import AnyField, family
from ...databases.keys import Key
from ...databases.sql import qualified

__all__ = ["as_exact", "exact_values", "same_type"]


def same_type(one: AnyField, other: AnyField, using: str) -> bool:
    """Whether the values of two fields are stored alike: equal, and in the same order."""
    dialect = dialect_of(using)
    first, second = ((family(field), *_stored(field, dialect)) for field in (one, other))
    return first == second


def _stored(field: AnyField, dialect: Dialect) -> tuple[str, str]:
    """The kind of a field's column, and its collation, "" for the database's."""
    return dialect.kind_of(field), field.db_parameters(dialect.connection).get("collation") or ""


def exact_values(
    fields: Sequence[AnyField], table: str, dialect: Dialect, kinds: Sequence[str] = ()
) -> list[str]:
    """The columns of fields as exact values; empty if there are no such for one of them.

    `kinds` are those of the columns, where they may be others than the model says.
    """
    kinds = kinds or [dialect.kind_of(field) for field in fields]
    columns = qualified(table, dialect.names(fields))
    found = [dialect.exact(*each) for each in zip(kinds, columns, strict=True)]
    return [each for each in found if each] if all(found) else []


def as_exact(
    values: Iterable[Sequence[Any]], fields: Sequence[AnyField], dialect: Dialect
) -> set[Key]:
    """Keys, or the values of some of their fields, that triggers have logged, as `exact_values` gives them."""
    kinds = [dialect.kind_of(field) for field in fields]
    return {tuple(map(dialect.as_exact, kinds, each)) for each in values}
