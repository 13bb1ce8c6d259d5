"""Whether key columns, and columns that lead to keys, are in the database what the models say.

A plan is derived from the models. If a column has another type, or compared columns have different
collations, values that are equal here may differ there, or be ordered otherwise. Then only a full
refresh through a staging table is right, where the view's own columns are compared.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from ...databases import Dialect, dialect_of
from ...databases.fields import (
    TEXT,
    WHOLE,
    AnyField,
    Column,
    column_of,
    family,
    field_of_column,
    value_field,
)
from ..analysis.expressions import columns_in
from ..analysis.lineage import equal_columns
from ..analysis.row_functions import SESSION, inexact_part, is_collated, text_collations
from ..analysis.source import Source
from .links import Link

__all__ = ["Compared", "compared_columns", "find_mismatch", "stored_columns"]

#: Type and collation by table and column.
Stored = Mapping[tuple[str, str], tuple[str, str]]


class Compared(NamedTuple):
    """A column that is compared with others."""

    table: str
    column: str
    field: AnyField


def compared_columns(source: Source, links: Iterable[Link]) -> list[tuple[Compared, ...]]:
    """The columns of keys and links, grouped by what they are compared with."""
    groups = [*_of_keys(source), *(group for link in links for group in _of_link(link, source))]
    return [tuple(group) for group in groups]


def _of_keys(source: Source) -> Iterator[list[Compared]]:
    """Each key column of the view, with its column in the source and those joined to equal it."""
    view = source.model._meta.db_table
    tables = {table.alias: table.table for table in source.query.tables}
    for part in source.key:
        group = [Compared(view, part.field.column or "", part.field)]
        if place := column_of(part.expression):
            first = (place[0], place[1].column)
            for alias, column in (first, *equal_columns(source.query.tables, first)):
                group += _column(tables.get(alias, ""), column or "")
        else:
            read = _read_by(part, source)
            yield from ([each] for each in read)
            if read and family(part.field) == TEXT:
                group += _collated_like(part, read, dialect_of(source.query.using))
        yield group


def _read_by(part: Column, source: Source) -> list[Compared]:
    """The texts and whole numbers that a computed part is evaluated for when they are logged."""
    tables = {table.alias: table.table for table in source.query.tables}
    if inexact_part(part.expression, dialect_of(source.query.using)):
        return []  # it never is
    return [
        each
        for column in columns_in(part.expression) or ()
        for each in _column(tables.get(column.alias, ""), column.target.column or "")
        if family(each.field) in (TEXT, WHOLE)
    ]


def _collated_like(part: Column, read: list[Compared], dialect: Dialect) -> Iterator[Compared]:
    """What gives a computed text its collation: columns, or the session."""
    collations = text_collations(part.expression, dialect)
    if SESSION in collations and (session := dialect.session_collation):
        yield Compared(*session, part.field)
    if not is_collated(part.expression):
        yield from (each for each in read if family(each.field) == TEXT)


def _of_link(link: Link, source: Source) -> Iterator[list[Compared]]:
    tables = [link.table, *(step.table for step in link.steps)]
    for step in link.steps:
        for near, far in step.columns:
            yield [*_column(tables[step.near], near), *_column(step.table, far)]
    numbers = range(len(source.key)) if link.key_part is None else [link.key_part]
    for number, part in zip(numbers, link.key_columns, strict=False):
        field = source.key[number].field
        key = Compared(source.model._meta.db_table, field.column or "", field)
        yield [key, *_column(tables[part.table], part.column)]


def _column(table: str, column: str) -> Iterator[Compared]:
    if field := field_of_column(table, column):
        yield Compared(table, column, field)


def stored_columns(groups: Collection[Collection[Compared]], dialect: Dialect) -> Stored:
    """The types and collations of columns in the database."""
    return dialect.columns(sorted({column.table for group in groups for column in group}))


def find_mismatch(groups: Iterable[Iterable[Compared]], stored: Stored, dialect: Dialect) -> str:
    """Where the database contradicts the models, for a person; "" if it does not.

    Tables that do not exist are left out.
    """
    for group in groups:
        there = [column for column in group if column[:2] in stored]
        for column in there:
            if fault := _fault(column, *stored[column[:2]], dialect):
                return fault
        collations = {stored[column[:2]][1]: column for column in there}
        if len(collations) > 1:
            shown = " and ".join(
                f"{column.table}.{column.column} ({name or 'the default'})"
                for name, column in sorted(collations.items())
            )
            return f"{shown} have different collations in the database"
    return ""


def _fault(column: Compared, type_name: str, collation: str, dialect: Dialect) -> str:
    name = f"{column.table}.{column.column}"
    if dialect.kind(type_name) != dialect.kind_of(column.field):
        of_model = value_field(column.field).rel_db_type(dialect.connection)
        theirs = type_name or "without a type"
        return f"{name} is {theirs} in the database, but {of_model} in its model"
    of_model = column.field.db_parameters(dialect.connection).get("collation") or ""
    if not dialect.same_collation(of_model, collation):
        collations = (each_ or "the default" for each_ in (collation, of_model))
        return f"{name} has the collation {' in the database, but '.join(collations)} in its model"
    return ""
