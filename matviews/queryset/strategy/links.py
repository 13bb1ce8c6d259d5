"""By which columns the rows of a source's tables hang on its key: what is logged of a changed row.

Only the *nearest link* is logged, old and new: the columns by which a row is joined to the next table on
its way to the key. The rest of the way is looked up when the view is refreshed, from committed rows. A row
in between that moves or goes meanwhile logs its own old and new link.

The parts of a key may be columns of several tables. From one of these, the *base*, ways lead to all of
them, and a row of it names its keys, as does any row whose way leads there. A row on a way from the base
to a part, or at its end, names that part alone: the rows of the base that would name the others may have
moved away since. So all keys with that part are dirty, in the view, which has every key as of the last
refresh, and in the source.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...databases.fields import (
    DATE,
    MOMENT,
    TEXT,
    WHOLE,
    column_of,
    family,
    field_of_column,
    model_of_table,
    unique_fields,
)
from ..analysis.columns import same_type
from ..analysis.declared import Declared
from ..analysis.expressions import columns_in
from ..analysis.source import Source
from ..analysis.tables import Edge, Place
from .choose import Strategy

__all__ = ["Link", "find_links", "with_declared"]

# What JSON gives back as it was, on every database.
LOGGED = {WHOLE, TEXT, "UUID", DATE}  # MOMENT as well, to compute of it


class Hop(NamedTuple):
    """A step from one place of a query to another.

    Attributes:
        near: where it begins.
        far: where it ends.
        columns: the columns, of the one and of the other, that are equal.
    """

    near: Place
    far: Place
    columns: tuple[tuple[str, str], ...]

    @property
    def back(self) -> "Hop":
        """The step in the other direction."""
        return Hop(self.far, self.near, tuple((theirs, mine) for mine, theirs in self.columns))


class End(NamedTuple):
    """Where a part of the key is.

    Attributes:
        place: of which table. Of a link, how many steps there are to it.
        column: the column; "" if the part is computed.
    """

    place: Any
    column: str


@dataclass(frozen=True, slots=True)
class Join:
    """A step on the way of a link.

    Attributes:
        near: where it begins: after as many steps.
        table: the table that it leads to.
        columns: the columns, of the table before and of this one, that are equal.
    """

    near: int
    table: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Link:
    """How changed rows of a table lead to keys of the view.

    Attributes:
        table: the table.
        columns: its columns that are logged.
        way: the steps from them to the parts of the key.
        ends: where the parts of the key are, all in order, or the one.
        part: which part of the key is known at the end; None for all of them.
        declared: what the view says of the table, if it does.
    """

    table: str
    columns: tuple[str, ...]
    way: tuple[Join, ...] = ()
    ends: tuple[End, ...] = ()
    part: int | None = None
    declared: Declared | None = None

    @property
    def direct(self) -> bool:
        """Whether what is logged is the key, or the part of it."""
        return not self.way and all(end.column for end in self.ends)


def find_links(source: Source, strategy: Strategy) -> dict[str, tuple[Link, ...]]:
    """How the rows of each table that a source reads lead to its keys, one link for each time it is read.

    A table that is not there leads to no key in particular: a change of it concerns the whole view.
    """
    if not strategy.is_incremental:
        return {}
    ways = _Ways(source)
    links: dict[str, tuple[Link, ...]] = {}
    whole = set()
    for place, table in ways.tables.items():
        link = next(filter(_is_logged, ways.links(place)), None)
        if link is None:
            whole.add(table)
        elif link not in links.get(table, ()):
            links[table] = (*links.get(table, ()), link)
    return {table: found for table, found in links.items() if table not in whole}


def with_declared(
    links: dict[str, tuple[Link, ...]], said: dict[str, Declared], strategy: Strategy
) -> dict[str, tuple[Link, ...]]:
    """The links that were found, and those that the view declares itself."""
    links = dict(links)
    for table, each in said.items() if strategy.is_incremental else ():
        link = Link(table, each.columns, declared=each)
        if each.whole or not _is_logged(link):
            links.pop(table, None)
        else:
            links[table] = (*links.get(table, ()), link)
    return links


class _Ways:
    """The ways between the tables of a source and the parts of its key.

    Attributes:
        tables: the tables, by their places.
        edges: the steps between them, and whether there is one row at their end.
        ends: where the parts of the key are.
        base: the place from which ways lead to all of them.
        hops: the last step of the way from the base to each place that there is one to.
        parts: the places on the ways to the parts, the base aside.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tables, edges = source.query.graph()
        using = source.query.using
        self.edges = {hop: self._to_one(hop) for hop in _both_ways(self.tables, edges, using)}
        self.ends = [_end(column.expression) for column in source.key]
        self.base = self._find_base({end.place for end in self.ends})
        self.hops = self._hops_from(self.base)
        self.ends = [self._nearer(end) for end in self.ends]
        ways = (hop for end in self.ends for hop in self._way_to(end.place))
        self.parts = {hop.far for hop in ways}

    def _find_base(self, ends: set[Place]) -> Place:
        """Where a row belongs to one key alone, if there is such a table, and the ways are short."""
        if len(ends) == 1:
            return next(iter(ends))
        found: dict[Place, int] = {}
        for place in self._never_missing(ends):
            hops = self._hops_from(place, to_one=True)
            if ends <= {place, *hops}:
                found[place] = len({hop for end in ends for hop in _way(hops, end)})
        first = (0, self.source.query.tables[0].alias)
        return min(found, key=lambda place: found[place], default=first)

    def _never_missing(self, ends: set[Place]) -> Iterator[Place]:
        """The tables of which there is a row wherever all parts of the key are."""
        tables = {table.alias: table for table in self.source.query.tables}
        needed = {alias for _query, alias in ends}
        for alias in reversed(tables):
            if alias in needed and (parent := tables[alias].parent):
                needed.add(parent)
        yield from ((0, a) for a, table in tables.items() if a in needed or not table.outer)

    def _hops_from(self, base: Place, *, to_one: bool = False) -> dict[Place, Hop]:
        """The last step of the way from a place to each other one; over unique columns, where they lead.

        A row of a subquery leads out of it, but not every row outside has one in it.
        """
        hops: dict[Place, Hop] = {}
        for unique in (True,) if to_one else (True, False):
            waiting = deque([base, *hops])
            while waiting:
                place = waiting.popleft()
                for hop, one in self.edges.items():
                    new = hop.near == place and hop.far not in (base, *hops)
                    if new and hop.far[0] >= place[0] and (one or not unique):
                        hops[hop.far] = hop
                        waiting.append(hop.far)
        return hops

    def _to_one(self, hop: Hop) -> bool:
        model = model_of_table(self.tables[hop.far])
        columns = {theirs for _mine, theirs in hop.columns}
        unique = unique_fields(model) if model else []
        return any({field.column for field in fields} <= columns for fields in unique)

    def _nearer(self, end: End) -> End:
        """A part of the key as near to the base as its value is known."""
        while hop := self.hops.get(end.place):
            known = {theirs: mine for mine, theirs in hop.columns}
            if end.column not in known:
                break
            end = End(hop.near, known[end.column])
        return end

    def _way_to(self, place: Place) -> list[Hop]:
        return _way(self.hops, place)

    def links(self, place: Place) -> Iterator[Link]:
        """How rows of a place may lead to keys, the best first; not at all where no way leads to a part."""
        if not {end.place for end in self.ends} <= {self.base, *self.hops}:
            return
        if place in self.parts:
            for length, number in sorted(self._parts_from(place)):
                way = self._way_to(self.ends[number].place)
                yield self._link(place, way[len(way) - length :], [number], part=number)
        elif place == self.base or place in self.hops:
            back = [hop.back for hop in reversed(self._way_to(place))]
            ways = [hop for end in self.ends for hop in self._way_to(end.place)]
            yield self._link(place, [*back, *ways], range(len(self.ends)))

    def _parts_from(self, place: Place) -> Iterator[tuple[int, int]]:
        """The parts of the key at a place or beyond it, as seen from the base: how far, and which."""
        for number, end in enumerate(self.ends):
            places = [hop.far for hop in self._way_to(end.place)]
            if place in places:
                yield len(places) - 1 - places.index(place), number

    def _link(
        self, start: Place, way: Iterable[Hop], numbers: Collection[int], part: int | None = None
    ) -> Link:
        ends = [self.ends[number] for number in numbers]
        hops: list[Hop] = []
        for hop in way:
            if hop.far not in (start, *(each.far for each in hops)):
                hops.append(hop)
        for hop in reversed(hops):
            ends = _without(hop, hops, ends)
        order = [start, *(hop.far for hop in hops)]
        return Link(
            table=self.tables[start],
            columns=tuple(dict.fromkeys(self._columns(start, hops, numbers, ends))),
            way=tuple(
                Join(order.index(hop.near), self.tables[hop.far], hop.columns) for hop in hops
            ),
            ends=tuple(End(order.index(end.place), end.column) for end in ends),
            part=part,
        )

    def _columns(
        self, start: Place, hops: Iterable[Hop], numbers: Iterable[int], ends: Iterable[End]
    ) -> Iterator[str]:
        """The columns of a row that tell the parts that it has, and lead to the others."""
        for number, end in zip(numbers, ends, strict=True):
            if end.place == start:
                yield from [end.column] if end.column else _read(self.source, number)
        for hop in hops:
            if hop.near == start:
                yield from (mine for mine, _theirs in hop.columns)


def _both_ways(tables: Mapping[Place, str], edges: Iterable[Edge], using: str) -> Iterator[Hop]:
    """The steps between tables, where what is equal is of one kind."""
    for edge in edges:
        hop = Hop(*edge)
        fields = [
            (field_of_column(tables[hop.near], mine), field_of_column(tables[hop.far], theirs))
            for mine, theirs in hop.columns
        ]
        if all(one and other and same_type(one, other, using) for one, other in fields):
            yield from (hop, hop.back)


def _end(expression: Any) -> End:
    if column := column_of(expression):
        return End((0, column[0]), column[1].column or "")
    return End((0, (columns_in(expression) or [])[0].alias or ""), "")


def _read(source: Source, number: int) -> list[str]:
    """The columns that a part of the key is computed from."""
    read = columns_in(source.key[number].expression) or ()
    return [each.target.column or "" for each in read]


def _way(hops: Mapping[Place, Hop], place: Place) -> list[Hop]:
    """The steps to a place, from where all of them begin."""
    way: list[Hop] = []
    while hop := hops.get(place):
        way.insert(0, hop)
        place = hop.near
    return way


def _without(hop: Hop, hops: list[Hop], ends: list[End]) -> list[End]:
    """The ends without a step, if it leads to nothing but what is known before it; else as they are."""
    known = {theirs: mine for mine, theirs in hop.columns}
    onward = any(each.near == hop.far for each in hops)
    if onward or any(end.place == hop.far and end.column not in known for end in ends):
        return ends
    hops.remove(hop)
    return [End(hop.near, known[e.column]) if e.place == hop.far else e for e in ends]


def _is_logged(link: Link) -> bool:
    fields = [field_of_column(link.table, column) for column in link.columns]
    compared = {mine for join in link.way if join.near == 0 for mine, _theirs in join.columns}
    compared |= {end.column for end in link.ends if end.place == 0}
    compared |= set(link.columns if link.declared else ())
    return all(
        field is not None
        and (family(field) in LOGGED or (family(field) == MOMENT and field.column not in compared))
        for field in fields
    )
