"""Which columns lead from a changed row to the view's key: the columns that triggers log.

A trigger logs only the row's *nearest link*, before and after the change: the columns by which the
row is joined to the next table on the path to the key. A refresh looks up the rest of the path in
committed rows. If a row in between moves or disappears meanwhile, it logs its own link, before and
after.

The key may be spread over several tables. One of them, the *base*, has paths to all the others, so
each of its rows determines a whole key; so does any row with a path to the base. A row of another
table with a part of the key, or of a table on the path to it, determines only that part: the base
rows that would determine the rest may have moved since. So every key with that part is dirty, in
the view (which still has every key as of the last refresh) and in the source.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

from ...databases.fields import (
    DATE,
    DATETIME,
    TEXT,
    WHOLE,
    column_of,
    family,
    field_of_column,
    model_of_table,
    unique_fields,
)
from ..analysis.columns import same_type
from ..analysis.dependencies import Dependency
from ..analysis.expressions import columns_in
from ..analysis.source import Source
from ..analysis.tables import Edge, QueryGraph, TableRef
from .choose import Strategy

__all__ = ["KeyColumn", "Link", "Step", "find_links", "key_column", "with_dependencies"]

# Kinds of values that JSON returns unchanged on every database. A DATETIME may be logged too, if a
# part of the key is computed from it and it is not itself compared.
MAX_CHOICES = 16  # of alternatives in all ORs of a source
LOGGED = {WHOLE, TEXT, "UUID", DATE}


class KeyColumn(NamedTuple):
    """Where a part of the key is."""

    #: The `TableRef` of its table; in a `Link`, the number of steps to it.
    table: Any
    #: "" if the part is computed.
    column: str


@dataclass(frozen=True, slots=True)
class Step:
    """A join on the path of a link."""

    #: How many steps precede the table that it starts from.
    near: int
    #: The table that it joins.
    table: str
    #: Pairs of equal columns, of the table that it starts from and of the one that it joins.
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Link:
    """How changed rows of a table lead to keys of the view."""

    table: str
    #: The columns that are logged.
    columns: tuple[str, ...]
    #: The joins from there to the parts of the key.
    steps: tuple[Step, ...] = ()
    #: Where the parts of the key are: all of them in order, or the one that is known.
    key_columns: tuple[KeyColumn, ...] = ()
    #: The number of the part that is known; None for all of them.
    key_part: int | None = None
    #: What `depends_on` declares for the table.
    dependency: Dependency | None = None

    @property
    def is_key(self) -> bool:
        """Whether the logged columns are the key, or the known part of it."""
        return not self.steps and all(part.column for part in self.key_columns)

    @property
    def can_be_logged(self) -> bool:
        """Whether JSON returns each column unchanged. A datetime may not be compared."""
        fields = [field_of_column(self.table, column) for column in self.columns]
        compared = {near for step in self.steps if step.near == 0 for near, _far in step.columns}
        compared |= {part.column for part in self.key_columns if part.table == 0}
        compared |= set(self.columns if self.dependency else ())
        return all(
            field is not None
            and (
                family(field) in LOGGED
                or (family(field) == DATETIME and field.column not in compared)
            )
            for field in fields
        )

    def parts(self, count: int) -> Sequence[int]:
        """The numbers of the parts to which it leads, of a key with `count` parts."""
        return range(count) if self.key_part is None else [self.key_part]


def find_links(source: Source, strategy: Strategy) -> dict[str, tuple[Link, ...]]:
    """The links of each table that a source reads, one for each time it reads the table.

    A table without an entry leads to no key in particular: a change of it causes a full refresh.
    """
    if not strategy.is_incremental:
        return {}
    query = source.query.graph()
    graphs = [JoinGraph(source, query, chosen) for chosen in _choices(query.alternatives)]
    links: dict[str, tuple[Link, ...]] = {}
    unlinked = set()
    for ref, table in query.tables.items():
        for graph in graphs:
            link = next((link for link in graph.links(ref) if link.can_be_logged), None)
            if link is None:
                unlinked.add(table)
            elif link not in links.get(table, ()):
                links[table] = (*links.get(table, ()), link)
    return {table: found for table, found in links.items() if table not in unlinked}


def _choices(alternatives: Sequence[list[list[Edge]]]) -> list[list[Edge]]:
    """The edges that hold if one alternative of each OR does, for each choice of them.

    Of each row in a subquery and each row outside that it matches, one choice is true, so the links
    of all choices together lead to every key.
    """
    if prod(map(len, alternatives)) > MAX_CHOICES:
        return [[]]
    return [list(chain.from_iterable(chosen)) for chosen in product(*alternatives)]


def with_dependencies(
    links: dict[str, tuple[Link, ...]], dependencies: dict[str, Dependency], strategy: Strategy
) -> dict[str, tuple[Link, ...]]:
    """The links that were derived, and those that `depends_on` declares."""
    links = dict(links)
    for table, dependency in dependencies.items() if strategy.is_incremental else ():
        link = Link(table, dependency.columns, dependency=dependency)
        if dependency.concerns_any_key or not link.can_be_logged:
            links.pop(table, None)
        else:
            links[table] = (*links.get(table, ()), link)
    return links


class JoinGraph:
    """The joins between the tables of a source, and the paths along them to its key.

    Args:
        source: the source.
        query: the graph of its query.
        chosen: the edges of one alternative of each OR.
    """

    def __init__(self, source: Source, query: QueryGraph, chosen: Iterable[Edge]) -> None:
        self.source, self.tables = source, query.tables
        both = _both_directions(self.tables, [*query.edges, *chosen], source.query.using)
        #: Whether each edge leads to at most one row.
        self.edges = {edge: self._is_to_one(edge) for edge in both}
        #: Where the parts of the key are.
        self.key_columns = [key_column(column.expression) for column in source.key]
        #: The table with paths to all of them.
        self.base = self._find_base({part.table for part in self.key_columns})
        #: The last edge of the path from the base to each table that has one.
        self.last_edges = self._last_edges_from(self.base)
        self.key_columns = [self._nearest(part) for part in self.key_columns]
        paths = (edge for part in self.key_columns for edge in self._path_to(part.table))
        #: The tables on these paths, without the base.
        self.tables_on_paths = {edge.far for edge in paths}

    def _find_base(self, key_tables: set[TableRef]) -> TableRef:
        """The table with one key per row and the shortest paths to all parts of the key."""
        if len(key_tables) == 1:
            return next(iter(key_tables))
        lengths: dict[TableRef, int] = {}
        for ref in self._never_missing(key_tables):
            last_edges = self._last_edges_from(ref, to_one=True)
            if key_tables <= {ref, *last_edges}:
                edges = {edge for table in key_tables for edge in _path(last_edges, table)}
                lengths[ref] = len(edges)
        first = (0, self.source.query.tables[0].alias)
        return min(lengths, key=lambda ref: lengths[ref], default=first)

    def _never_missing(self, key_tables: set[TableRef]) -> Iterator[TableRef]:
        """The tables that have a row wherever all parts of the key have a value."""
        tables = {table.alias: table for table in self.source.query.tables}
        needed = {alias for _query, alias in key_tables}
        for alias in reversed(tables):
            if alias in needed and (parent := tables[alias].parent):
                needed.add(parent)
        yield from ((0, a) for a, table in tables.items() if a in needed or not table.outer)

    def _last_edges_from(self, base: TableRef, *, to_one: bool = False) -> dict[TableRef, Edge]:
        """The last edge of the path from a table to every other: breadth first, to-one joins first.

        Edges leave a subquery but do not enter it: an outer row may have no match there.
        """
        last_edges: dict[TableRef, Edge] = {}
        for unique in (True,) if to_one else (True, False):
            waiting = deque([base, *last_edges])
            while waiting:
                ref = waiting.popleft()
                for edge, is_to_one in self.edges.items():
                    is_new = edge.near == ref and edge.far not in (base, *last_edges)
                    if is_new and edge.far[0] >= ref[0] and (is_to_one or not unique):
                        last_edges[edge.far] = edge
                        waiting.append(edge.far)
        return last_edges

    def _is_to_one(self, edge: Edge) -> bool:
        model = model_of_table(self.tables[edge.far])
        columns = {far for _near, far in edge.columns}
        unique = unique_fields(model) if model else []
        return any({field.column for field in fields} <= columns for fields in unique)

    def _nearest(self, part: KeyColumn) -> KeyColumn:
        """The column nearest to the base that has the same value as a part of the key."""
        while edge := self.last_edges.get(part.table):
            known = {far: near for near, far in edge.columns}
            if part.column not in known:
                break
            part = KeyColumn(edge.near, known[part.column])
        return part

    def _path_to(self, ref: TableRef) -> list[Edge]:
        return _path(self.last_edges, ref)

    def links(self, ref: TableRef) -> Iterator[Link]:
        """The links of a table, the best first; none unless every part of the key has a path."""
        if not {part.table for part in self.key_columns} <= {self.base, *self.last_edges}:
            return
        if ref in self.tables_on_paths:
            for length, number in sorted(self._key_parts_from(ref)):
                path = self._path_to(self.key_columns[number].table)
                yield self._link(ref, path[len(path) - length :], [number], key_part=number)
        elif ref == self.base or ref in self.last_edges:
            to_base = [edge.reversed for edge in reversed(self._path_to(ref))]
            onward = [edge for part in self.key_columns for edge in self._path_to(part.table)]
            yield self._link(ref, [*to_base, *onward], range(len(self.key_columns)))

    def _key_parts_from(self, ref: TableRef) -> Iterator[tuple[int, int]]:
        """The parts of the key in or beyond a table: how many edges away, and their numbers."""
        for number, part in enumerate(self.key_columns):
            refs = [edge.far for edge in self._path_to(part.table)]
            if ref in refs:
                yield len(refs) - 1 - refs.index(ref), number

    def _link(
        self,
        start: TableRef,
        path: Iterable[Edge],
        numbers: Collection[int],
        key_part: int | None = None,
    ) -> Link:
        key_columns = [self.key_columns[number] for number in numbers]
        edges: list[Edge] = []
        for edge in path:
            if edge.far not in (start, *(known.far for known in edges)):
                edges.append(edge)
        for edge in reversed(edges):
            key_columns = _drop_if_superfluous(edge, edges, key_columns)
        order = [start, *(edge.far for edge in edges)]
        return Link(
            table=self.tables[start],
            columns=tuple(dict.fromkeys(self._columns(start, edges, numbers, key_columns))),
            steps=tuple(
                Step(order.index(edge.near), self.tables[edge.far], edge.columns) for edge in edges
            ),
            key_columns=tuple(
                KeyColumn(order.index(part.table), part.column) for part in key_columns
            ),
            key_part=key_part,
        )

    def _columns(
        self,
        start: TableRef,
        edges: Iterable[Edge],
        numbers: Iterable[int],
        key_columns: Iterable[KeyColumn],
    ) -> Iterator[str]:
        """The columns of a row that hold parts of the key, or lead to the others."""
        for number, part in zip(numbers, key_columns, strict=True):
            if part.table == start:
                yield from [part.column] if part.column else _columns_read(self.source, number)
        for edge in edges:
            if edge.near == start:
                yield from (near for near, _far in edge.columns)


def _both_directions(
    tables: Mapping[TableRef, str], edges: Iterable[Edge], using: str
) -> Iterator[Edge]:
    """Each edge and its reverse, where the columns are stored alike."""
    for edge in edges:
        fields = [
            (field_of_column(tables[edge.near], near), field_of_column(tables[edge.far], far))
            for near, far in edge.columns
        ]
        if all(one and other and same_type(one, other, using) for one, other in fields):
            yield from (edge, edge.reversed)


def key_column(expression: Any) -> KeyColumn:
    """Where the expression of a part of the key reads its table."""
    if column := column_of(expression):
        return KeyColumn((0, column[0]), column[1].column or "")
    return KeyColumn((0, (columns_in(expression) or [])[0].alias or ""), "")


def _columns_read(source: Source, number: int) -> list[str]:
    """The columns that a part of the key is computed from."""
    read = columns_in(source.key[number].expression) or ()
    return [column.target.column or "" for column in read]


def _path(last_edges: Mapping[TableRef, Edge], ref: TableRef) -> list[Edge]:
    path: list[Edge] = []
    while edge := last_edges.get(ref):
        path.insert(0, edge)
        ref = edge.near
    return path


def _drop_if_superfluous(
    edge: Edge, edges: list[Edge], key_columns: list[KeyColumn]
) -> list[KeyColumn]:
    """Drop an edge if its near side has all that it leads to; returns where the key's parts are."""
    known = {far: near for near, far in edge.columns}
    is_passed = any(other.near == edge.far for other in edges)
    if is_passed or any(
        part.table == edge.far and part.column not in known for part in key_columns
    ):
        return key_columns
    edges.remove(edge)
    return [
        KeyColumn(edge.near, known[part.column]) if part.table == edge.far else part
        for part in key_columns
    ]
