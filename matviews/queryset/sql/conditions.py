"""Conditions that are added to a source's query as Django expressions."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from django.core.exceptions import FullResultSet
from django.db.models import Expression, F, Lookup

from ...databases import Dialect
from ...databases.fields import AnyField, column_of
from ...databases.keys import KeyRows, KeySelection
from ...databases.sql import SQL, equal, qualified
from .date_ranges import DateBound

__all__ = ["DateRange", "KeyFilter", "KeyRange", "NotInView", "Wrapped", "inside"]


def inside(
    dialect: Dialect, columns: Sequence[str], within: KeySelection, fields: Sequence[AnyField] = ()
) -> SQL:
    """As `Dialect.selects`, also among keys that the statement finds itself."""
    if not isinstance(within, KeyRows):
        return dialect.selects(columns, within, fields)
    found = f"SELECT {', '.join(within.names)} FROM {within.table}"
    return SQL(f"{dialect.row(columns)} IN ({found})")


class _Condition(Lookup):
    """A condition on columns whose SQL is written here.

    Args:
        columns: names or expressions of the columns.
        more: what else distinguishes it from other conditions.

    It is a lookup, because Django writes any other condition as `(...) = 1` on MariaDB and MySQL,
    which uses no index.
    """

    prepare_rhs = False

    def __init__(self, *columns: Any, more: Hashable) -> None:
        self.more = more
        self.columns = [F(column) if isinstance(column, str) else column for column in columns]
        super().__init__(self.columns[0], None)

    def get_source_expressions(self) -> list[Any]:
        return self.columns

    def set_source_expressions(self, expressions: Sequence[Any]) -> None:
        self.columns = list(expressions)
        self.lhs = self.columns[0]

    def resolve_expression(self, *args: Any, **options: Any) -> Any:
        resolved = self.copy()
        columns = [column.resolve_expression(*args, **options) for column in self.columns]
        resolved.set_source_expressions(columns)
        return resolved

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.__class__, self.more, *self.columns)

    def as_sql(self, compiler: Any, _connection: Any) -> Any:
        """The condition and its parameters.

        Raises:
            FullResultSet: it excludes nothing.
        """
        condition = self.condition([SQL(*compiler.compile(column)) for column in self.columns])
        if not condition:
            raise FullResultSet
        return tuple(condition)

    def condition(self, columns: list[SQL]) -> SQL:
        """The condition on the compiled columns."""
        raise NotImplementedError


class KeyRange(_Condition):
    """Whether columns are in a range of keys, or among keys.

    Args:
        columns: names or expressions of the columns; plain columns for a range.
        dialect: the SQL dialect of the database.
        within: the range or the keys.
    """

    def __init__(self, *columns: Any, dialect: Dialect, within: KeySelection) -> None:
        super().__init__(*columns, more=within)
        self.dialect, self.within = dialect, within

    def condition(self, columns: list[SQL]) -> SQL:
        places = [column_of(column) for column in self.columns]
        fields = [place[1] for place in places if place] if all(places) else []
        found = inside(self.dialect, [column.text for column in columns], self.within, fields)
        params = (param for column in columns for param in column.params)
        return SQL(found.text, (*params, *found.params))


class KeyFilter(KeyRange):
    """Whether columns are among keys, for columns of several tables, which no index serves."""

    def condition(self, columns: list[SQL]) -> SQL:
        return self.dialect.hide_from_optimizer(super().condition(columns))


class DateRange(_Condition):
    """Whether a column of dates is in a range, from the lower end to below the upper one."""

    def __init__(self, column: Any, low: DateBound, high: DateBound) -> None:
        super().__init__(column, more=(low, high))
        self.ends = low, high

    def condition(self, columns: list[SQL]) -> SQL:
        [(text, params)] = columns
        low, high = self.ends
        return SQL(f"({text} >= %s AND {text} < %s)", (*params, low, *params, high))


class NotInView(_Condition):
    """Whether a table has no row with the key that columns hold.

    Args:
        columns: expressions of the columns.
        table: the table, quoted.
        key: its columns, quoted, in the same order.
    """

    def __init__(self, *columns: Any, table: str, key: list[str]) -> None:
        super().__init__(*columns, more=table)
        self.table, self.key = table, key

    def condition(self, columns: list[SQL]) -> SQL:
        same = equal(qualified(self.table, self.key), [column.text for column in columns])
        params = tuple(param for column in columns for param in column.params)
        return SQL(f"NOT EXISTS (SELECT 1 FROM {self.table} WHERE {same})", params)


class Wrapped(Expression):
    """An expression with more SQL around it.

    Args:
        expression: the expression.
        wrap: turns its SQL, without parameters, into this one's; own parameters come last.
    """

    def __init__(self, expression: Any, wrap: Callable[[str], SQL]) -> None:
        super().__init__(output_field=expression.output_field)
        self.expression, self.wrap = expression, wrap

    def get_source_expressions(self) -> list[Any]:
        return [self.expression]

    def set_source_expressions(self, expressions: Sequence[Any]) -> None:
        [self.expression] = expressions

    def as_sql(self, compiler: Any, _connection: Any) -> Any:
        sql, params = compiler.compile(self.expression)
        wrapped = self.wrap(sql)
        return wrapped.text, (*params, *wrapped.params)
