"""Looks up which keys changed rows lead to."""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import QuerySet

from ...databases import Dialect, dialect_of
from ...databases.fields import AnyField, Column
from ...databases.keys import Key, Keys
from ...databases.sql import SQL, equal, joined, qualified
from ...exceptions import InvalidView
from ...project_locale import project_locale
from ..analysis.columns import as_exact, exact_values, same_type
from ..analysis.dependencies import Dependency
from ..analysis.given_keys import as_key
from ..analysis.source import Source
from ..strategy.links import KeyColumn, Link, key_column
from .conditions import KeyRange
from .readers import KeyReader, as_stored

__all__ = ["CHUNK_SIZE", "keys_of_logged", "linked_keys"]


CHUNK_SIZE = 1_000  # values in one statement


def linked_keys(
    link: Link,
    values: Collection[Sequence[Any]],
    source: Source,
    dialect: Dialect,
    limit: int,
    stages: Collection[str] = (),
) -> set[Key] | None:
    """The keys of the view that logged values of a link lead to; None for any key.

    Args:
        link: the link.
        values: values of its columns, as JSON has them.
        source: the view's source.
        dialect: the SQL dialect of its database.
        limit: the maximum number of keys; callers ask for one more than they can use.
        stages: staging tables whose rows may still be written to the view.
    """
    if not link.is_key and not dialect.is_readable(link.table, link.columns, values):
        return None
    if link.key_part is None:
        return _key_parts_of(link, values, source, dialect, limit)
    parts = [part for (part,) in _key_parts_of(link, values, source, dialect)]
    keys: set[Key] = set()
    for at in range(0, len(parts), CHUNK_SIZE):
        some = Keys(tuple((part,) for part in parts[at : at + CHUNK_SIZE]))
        keys |= _in_view(link.key_part, some, source, dialect, limit, stages)
        keys |= _in_source(link.key_part, some, source, dialect, limit)
    return keys


def _key_parts_of(
    link: Link,
    values: Collection[Sequence[Any]],
    source: Source,
    dialect: Dialect,
    limit: int | None = None,
) -> set[Key]:
    """The keys, or the values of the link's key part, that logged values lead to."""
    numbers = link.parts(len(source.key))
    if link.is_key:  # the statements find out whether the source has such a key
        places = [link.columns.index(part.column) for part in link.key_columns]
        parts = ([value[place] for place in places] for value in values)
        known = (key for key in parts if None not in key)
        fields = [source.key[number].field for number in numbers]
        return set(islice(as_exact(known, fields, dialect), limit))
    found: set[Key] = set()
    rows = list(values)
    for at in range(0, len(rows), CHUNK_SIZE):
        found |= _looked_up(link, rows[at : at + CHUNK_SIZE], numbers, source, dialect, limit)
    return found


def _looked_up(
    link: Link,
    rows: Collection[Sequence[Any]],
    numbers: Sequence[int],
    source: Source,
    dialect: Dialect,
    limit: int | None,
) -> set[Key]:
    """The keys, or the values of a part, found by joining logged rows along the link's steps."""
    logged = dialect.logged(link.table, link.columns, rows)
    statement = keys_of_logged(link, logged, numbers, source, dialect)
    return _fetched(statement, [source.key[number] for number in numbers], dialect, limit)


def keys_of_logged(
    link: Link, logged: SQL, numbers: Sequence[int], source: Source, dialect: Dialect
) -> SQL:
    """A query for the keys, or the values of a part, to which logged rows lead along a link.

    Args:
        link: the link.
        logged: a query for the logged rows, with the link's columns.
        numbers: the numbers of the key's parts.
        source: the view's source.
        dialect: the SQL dialect of its database.
    """
    names = [f"matviews_{number}" for number in range(len(link.steps) + 1)]
    tables = [names[0]]
    for name, step in zip(names[1:], link.steps, strict=True):
        near, far = zip(*step.columns, strict=True)
        same = equal(_columns(dialect, name, far), _columns(dialect, names[step.near], near))
        tables.append(f"{dialect.name(step.table)} {name} ON {same}")
    parts = zip(numbers, link.key_columns, strict=True)
    selected = joined(
        ", ",
        (_selected(number, part, names[part.table], source, dialect) for number, part in parts),
    )
    columns = ", ".join(map(dialect.name, link.columns))
    return SQL(
        f"WITH {names[0]} ({columns}) AS ({logged.text}) "
        f"SELECT DISTINCT {selected.text} FROM {' JOIN '.join(tables)}",
        (*logged.params, *selected.params),
    )


def _selected(number: int, part: KeyColumn, alias: str, source: Source, dialect: Dialect) -> SQL:
    """A part of the key, read from the table with this alias, under the view's column name."""
    name = dialect.names([source.key[number].field])[0]
    text, params = _part(number, part, alias, source, dialect)
    return SQL(f"{text} AS {name}", params)


def _part(number: int, part: KeyColumn, alias: str, source: Source, dialect: Dialect) -> SQL:
    if part.column:
        return SQL(_columns(dialect, alias, [part.column])[0])
    column = source.key[number]
    renamed = {key_column(column.expression).table[1]: alias}
    text, params = source.query.compile_expression(column.expression, renamed)
    stored = as_stored(column, text, dialect)
    return SQL(stored.text, (*params, *stored.params))


def _in_view(
    number: int,
    values: Keys,
    source: Source,
    dialect: Dialect,
    limit: int,
    stages: Collection[str],
) -> set[Key]:
    """The view's keys with these values in a part, including keys that staged rows will add."""
    fields = [column.field for column in source.key]
    keys: set[Key] = set()
    for table in (source.model._meta.db_table, *stages):
        names = dialect.names(fields, dialect.name(table))
        among = dialect.selects(names[number : number + 1], values)
        query = f"SELECT {', '.join(names)} FROM {dialect.name(table)} WHERE {among.text}"
        keys |= _fetched(SQL(query, among.params), source.key, dialect, limit)
    return keys


def _in_source(number: int, values: Keys, source: Source, dialect: Dialect, limit: int) -> set[Key]:
    """The source's keys with these values in a part, before any HAVING."""
    return _fetched(
        KeyReader(source, dialect).keys_with(number, values), source.key, dialect, limit
    )


def _fetched(query: SQL, parts: Sequence[Column], dialect: Dialect, limit: int | None) -> set[Key]:
    """The rows of a query as keys, at most `limit`, without those that contain a NULL.

    They are left out before the limit: a caller that gets fewer keys takes them for all.

    Args:
        query: selects parts of the key, by the names of the view.
        parts: the parts.
        dialect: the SQL dialect of the database.
        limit: the maximum number of rows.
    """
    limited = SQL("") if limit is None else SQL(" LIMIT %s", (limit,))
    exact = exact_values([part.field for part in parts], "matviews_found", dialect)
    with connections[dialect.using].cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(exact)} FROM ({query.text}) matviews_found "
            f"WHERE {_without_null(exact)}{limited.text}",
            [*query.params, *limited.params],
        )
        return set(cursor.fetchall())


def _without_null(exact: Iterable[str]) -> str:
    return " AND ".join(f"{value} IS NOT NULL" for value in exact)


def _columns(dialect: Dialect, table: str, columns: Sequence[str]) -> list[str]:
    return qualified(table, map(dialect.name, columns))


def dependency_keys(
    dependency: Dependency, values: Collection[Sequence[Any]], source: Source, limit: int
) -> set[Key] | None:
    """The keys that changed rows of a declared dependency concern, at most `limit`.

    None stands for any key, as when a row is gone.

    Args:
        dependency: what the view declares for their model.
        values: values of its columns, as JSON has them, before and after the changes.
        source: the view's source.
        limit: the maximum number of keys.

    Raises:
        InvalidView: `depends_on` returned an invalid key.
    """
    using, fields = source.query.using, [column.field for column in source.key]
    dialect = dialect_of(using)
    known = {tuple(value) for value in values if None not in value}
    if dependency.get_keys is None:
        return set(islice(as_exact(known, fields, dialect), limit))
    pk_fields = dependency.model._meta.pk_fields
    within = Keys(tuple(known), tuple(map(dialect.kind_of, pk_fields)))
    among = KeyRange(*[field.attname for field in pk_fields], dialect=dialect, within=within)
    rows = dependency.model._base_manager.using(using).filter(among)
    if rows.count() < len(known):
        return None
    try:
        with project_locale():
            found = dependency.get_keys(rows)
            stored = _query_of_keys(found, fields, using)
            if stored is not None:
                return _fetched_keys(stored, fields, using, limit)
            return _first_keys((as_key(fields, key, using) for key in found), limit)
    except ValueError as error:
        raise InvalidView(
            f"{source.definition.label}: MatviewMeta.depends_on of {dependency.model._meta.label} "
            f"returned an invalid key: {error}"
        ) from error


def _first_keys(keys: Iterable[Key], limit: int) -> set[Key]:
    """The first keys, each counted once."""
    found: set[Key] = set()
    for key in keys:
        if len(found) >= limit:
            break
        found.add(key)
    return found


def _query_of_keys(found: Any, fields: Sequence[AnyField], using: str) -> SQL | None:
    """The query for the returned keys, if its columns are stored like the key's; else None."""
    if not isinstance(found, QuerySet) or found.db != using:
        return None
    if found.query.is_sliced or found.query.combinator:
        return None
    compiler: Any = found.order_by().query.get_compiler(using)
    try:
        query = SQL(*compiler.as_sql())
    except EmptyResultSet:
        return None
    targets = [getattr(expression, "target", None) for expression, _sql, _alias in compiler.select]
    alike = len(targets) == len(fields) and all(
        target is not None and same_type(target, field, using)
        for target, field in zip(targets, fields, strict=True)
    )
    return query if alike else None


def _fetched_keys(query: SQL, fields: Sequence[AnyField], using: str, limit: int) -> set[Key]:
    dialect = dialect_of(using)
    exact = exact_values(fields, "matviews_found", dialect)
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"WITH matviews_found ({', '.join(dialect.names(fields))}) AS ({query.text}) "
            f"SELECT DISTINCT {', '.join(exact)} FROM matviews_found "
            f"WHERE {_without_null(exact)} LIMIT %s",
            (*query.params, limit),
        )
        return set(cursor.fetchall())
