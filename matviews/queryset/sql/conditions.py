"""Conditions that are put into a source's query as expressions of Django's."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from django.core.exceptions import FullResultSet
from django.db.models import Expression, F, Lookup

from ...databases import Dialect
from ...databases.keys import Within
from ...databases.sql import SQL, equal, qualified

__all__ = ["Absent", "Filtered", "Inside", "Wrapped"]


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


class Inside(_Condition):
    """Whether columns are in a range of keys, or among some.

    Args:
        columns: names or expressions of the columns; plain ones, if it is a range.
        dialect: the SQL of the database.
        within: the range or the keys, as parameters of a statement.
    """

    def __init__(self, *columns: Any, dialect: Dialect, within: Within) -> None:
        super().__init__(*columns, more=within)
        self.dialect, self.within = dialect, within

    def condition(self, columns: list[SQL]) -> SQL:
        inside = self.dialect.inside([each.text for each in columns], self.within)
        params = (param for each in columns for param in each.params)
        return SQL(inside.text, (*params, *inside.params))


class Filtered(Inside):
    """Whether columns are among some keys, where no index serves them together: each row is asked."""

    def condition(self, columns: list[SQL]) -> SQL:
        return self.dialect.opaque(super().condition(columns))


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
        same = equal(qualified(self.table, self.key), [each.text for each in columns])
        params = tuple(param for each in columns for param in each.params)
        return SQL(f"NOT EXISTS (SELECT 1 FROM {self.table} WHERE {same})", params)


class Wrapped(Expression):
    """An expression with more SQL around it.

    Args:
        expression: the expression.
        wrap: what makes its SQL, which has no parameters yet, that of this one, whose own come last.
    """

    def __init__(self, expression: Any, wrap: Callable[[str], SQL]) -> None:
        super().__init__(output_field=expression.output_field)
        self.expression, self.wrap = expression, wrap

    def get_source_expressions(self) -> list[Any]:
        """The expression."""
        return [self.expression]

    def set_source_expressions(self, expressions: Sequence[Any]) -> None:
        """Another one in its place."""
        [self.expression] = expressions

    def as_sql(self, compiler: Any, _connection: Any) -> Any:
        """The SQL, and its parameters."""
        sql, params = compiler.compile(self.expression)
        wrapped = self.wrap(sql)
        return wrapped.text, (*params, *wrapped.params)
