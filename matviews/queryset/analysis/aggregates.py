"""What the aggregates of a source add up, and what a row contributes to them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from django.db.models import Aggregate, Avg, Case, Count, Expression, Max, Min, Sum, Value
from django.db.models.expressions import (
    Col,
    CombinedExpression,
    ExpressionWrapper,
    Ref,
    SQLiteNumericMixin,
)
from django.db.models.functions import Coalesce, NullIf
from django.db.models.lookups import Lookup
from django.db.models.sql.where import WhereNode

from ...databases import Dialect, sums_of
from ...databases.fields import DATE, DATETIME, NUMBER, WHOLE, AnyField, family
from .expressions import walk
from .row_functions import inexact_part

__all__ = [
    "AVERAGE", "COUNT", "LARGEST", "SMALLEST", "SUM", "Added", "Known", "aggregates_in",
    "aggregates_of_groups", "of_aggregate", "places_of", "places_of_column", "replaced",
    "row_columns",
]  # fmt: skip

COUNT, SUM, AVERAGE, LARGEST, SMALLEST = "count", "sum", "average", "largest", "smallest"
KINDS: dict[type, str] = {Count: COUNT, Sum: SUM, Avg: AVERAGE, Max: LARGEST, Min: SMALLEST}

MAX_PLACES = 20
ORDERED = {WHOLE, NUMBER, DATE, DATETIME}
COMPARISONS = {"exact", "gt", "gte", "lt", "lte", "in", "range", "isnull"}


@dataclass(frozen=True, slots=True)
class Added:
    """What is counted, and maybe added up: the values of an argument, or rows."""

    #: The values; None if each row counts.
    argument: Any | None
    #: Which rows it is about; None for all.
    condition: Any | None
    #: Whether the values are added up, too.
    summed: bool = False
    #: Digits after the decimal point of the sum.
    places: int = 0
    #: Which extremes are kept: `LARGEST`, `SMALLEST`.
    extremes: frozenset[str] = frozenset()

    def __or__(self, other: "Added") -> "Added":
        """What both keep of the same values."""
        return replace(
            self, summed=self.summed or other.summed, places=max(self.places, other.places),
            extremes=self.extremes | other.extremes,
        )  # fmt: skip


class Known(SQLiteNumericMixin, Expression):
    """SQL without parameters, in place of an expression.

    Args:
        sql: the SQL.
        output_field: that of the expression.
    """

    def __init__(self, sql: str, output_field: AnyField) -> None:
        super().__init__(output_field=output_field)
        self.sql = sql

    def as_sql(self, _compiler: Any, _connection: Any) -> Any:
        return self.sql, ()


def replaced(expression: Any, known: Callable[[Any], str]) -> Any:
    """An expression with the parts that are `known`, "" for those that are not, replaced."""
    if isinstance(expression, Ref):
        [source] = expression.get_source_expressions()
        return replaced(source, known)
    if sql := known(expression):
        return Known(sql, expression.output_field)
    parts = expression.get_source_expressions()
    if not parts:
        return expression
    copy = expression.copy()
    copy.set_source_expressions([part and replaced(part, known) for part in parts])
    return copy


def aggregates_in(expression: Any) -> Iterator[Any]:
    """The aggregates that an expression consists of.

    Raises:
        ValueError: it computes something else of them, or from something else.
    """
    if isinstance(expression, Ref):
        yield from aggregates_in(expression.get_source_expressions()[0])
    elif isinstance(expression, Aggregate):
        yield expression
    elif type(expression) in (Coalesce, ExpressionWrapper):
        for part in expression.get_source_expressions():
            yield from aggregates_in(part)
    elif isinstance(expression, Col):
        raise ValueError(f"the column {expression.target.column}, which is not part of the key")
    elif not isinstance(expression, Value):
        raise ValueError(f"{type(expression).__name__} of aggregates")


def aggregates_of_groups(condition: Any) -> Iterator[Any]:
    """The aggregates that a condition on groups compares.

    Raises:
        ValueError: it has something else in it; the message says what.
    """
    if isinstance(condition, WhereNode):
        for child in condition.children:
            yield from aggregates_of_groups(child)
    elif isinstance(condition, Lookup) and condition.lookup_name in COMPARISONS:
        for part in condition.get_source_expressions():
            for aggregate in aggregates_in(part):
                if isinstance(aggregate, Avg):  # of as many digits as the database likes
                    raise ValueError("an average")  # noqa: TRY004 - callers tell people what it is
                yield aggregate
    else:
        raise ValueError(getattr(condition, "lookup_name", type(condition).__name__))


def of_aggregate(aggregate: Any, table: str, dialect: Dialect) -> tuple[str, Added]:
    """The kind of an aggregate, such as `SUM`, and what it counts or adds up.

    Args:
        aggregate: the aggregate.
        table: alias of the table whose rows are aggregated.
        dialect: the SQL dialect of the database.

    Raises:
        ValueError: it cannot be kept by adding and subtracting; the message says what it is.
    """
    name, kind, condition = _accepted(aggregate, dialect)
    argument, *_others = aggregate.get_source_expressions()
    if kind == COUNT:
        return kind, Added(_counted(argument, table, dialect), condition)
    if kind in (LARGEST, SMALLEST):
        if not isinstance(argument, Col) or family(argument.target) not in ORDERED:
            raise ValueError(f"{name} of something other than a column of numbers or dates")
        return kind, Added(argument, condition, extremes=frozenset({kind}))
    places = _places_of_argument(argument, name, dialect)
    if kind == AVERAGE and places and any(map(_chooses, (argument, *walk(argument)))):
        raise ValueError("Avg of decimals that are chosen by Case, Coalesce or NullIf")
    return kind, Added(argument, condition, summed=True, places=places)


def _accepted(aggregate: Any, dialect: Dialect) -> tuple[str, str, Any | None]:
    """The name and the kind of an aggregate, and its condition on rows."""
    name = type(aggregate).__name__
    kind = KINDS.get(type(aggregate))
    if kind is None:
        raise ValueError(f"{name}, which is not Count, Sum, Avg, Min or Max")
    if aggregate.distinct:
        raise ValueError(f"{name}(distinct=True)")
    if aggregate.extra or getattr(aggregate, "order_by", None):
        raise ValueError(f"{name} with custom SQL")
    condition = aggregate.filter
    condition = getattr(condition, "condition", condition)  # of Django 6.1
    if condition is not None and (part := inexact_part(condition, dialect)):
        raise ValueError(f"{name} with a filter by {part}")
    return name, kind, condition


def _places_of_argument(argument: Any, name: str, dialect: Dialect) -> int:
    if part := inexact_part(argument, dialect, may_fail=True):
        raise ValueError(f"{name} of {part}")
    if family(argument.output_field) not in (WHOLE, NUMBER):
        raise ValueError(f"{name} of a {family(argument.output_field)}")
    places = places_of(argument)
    if places and not sums_of(dialect.using).adds_decimals:
        raise ValueError(f"{name} of decimals, which this database adds up as floats")
    return places


def _chooses(part: Any) -> bool:
    return isinstance(part, (Case, Coalesce, NullIf))


def _counted(argument: Any, table: str, dialect: Dialect) -> Any | None:
    """The values that are counted; None if each row counts."""
    if type(argument).__name__ == "Star":
        return None
    if isinstance(argument, Col) and argument.target.primary_key and argument.alias == table:
        return None  # any other column may be NULL in the database, whatever its model says
    if part := inexact_part(argument, dialect, may_fail=True):
        raise ValueError(f"Count of {part}")
    return argument


def places_of(expression: Any) -> int:
    """How many digits after the decimal point the values of an expression have at most.

    Raises:
        ValueError: they are floats, or it is unknown.
    """
    found = _places(expression)
    if found > MAX_PLACES:
        raise ValueError(f"numbers with more than {MAX_PLACES} digits after the decimal point")
    return found


def _places(part: Any) -> int:
    if isinstance(part, Value):
        return _places_of_value(part.value)
    if isinstance(part, Col):
        return places_of_column(part.target)
    parts = [each for each in part.get_source_expressions() if each is not None]
    if isinstance(part, CombinedExpression):
        each = [_places(side) for side in parts]
        return sum(each) if part.connector == part.MUL else max(each)
    if isinstance(part, Case):
        results = [when.result for when in part.cases]
        return max(map(_places, [part.default, *results]))
    if isinstance(part, (Coalesce, NullIf, ExpressionWrapper)):
        return max(map(_places, parts))
    if family(part.output_field) == WHOLE:
        return 0
    raise ValueError(f"numbers that {type(part).__name__} returns")


def _places_of_value(value: Any) -> int:
    if value is None or isinstance(value, int):
        return 0
    if isinstance(value, Decimal) and value.is_finite():
        return max(0, -int(value.as_tuple().exponent))
    raise ValueError(f"a constant that is a {type(value).__name__}")


def places_of_column(field: Any) -> int:
    """How many digits after the decimal point a column has, as its model says.

    Raises:
        ValueError: as `places_of`.
    """
    kind = family(field)
    if kind == WHOLE:
        return 0
    places: int | None = getattr(field, "decimal_places", None)
    if kind == NUMBER and places is not None:
        return places
    if field.get_internal_type() == "FloatField":
        raise ValueError(f"floats ({field.name}), whose sum depends on the order of adding")
    raise ValueError(f"{field.name}, whose digits after the decimal point are not limited")


def row_columns(expression: Any) -> Iterator[Any]:
    """The plain columns that an expression reads."""
    return (part for part in (expression, *walk(expression)) if isinstance(part, Col))
