"""Which joins of an additive view are lookups: each row finds at most one row of another table."""

from collections.abc import Iterator
from typing import NamedTuple

from ...databases.fields import AnyField, field_of_column, model_of_table, unique_fields
from ..analysis.source_query import SourceQuery
from ..analysis.tables import JoinedTable

__all__ = ["Lookup", "columns_of_joins", "lookups_of", "obstacles_of_joins"]


class Lookup(NamedTuple):
    """A table that is joined by a unique column."""

    alias: str
    table: str
    #: The alias of the table from which it is joined.
    parent: str
    #: The column there.
    column: str
    #: The unique column that equals it.
    key: str
    #: Whether rows that find nothing are kept.
    outer: bool


def lookups_of(query: SourceQuery) -> tuple[Lookup, ...]:
    """The lookups of a query without obstacles, each after its parent."""
    found = []
    for table in query.tables[1:]:
        [(column, key)] = table.pairs
        parent = table.parent or ""
        found.append(Lookup(table.alias, table.table, parent, column, key, table.outer))
    return tuple(found)


def obstacles_of_joins(query: SourceQuery) -> Iterator[str]:
    """Why the joins of a query are not all lookups, for a person."""
    [first, *others] = query.tables
    for table in others:
        if table.table == first.table:
            yield f"source() joins {table.table} to itself"
        elif model_of_table(table.table) is None or set('"`.') & set(table.table):
            yield f"{table.table} is not a plain table of a model"
        elif table.restricted:
            yield f"source() joins {table.table} on a condition"
        elif not _is_unique(table):
            yield f"source() joins {table.table}, of which a row may match several rows"


def _is_unique(table: JoinedTable) -> bool:
    model = model_of_table(table.table)
    assert model is not None
    unique = {tuple(field.column for field in fields) for fields in unique_fields(model)}
    return len(table.pairs) == 1 and (table.pairs[0][1],) in unique


def columns_of_joins(query: SourceQuery) -> Iterator[tuple[str, AnyField]]:
    """The tables and columns by which a query joins."""
    by_alias = {table.alias: table.table for table in query.tables}
    for table in query.tables[1:]:
        for near, far in table.pairs:
            for name, column in ((by_alias[table.parent or ""], near), (table.table, far)):
                field = field_of_column(name, column)
                assert field is not None
                yield name, field
