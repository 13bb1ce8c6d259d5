"""Which tables a query reads, how it joins them, and which columns decide about its rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db.models import Exists
from django.db.models.expressions import Col
from django.db.models.sql import Query
from django.db.models.sql.datastructures import BaseTable

from .expressions import conjunction, disjunctions, parts_of

__all__ = [
    "ALL",
    "Edge",
    "JoinedTable",
    "QueryGraph",
    "Scope",
    "TableRef",
    "columns_of",
    "tables_of",
]


#: The number of a query, 0 for the outermost, and an alias in it.
TableRef = tuple[int, str]
#: Tables by their aliases.
Scope = dict[str, str]
#: Stands for every column of a table.
ALL = "*"


class Edge(NamedTuple):
    """A join, or a condition, that makes columns of two tables equal."""

    near: TableRef
    far: TableRef
    #: Pairs of equal columns, near and far.
    columns: tuple[tuple[str, str], ...]

    @property
    def reversed(self) -> "Edge":
        """The same edge from its other end."""
        return Edge(self.far, self.near, tuple((far, near) for near, far in self.columns))


@dataclass(frozen=True, slots=True)
class JoinedTable:
    """A table of a query."""

    alias: str
    table: str
    #: The alias that it is joined to, None for the first table.
    parent: str | None = None
    #: Pairs of equal columns, `(of the parent, of this table)`.
    pairs: tuple[tuple[str, str], ...] = ()
    #: Whether the join keeps rows of the parent that have no match here.
    outer: bool = False
    #: Whether it has another condition.
    restricted: bool = False


def tables_of(query: Any) -> Iterator[JoinedTable]:
    """The tables that a query reads outside subqueries."""
    if query.model and not query.combinator and not any(query.alias_refcount.values()):
        first = query.alias_map.get(query.base_table)  # Django joins it when it compiles the query
        table = first.table_name if first else query.get_meta().db_table
        yield JoinedTable(first.table_alias if first else table, table)
        return
    for alias, table in query.alias_map.items():
        if not query.alias_refcount.get(alias):
            continue
        if isinstance(table, BaseTable):
            yield JoinedTable(alias, table.table_name)
        else:
            pairs = tuple((one.column, other.column) for one, other in table.join_fields)
            outer, parent = table.join_type.startswith("LEFT"), table.parent_alias
            more = table.filtered_relation or table.join_field.get_extra_restriction(alias, parent)
            yield JoinedTable(alias, table.table_name, parent, pairs, outer, more is not None)


def columns_of(
    query: Any, using: str, outer: tuple[Scope, ...], *, counted: bool = False
) -> Iterator[tuple[str, str]]:
    """The tables and columns that decide about the rows of a query; `ALL` for every column.

    Args:
        query: Django's query.
        using: alias of the database.
        outer: the tables of the queries around it, the innermost first.
        counted: whether only the number of its rows matters.
    """
    query, ordering = _with_ordering(query, using, counted=counted)
    tables = list(tables_of(query))
    own = {table.alias: table.table for table in tables}
    implicit = query.default_cols and not (counted or query.combinator)
    for table in tables:
        yield table.table, ALL if implicit or query.distinct_fields else ""
        for of_parent, of_table in table.pairs:
            yield own[table.parent or ""], of_parent
            yield table.table, of_table
    yield from _columns_in([*parts_of(query), *ordering], using, (own, *outer))


def _with_ordering(query: Any, using: str, *, counted: bool) -> tuple[Any, list[Any]]:
    """A query with the tables that only its ordering needs, which Django joins late; the ordering.

    Args:
        query: Django's query.
        using: alias of the database.
        counted: whether only the number of its rows matters.
    """
    if query.combinator or not (query.order_by or (query.is_sliced and not counted)):
        return query, []
    query = query.clone()
    compiler = query.get_compiler(using, elide_empty=False)
    compiler.setup_query()
    return query, [by for by, _sql in compiler.get_order_by()]


class QueryGraph:
    """The tables that a query and its subqueries read, and which of their columns are equal."""

    def __init__(self, query: Any, using: str) -> None:
        self.using = using
        #: The tables, by number of the query and alias.
        self.tables: dict[TableRef, str] = {}
        #: Pairs of tables with the columns that are equal.
        self.edges: list[Edge] = []
        #: Of each OR in a subquery: the edges of each alternative, which each has at least one.
        self.alternatives: list[list[list[Edge]]] = []
        self.queries = 0
        self._add(query, (), counted=False)

    def _add(self, query: Any, outer: tuple[tuple[int, set[str]], ...], *, counted: bool) -> None:
        number = self.queries
        self.queries += 1
        query, ordering = _with_ordering(query, self.using, counted=counted)
        own = set()
        for table in tables_of(query):
            own.add(table.alias)
            self.tables[number, table.alias] = table.table
            if table.parent is not None:
                self.edges.append(Edge((number, table.parent), (number, table.alias), table.pairs))
        scopes = ((number, own), *outer)
        self.edges += _equalities(conjunction(query.where), scopes)
        for alternatives in disjunctions(query.where) if outer else ():
            edges = [list(_equalities(lookups, scopes)) for lookups in alternatives]
            if all(edges):
                self.alternatives.append(edges)
        self._add_parts([*parts_of(query), *ordering], scopes, counted=False)

    def _add_parts(
        self, parts: Iterable[Any], scopes: tuple[tuple[int, set[str]], ...], *, counted: bool
    ) -> None:
        for part in parts:
            if isinstance(part, Query):
                self._add(part, scopes, counted=counted)
            else:
                self._add_parts(parts_of(part), scopes, counted=isinstance(part, Exists))


def _equalities(lookups: Iterable[Any], scopes: tuple[tuple[int, set[str]], ...]) -> Iterator[Edge]:
    """An edge for each condition that two columns are equal, as `OuterRef` makes it."""
    for lookup in lookups:
        sides: tuple[Any, Any] = (getattr(lookup, "lhs", None), getattr(lookup, "rhs", None))
        if getattr(lookup, "lookup_name", "") != "exact" or not all(
            isinstance(side, Col) for side in sides
        ):
            continue
        one, other = (
            next((number, side.alias) for number, own in scopes if side.alias in own)
            for side in sides
        )
        # An equality between two outer tables holds only where the subquery matches.
        if one != other and scopes[0][0] in (one[0], other[0]):
            columns = tuple(side.target.column for side in sides)
            yield Edge(one, other, (columns,))


def _columns_in(
    parts: Iterable[Any], using: str, scopes: tuple[Scope, ...], *, counted: bool = False
) -> Iterator[tuple[str, str]]:
    for part in parts:
        if isinstance(part, Query):
            yield from columns_of(part, using, scopes, counted=counted)
            continue
        if isinstance(part, Col):
            column: Any = part
            table = next(scope[column.alias] for scope in scopes if column.alias in scope)
            yield table, column.target.column
        yield from _columns_in(parts_of(part), using, scopes, counted=isinstance(part, Exists))
