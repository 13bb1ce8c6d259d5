"""The unique constraints of a view's table."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from django.db.models import Expression, F, Model, UniqueConstraint

from ...databases.fields import AnyField, is_automatic, unique_fields
from .source import Source

__all__ = ["other_unique"]


def other_unique(
    source: Source, *, with_deferrable: bool = False
) -> Iterator[tuple[AnyField, ...]]:
    """The fields of each unique constraint that a refresh may violate: not implied by the key.

    One batch that writes all rows does not violate a deferrable one, but two batches may.
    """
    key = {column.field for column in source.key}
    filled = {column.field for column in source.columns}
    for fields in _unique(source.model, with_deferrable=with_deferrable):
        if not key <= set(fields) and filled & set(fields):
            yield fields


def _unique(model: type[Model], *, with_deferrable: bool) -> Iterator[tuple[AnyField, ...]]:
    """The fields of each unique constraint, including conditional ones and those on expressions.

    Without automatic keys.
    """
    meta = model._meta
    constraints = [
        constraint for constraint in meta.constraints if isinstance(constraint, UniqueConstraint)
    ]
    deferrable = {
        frozenset(constraint.fields)
        for constraint in constraints
        if constraint.deferrable is not None and not with_deferrable
    }
    for fields in unique_fields(model):
        numbered = len(fields) == 1 and is_automatic(fields[0])
        if not numbered and {field.name for field in fields} not in deferrable:
            yield fields
    for constraint in constraints:
        if constraint.condition is not None or constraint.expressions:
            names = dict.fromkeys([*constraint.fields, *_named(constraint.expressions)])
            yield tuple(meta.get_field(name) for name in names)  # type: ignore[misc]


def _named(expressions: Iterable[Any]) -> Iterator[str]:
    """The names of the fields that expressions read."""
    for expression in expressions:
        if isinstance(expression, F):
            yield cast("Any", expression).name
        elif isinstance(expression, Expression):
            yield from _named(expression.get_source_expressions())
