"""Conditions that are put into a source's query as expressions of Django's."""

from collections.abc import Hashable, Sequence
from typing import Any

from django.core.exceptions import FullResultSet
from django.db.models import F, Lookup

from .dialects import Dialect
from .sql import SQL, equal, qualified

__all__ = ["Absent", "KeyRange"]

Key = tuple[Any, ...]


class _Condition(Lookup):
    """A condition on columns that is written as SQL here.

    Args:
        columns: names or expressions of the columns.
        more: what else makes it the same as another.

    A lookup, because MariaDB and MySQL are told `(...) = 1` of any other, and use no index then.
    """

    prepare_rhs = False

    def __init__(self, *columns: Any, more: Hashable) -> None:
        self.more = more
        self.columns = [F(each) if isinstance(each, str) else each for each in columns]
        super().__init__(self.columns[0], None)

    def get_source_expressions(self) -> list[Any]:
        """The columns."""
        return self.columns

    def set_source_expressions(self, expressions: Sequence[Any]) -> None:
        """Other columns in their place."""
        self.columns = list(expressions)
        self.lhs = self.columns[0]

    def resolve_expression(self, *args: Any, **options: Any) -> Any:
        """The same in a query."""
        resolved = self.copy()
        columns = [each.resolve_expression(*args, **options) for each in self.columns]
        resolved.set_source_expressions(columns)
        return resolved

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it the same as another."""
        return (self.__class__, self.more, *self.columns)

    def as_sql(self, compiler: Any, _connection: Any) -> Any:
        """The condition, and its parameters.

        Raises:
            FullResultSet: it excludes nothing.
        """
        condition = self.condition([SQL(*compiler.compile(each)) for each in self.columns])
        if not condition:
            raise FullResultSet
        return tuple(condition)

    def condition(self, columns: list[SQL]) -> SQL:
        """The condition on the compiled columns."""
        raise NotImplementedError


class KeyRange(_Condition):
    """Whether columns are in a range of keys, above `low`, up to and including `high`.

    Args:
        columns: names or expressions of plain columns.
        dialect: the SQL of the database.
        low, high: keys as parameters of a statement, None for an open end.
    """

    def __init__(self, *columns: Any, dialect: Dialect, low: Key | None, high: Key | None) -> None:
        super().__init__(*columns, more=(low, high))
        self.dialect, self.low, self.high = dialect, low, high

    def condition(self, columns: list[SQL]) -> SQL:
        """As the base class has it."""
        return self.dialect.in_range([each.text for each in columns], self.low, self.high)


class Absent(_Condition):
    """Whether a table has no row with the key that columns are.

    Args:
        columns: expressions of the columns.
        table: the table, quoted.
        key: its columns, quoted, in the same order.
    """

    def __init__(self, *columns: Any, table: str, key: list[str]) -> None:
        super().__init__(*columns, more=table)
        self.table, self.key = table, key

    def condition(self, columns: list[SQL]) -> SQL:
        """As the base class has it."""
        same = equal(qualified(self.table, self.key), [each.text for each in columns])
        params = tuple(param for each in columns for param in each.params)
        return SQL(f"NOT EXISTS (SELECT 1 FROM {self.table} WHERE {same})", params)
