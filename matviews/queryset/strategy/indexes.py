"""The indexes that a strategy needs: which are required, declared, and in the database."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connections
from django.db.models import Model

from ...databases.fields import column_of, indexed_columns, model_of_table
from ..analysis.lineage import equal_columns
from ..analysis.source import Source
from .choose import Strategy

__all__ = ["RequiredIndex", "in_database", "required_indexes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequiredIndex:
    """An index that begins with some fields, in this order."""

    #: The model whose table needs it.
    model: type[Model]
    #: The names of the fields.
    fields: tuple[str, ...]
    #: Whether the model declares such an index.
    declared: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the fields."""
        return _columns(self.model, self.fields)

    @property
    def declaration(self) -> str:
        """What to add to the model, as code."""
        names = ", ".join(f'"{name}"' for name in self.fields)
        return f"models.Index(fields=[{names}])"


def required_indexes(source: Source, strategy: Strategy) -> Iterator[RequiredIndex]:
    """The indexes that find windows: of the source, of tables joined by the key, of the view."""
    if strategy.model is not None:
        names = strategy.missing_index or tuple(field.name for field in strategy.fields)
        yield _required(strategy.model, names)
    if not strategy.staged:
        yield from _joined(source)
    yield _required(source.model, tuple(column.field.name for column in source.key))


def _joined(source: Source) -> Iterator[RequiredIndex]:
    place = column_of(source.key[0].expression)
    assert place is not None  # otherwise it would be staged
    tables = {table.alias: table.table for table in source.query.tables}
    seen = set()
    for alias, column in equal_columns(source.query.tables, (place[0], place[1].column)):
        model = model_of_table(tables[alias])
        if model is None or (model, column) in seen:
            continue
        seen.add((model, column))
        fields = model._meta.local_concrete_fields
        yield _required(model, tuple(field.name for field in fields if field.column == column))


def _required(model: type[Model], names: tuple[str, ...]) -> RequiredIndex:
    columns = _columns(model, names)
    declared = any(index[: len(columns)] == columns for index in indexed_columns(model))
    return RequiredIndex(model=model, fields=names, declared=declared)


def _columns(model: type[Model], names: Iterable[str]) -> tuple[str, ...]:
    meta: Any = model._meta
    return tuple(meta.get_field(name).column for name in names)


def in_database(index: RequiredIndex, using: str) -> bool:
    """Whether the table has an index that begins with the columns."""
    connection, table = connections[using], index.model._meta.db_table
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            return False
        found = connection.introspection.get_constraints(cursor, table).values()
    columns = list(index.columns)
    return any(
        constraint["columns"][: len(columns)] == columns
        for constraint in found
        if constraint["index"] or constraint["unique"] or constraint["primary_key"]
    )
