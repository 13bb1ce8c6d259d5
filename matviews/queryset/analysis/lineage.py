"""Which columns of a query the key determines, and which equal it.

The key determines a column if rows with the same key have the same value in it: the key itself,
columns joined as equal to it, and every column of a table with a determined unique constraint.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...databases.fields import column_of, model_of_table, unique_fields
from .expressions import columns_in
from .source_query import SourceQuery
from .tables import JoinedTable

__all__ = ["equal_columns", "key_is_unique", "undetermined"]

#: Alias and column.
ColumnRef = tuple[str, str | None]


def key_is_unique(query: SourceQuery, key: Sequence[Any]) -> bool:
    """Whether it can be proved that no two rows of a query have the same key expressions."""
    if query.grouping is not None:
        return not undetermined(query, key)
    tables = query.tables
    known = _Determined(tables, _columns_of(key))
    whole = all(table.alias in known.aliases for table in tables)
    return whole or (query.distinct and not undetermined(query, key))


def undetermined(query: SourceQuery, key: Sequence[Any]) -> list[Any]:
    """What a query groups by, or else selects, that its key expressions do not determine."""
    known = _Determined(query.tables, _columns_of(key))
    computed = {query.compile_expression(part) for part in key if column_of(part) is None}
    expressions = query.expressions.values() if query.grouping is None else query.grouping
    return [
        expression
        for expression in expressions
        if not known.covers(expression)
        and not (computed and query.compile_expression(expression) in computed)
    ]


def _columns_of(key: Sequence[Any]) -> set[ColumnRef]:
    return {(ref[0], ref[1].column) for part in key if (ref := column_of(part))}


class _Determined:
    """What the key determines: the transitive closure."""

    def __init__(self, tables: Sequence[JoinedTable], key: set[ColumnRef]) -> None:
        #: The determined columns.
        self.refs = key
        #: The tables with at most one row for each key.
        self.aliases: set[str] = set()
        before = -1
        while before != (before := len(self.refs) + len(self.aliases)):
            for table in tables:
                self._follow(table)

    def _follow(self, table: JoinedTable) -> None:
        if table.alias not in self.aliases and self._has_unique(table):
            self.aliases.add(table.alias)
        for of_parent, of_table in table.pairs:
            parent = (table.parent or "", of_parent)
            if self._has(parent):
                self.refs.add((table.alias, of_table))
            if not table.outer and self._has((table.alias, of_table)):
                self.refs.add(parent)

    def _has(self, ref: ColumnRef) -> bool:
        return ref in self.refs or ref[0] in self.aliases

    def _has_unique(self, table: JoinedTable) -> bool:
        model = model_of_table(table.table)
        unique = unique_fields(model) if model else []
        return any(
            all((table.alias, field.column) in self.refs for field in fields) for fields in unique
        )

    def covers(self, expression: object) -> bool:
        """Whether every column that an expression reads is determined."""
        read = columns_in(expression)
        return read is not None and all(self._has((c.alias, c.target.column)) for c in read)


def equal_columns(tables: Iterable[JoinedTable], ref: ColumnRef) -> Iterator[ColumnRef]:
    """The columns of joined tables that the joins make equal to one, as `(alias, column)`.

    PostgreSQL does not carry a range condition over to them.
    """
    equal = {ref}
    for table in tables:
        for of_parent, of_table in table.pairs:
            if (table.parent, of_parent) in equal:
                equal.add((table.alias, of_table))
                yield table.alias, of_table
