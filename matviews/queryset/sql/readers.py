"""Reading the rows of a source in windows or by keys from its own query."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from django.db.models import DateTimeField
from django.db.models.functions.datetime import TruncBase
from django.utils import timezone

from ...databases import Dialect
from ...databases.fields import AnyField, Column, column_of
from ...databases.keys import Key, Keys, KeySelection, Range, RangeWithout, shown
from ...databases.sql import SQL, joined
from ...exceptions import NotAdvancing
from ...redact import OMITTED, may_show_keys
from ..analysis.lineage import equal_columns
from ..analysis.source import Source
from ..analysis.source_query import SourceQuery
from ..strategy.choose import Strategy
from .conditions import DateRange, KeyFilter, KeyRange, NotInView, Wrapped, inside
from .date_ranges import DateBound, date_bounds, ranged_column

__all__ = [
    "KeyReader",
    "SourceReader",
    "WindowReader",
    "as_stored",
    "next_keys",
    "not_advancing",
    "selected",
    "whole",
]

ALL_KEYS = "matviews_all"  # alias of all keys of the source
COMPUTED = "matviews_computed"  # the CTE with the source's columns as computed


class SourceReader(Protocol):
    """Reads the rows of a source with keys in a selection, under the view's column names."""

    def rows(self, within: KeySelection, *, missing: bool = False) -> SQL:
        """A query for the rows as they will be stored; if `missing`, only those the view lacks."""

    def keys(self, within: KeySelection) -> SQL:
        """A query for the keys."""

    def keys_after(self, low: Key | None, count: int, high: Key | None = None) -> SQL:
        """A query for the next distinct keys after `low`, up to `high`, in order.

        The source has no other keys in between, but it need not have all of these.
        """


class WindowReader:
    """Pushes the range of keys into the source's own query.

    Args:
        source: the source.
        strategy: how the source is read.
        dialect: the SQL dialect of its database.
    """

    def __init__(self, source: Source, strategy: Strategy, dialect: Dialect) -> None:
        self.source, self.strategy, self.dialect = source, strategy, dialect

    def rows(self, within: KeySelection, *, missing: bool = False) -> SQL:
        query = self._inside(within, missing=missing)
        return selected(query, self.source, self.source.columns, self.dialect)

    def keys(self, within: KeySelection) -> SQL:
        """Computes nothing that HAVING does not need."""
        query = self._inside(within).keys_only([column.name for column in self.source.key])
        return selected(query, self.source, self.source.key, self.dialect)

    def keys_after(self, low: Key | None, count: int, high: Key | None = None) -> SQL:
        """Reads the table that has the key, whatever the source selects from it."""
        return _keys_of_table(self.strategy, (low, high), count, self.dialect)

    def _inside(self, within: KeySelection, *, missing: bool = False) -> SourceQuery:
        query, columns = self.source.query, [c.expression for c in self.source.key]
        if within != (None, None):
            query = query.restricted(KeyRange(*columns, dialect=self.dialect, within=within))
            query = self._with_equal_columns(query, within)
        if missing:
            query = query.restricted(_not_in_view(self.source, columns, self.dialect))
        return query

    def _with_equal_columns(self, query: SourceQuery, within: KeySelection) -> SourceQuery:
        """Repeat the condition on the key's first column for every column joined as equal to it."""
        if isinstance(within, RangeWithout) and within.within == (None, None):
            return query
        first: Any = self.source.key[0].expression
        place = (first.alias, first.target.column)
        for alias, column in equal_columns(query.tables, place):
            condition = _FirstColumn(alias, column or "", self.dialect, within)
            query = query.with_join_condition(alias, condition)
        return query


class KeyReader:
    """Pushes keys into the source's own query, whichever tables their parts come from.

    Args:
        source: the source.
        dialect: the SQL dialect of its database.
    """

    def __init__(self, source: Source, dialect: Dialect) -> None:
        self.source, self.dialect = source, dialect
        self.columns = [_comparable(column, dialect) for column in source.key]

    def rows(self, within: KeySelection, *, missing: bool = False) -> SQL:
        query = self.among(within)
        if missing:
            query = query.restricted(_not_in_view(self.source, self.columns, self.dialect))
        return selected(query, self.source, self.source.columns, self.dialect)

    def keys(self, within: KeySelection) -> SQL:
        """Computes nothing that HAVING does not need."""
        query = self.among(within).keys_only([column.name for column in self.source.key])
        return selected(query, self.source, self.source.key, self.dialect)

    def keys_after(self, low: Key | None, count: int, high: Key | None = None) -> SQL:
        """Reads all keys of the source, as no index has their order."""
        query = self.source.query.keys_only([column.name for column in self.source.key])
        keys = selected(query, self.source, self.source.key, self.dialect)
        names = self.dialect.names(_key_fields(self.source))
        ahead = self.dialect.selects(names, (low, high))
        found = next_keys(f"({keys.text}) {ALL_KEYS}", names, [ahead], count)
        return SQL(found.text, (*keys.params, *found.params))

    def keys_with(self, number: int, values: Keys) -> SQL:
        """A query for the keys with these values in a part, including those that HAVING drops."""
        query = self._restricted(self.source.query, [number], values)
        names = [column.name for column in self.source.key]
        return selected(query.ungrouped(names), self.source, self.source.key, self.dialect)

    def among(self, within: KeySelection) -> SourceQuery:
        """The source's query for some keys.

        Also filtered by what an index may serve: each plain column, and the range of a date.
        """
        assert isinstance(within, Keys)
        query, columns = self.source.query, self.source.key
        for number, column in enumerate(columns):
            if bounds := self._bounds(number, within):
                query = query.restricted(DateRange(ranged_column(column.expression), *bounds))
            elif column_of(column.expression) and len(columns) > 1:
                query = self._restricted(query, [number], within.part(number))
        return self._restricted(query, range(len(columns)), within)

    def bounds(self, within: Keys) -> list[DateBound]:
        """The ends of all ranges of dates, in which rows with these keys are."""
        return [
            bound
            for number in range(len(self.source.key))
            for bound in self._bounds(number, within)
        ]

    def _bounds(self, number: int, within: Keys) -> list[DateBound]:
        expression = self.source.key[number].expression
        if not self.dialect.has_ordered_dates or ranged_column(expression) is None:
            return []
        return date_bounds(expression, within, number)

    def _restricted(self, query: SourceQuery, numbers: Sequence[int], within: Keys) -> SourceQuery:
        """A query for the rows whose key parts are among some."""
        columns = [self.columns[number] for number in numbers]
        among = KeyFilter if len(columns) > 1 else KeyRange
        return query.restricted(among(*columns, dialect=self.dialect, within=within))


class _FirstColumn:
    """Restricts a joined column to the values that the key's first column can take."""

    def __init__(self, alias: str, column: str, dialect: Dialect, within: KeySelection) -> None:
        self.alias, self.column, self.dialect, self.within = alias, column, dialect, within

    def as_sql(self, compiler: Any, _connection: Any) -> Any:
        """Both ends belong to the range, because the key may have more columns."""
        # Until Django 6.1 the aliases that it makes up have no quotes.
        quote = getattr(compiler, "quote_name", None) or compiler.quote_name_unless_alias
        column = f"{quote(self.alias)}.{self.dialect.name(self.column)}"
        if isinstance(self.within, Keys):
            return tuple(inside(self.dialect, [column], self.within.part(0)))
        low, high = self.within.within if isinstance(self.within, RangeWithout) else self.within
        ends = [(">=", low), ("<=", high)]
        return tuple(
            joined(
                " AND ",
                (self.dialect.compares([column], sign, end[:1]) for sign, end in ends if end),
            )
        )


def whole(source: Source, dialect: Dialect, *, raw: bool = False) -> SQL:
    """A query for all rows of a source, whatever the strategy, as they will be stored.

    Args:
        source: the source.
        dialect: the SQL dialect of its database.
        raw: whether only the key is as it will be stored, and the other columns as computed.
    """
    return selected(source.query, source, source.columns, dialect, raw=raw)


def selected(
    query: SourceQuery,
    source: Source,
    columns: tuple[Column, ...],
    dialect: Dialect,
    *,
    raw: bool = False,
) -> SQL:
    """A query for columns of a source under the view's names, without rows that have a NULL key."""
    names = dialect.names([column.field for column in columns])
    stored = joined(
        ", ",
        (
            joined(" AS ", (as_stored(column, name, dialect), SQL(name)))
            if column in source.key or not raw
            else SQL(name)
            for column, name in zip(columns, names, strict=True)
        ),
    )
    computed = SQL(*query.compile())
    keyed = " AND ".join(
        f"{name} IS NOT NULL" for name in dialect.names([column.field for column in source.key])
    )
    return SQL(
        f"WITH {COMPUTED} ({', '.join(names)}) AS ({computed.text}) "
        f"SELECT {stored.text} FROM {COMPUTED} WHERE {keyed}",
        (*computed.params, *stored.params),
    )


def _not_in_view(source: Source, columns: Sequence[Any], dialect: Dialect) -> NotInView:
    """Whether a row of the source has a key that the view does not have."""
    table = dialect.name(source.model._meta.db_table)
    return NotInView(*columns, table=table, key=dialect.names(_key_fields(source)))


def _comparable(column: Column, dialect: Dialect) -> Any:
    """An expression of a key part that can be compared with what the view stores."""
    if column_of(column.expression):
        return column.expression
    return Wrapped(column.expression, partial(as_stored, column, dialect=dialect))


def as_stored(column: Column, name: str, dialect: Dialect) -> SQL:
    """A column of the source, given by its SQL, as the view's column will store it."""
    expression = column.expression
    if isinstance(expression, TruncBase) and isinstance(expression.output_field, DateTimeField):
        with timezone.override(None):
            zone = expression.get_tzname()
        # The function returns a time in a time zone; Django would convert it when it reads it.
        if zone not in (None, "UTC"):
            return dialect.utc(name, zone)
    return SQL(dialect.stored(column, name))


def _key_fields(source: Source) -> list[AnyField]:
    return [column.field for column in source.key]


def _keys_of_table(strategy: Strategy, ahead: Range, count: int, dialect: Dialect) -> SQL:
    """The next distinct keys of a range in the table that has the key of a windowed source."""
    assert strategy.model is not None
    table, names = dialect.name(strategy.model._meta.db_table), dialect.names(strategy.fields)
    known = (
        SQL(f"{name} IS NOT NULL")
        for name, field in zip(names, strategy.fields, strict=True)
        if field.null
    )
    inside_range = dialect.selects(names, ahead)
    unique = any(field.unique for field in strategy.fields)
    return next_keys(table, names, [*known, inside_range], count, distinct=not unique)


def next_keys(
    table: str,
    key: Sequence[str],
    where: Iterable[SQL],
    count: int,
    *,
    distinct: bool = False,
) -> SQL:
    """A query for the next keys of a table, in order.

    Args:
        table: the table, quoted.
        key: the columns.
        where: conditions on its rows.
        count: how many keys.
        distinct: whether several rows may have one key.
    """
    condition, columns = joined(" AND ", where), ", ".join(key)
    return SQL(
        f"SELECT {'DISTINCT ' * distinct}{columns} FROM {table}"
        f"{' WHERE ' * bool(condition)}{condition.text} ORDER BY {columns} LIMIT %s",
        (*condition.params, count),
    )


def not_advancing(key: Key, low: Key | None) -> NotAdvancing:
    """The error about a key that is not after `low` to the database that returned it."""
    words = f"{shown(key)}{f' after {shown(low)}' if low else ''}"
    return NotAdvancing(
        f"the database returns the key {words if may_show_keys() else f'({OMITTED})'}, but does "
        f"not find it there again: check the type, collation and index of its columns."
    )
