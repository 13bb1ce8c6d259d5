"""By which columns the rows of a source's tables hang on its key: what is logged of a changed row.

Only the *nearest link* is logged, old and new: the columns by which a row is joined to the next table on
its way to the table that has the key. The rest of the way is looked up when the view is refreshed, from
committed rows. A row in between that moves or goes meanwhile logs its own old and new link.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.db import connections

from .declared import Declared
from .dialects import Dialect
from .fields import TEXT, WHOLE, family
from .keys import Key, Keys, Within, all_from_json, prepared_within
from .paths import Path
from .query import Edge, Place, field_of_column, from_database
from .source import Source
from .sql import equal, qualified

__all__ = ["Link", "find_links", "linked_keys", "with_declared"]

# What JSON gives back as it was, on every database.
LOGGED = {WHOLE, TEXT, "UUID", "date"}
PART = 1_000  # values that are looked up in one statement


@dataclass(frozen=True, slots=True)
class Join:
    """A step on the way to the key.

    Attributes:
        table: the table that it leads to.
        columns: the columns, of the table before and of this one, that are equal.
    """

    table: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Link:
    """How changed rows of a table lead to keys of the view.

    Attributes:
        columns: the columns of the table that are logged.
        way: the steps from them to the table that has the key; none from that table itself.
        declared: what the view says of the table, if it does.
    """

    columns: tuple[str, ...]
    way: tuple[Join, ...] = ()
    declared: Declared | None = None


def find_links(source: Source, path: Path) -> dict[str, tuple[Link, ...]]:
    """How the rows of each table that a source reads lead to its keys, one link for each time it is read.

    A table that is not there leads to no key in particular: a change of it concerns the whole view.
    """
    if path.staged:
        return {}
    tables, edges = source.query.graph()
    key = tuple(field.column or "" for field in path.fields)
    start: Place = (0, path.alias)
    ways: dict[Place, Link] = {start: Link(key)}
    waiting = deque([start])
    while waiting:
        place = waiting.popleft()
        for near, far, columns in _both_ways(edges):
            if near == place and far not in ways:
                step = Join(tables[place], tuple((theirs, mine) for mine, theirs in columns))
                ways[far] = Link(
                    tuple(theirs for _mine, theirs in columns), (step, *ways[place].way)
                )
                waiting.append(far)
    links: dict[str, tuple[Link, ...]] = {}
    whole = {tables[place] for place in tables if not _is_logged(tables[place], ways.get(place))}
    for place, link in ways.items():
        table = tables[place]
        if table not in whole and link not in links.get(table, ()):
            links[table] = (*links.get(table, ()), link)
    return links


def with_declared(
    links: dict[str, tuple[Link, ...]], said: dict[str, Declared], path: Path
) -> dict[str, tuple[Link, ...]]:
    """The links that were found, and those that the view declares itself."""
    links = dict(links)
    for table, each in said.items() if not path.staged else ():
        link = Link(each.columns, declared=each)
        if each.whole or not _is_logged(table, link):
            links.pop(table, None)
        else:
            links[table] = (*links.get(table, ()), link)
    return links


def _both_ways(edges: Iterable[Edge]) -> Iterable[Edge]:
    for near, far, columns in edges:
        yield near, far, columns
        yield far, near, tuple((theirs, mine) for mine, theirs in columns)


def _is_logged(table: str, link: Link | None) -> bool:
    if link is None:
        return False
    fields = [field_of_column(table, column) for column in link.columns]
    return all(field is not None and family(field) in LOGGED for field in fields)


def linked_keys(
    link: Link, values: Collection[Sequence[Any]], path: Path, dialect: Dialect, most: int
) -> set[Key]:
    """The keys of the view that rows with some values in the link's columns lead to.

    Args:
        link: the link.
        values: values of its columns, as JSON has them.
        path: the way through the view's source, which has the key.
        dialect: the SQL of its database.
        most: how many keys to return at most; the caller asks for one more than it can use.
    """
    key = tuple(field.column or "" for field in path.fields)
    assert path.model is not None
    table, nearest = path.model._meta.db_table, key
    if link.way:
        table, nearest = link.way[0].table, tuple(mine for _theirs, mine in link.way[0].columns)
    fields = [field for column in nearest if (field := field_of_column(table, column))]
    there = (value for value in values if None not in value)
    if len(link.way) < 2 and nearest == key:  # whether the source has such a key, it says later
        return set(all_from_json(fields, list(islice(there, most))))
    known = all_from_json(fields, list(there))
    keys: set[Key] = set()
    for part in range(0, len(known), PART):
        within = prepared_within(fields, Keys(tuple(known[part : part + PART])), dialect.using)
        keys |= _looked_up(link, nearest, within, path, dialect, most)
    return keys


def _looked_up(
    link: Link, nearest: Sequence[str], within: Within, path: Path, dialect: Dialect, most: int
) -> set[Key]:
    """The keys at the end of a way that begins with some values, as a statement takes them."""
    using = dialect.using
    names = [f"matviews_{number}" for number in range(len(link.way))]
    tables = [f"{dialect.name(link.way[0].table)} {names[0]}"]
    for before, name, join in zip(names, names[1:], link.way[1:], strict=False):
        theirs, mine = zip(*join.columns, strict=True)
        same = equal(_columns(dialect, before, theirs), _columns(dialect, name, mine))
        tables.append(f"{dialect.name(join.table)} {name} ON {same}")
    inside = dialect.inside(_columns(dialect, names[0], nearest), within)
    selected = ", ".join(dialect.names(path.fields, names[-1]))
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT DISTINCT {selected} FROM {' JOIN '.join(tables)} WHERE {inside.text} LIMIT %s",
            [*inside.params, most],
        )
        rows = [row for row in cursor.fetchall() if None not in row]
    return {
        tuple(
            from_database(field, value, using)
            for field, value in zip(path.fields, row, strict=True)
        )
        for row in rows
    }


def _columns(dialect: Dialect, table: str, columns: Sequence[str]) -> list[str]:
    return qualified(table, map(dialect.name, columns))
