"""Whether a column of a source can be NULL, as far as its expression shows."""

from collections.abc import Callable, Iterable
from typing import Any

from django.db.models import (
    Aggregate,
    Avg,
    Case,
    Exists,
    Func,
    Max,
    Min,
    StdDev,
    Subquery,
    Sum,
    Value,
    Variance,
    When,
    Window,
)
from django.db.models.expressions import Col, CombinedExpression, ExpressionWrapper, Ref
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import (
    Coalesce,
    Concat,
    ConcatPair,
    FirstValue,
    Greatest,
    JSONObject,
    Lag,
    LastValue,
    Lead,
    Least,
    NthValue,
    NullIf,
)
from django.db.models.sql import Query

from ...databases import dialect_of
from .source_query import SourceQuery

__all__ = ["null_reason"]

# NULL if an argument is, and only then.
STRICT = (CombinedExpression, ExpressionWrapper)
AGGREGATES = (Sum, Avg, Min, Max, StdDev, Variance)


def null_reason(expression: Any, query: SourceQuery) -> str:
    """Why a column can be NULL, for a person; "" if it cannot, or if that is unknown."""
    return _Nulls(query).reason(expression)


class _Nulls:
    """Which tables of a query may have no row, and whether its rows are groups."""

    def __init__(self, query: SourceQuery) -> None:
        self.query = query
        self.tables = {table.alias: table for table in query.tables}
        self.never_null = query.never_null()

    def reason(self, expression: Any) -> str:
        """Why an expression can be NULL; "" if it cannot, or if that is unknown."""
        for kind, rule in self._rules:
            if isinstance(expression, kind):
                return rule(self, expression)
        return ""

    def _first(self, expressions: Iterable[Any]) -> str:
        return next(filter(None, map(self.reason, expressions)), "")

    def _column(self, column: Any) -> str:
        alias = column.alias
        if (alias, column.target.column) in self.never_null:
            return ""
        while table := self.tables.get(alias):
            if table.outer:
                return f"{self.tables[column.alias].table} may have no matching row"
            alias = table.parent
        named = f"{column.target.model._meta.label}.{column.target.name}"
        return f"{named} may be NULL" if column.alias in self.tables and column.target.null else ""

    def _aggregate(self, expression: Any) -> str:
        name = type(expression).__name__
        if expression.empty_result_set_value is not None or not isinstance(expression, AGGREGATES):
            return ""
        if expression.filter is not None:
            return f"{name} is NULL if its filter matches no row"
        if getattr(expression, "function", "").endswith("_SAMP"):
            return f"{name} of a sample of one row is NULL"
        if not self.query.grouping:
            return f"{name} of no rows is NULL"
        inner = self._first(Func.get_source_expressions(expression))
        return f"{name} of no values is NULL, and {inner}" if inner else ""

    def _coalesce(self, expression: Any) -> str:
        reasons = [self.reason(argument) for argument in expression.get_source_expressions()]
        return reasons[-1] if all(reasons) else ""

    def _case(self, expression: Any) -> str:
        default = expression.default
        if isinstance(default, Value) and default.value is None:
            return "Case has no default"
        return self._first([*expression.cases, default])

    def _window(self, expression: Any) -> str:
        function = expression.source_expression
        if isinstance(function, (Lag, Lead)):
            arguments = function.get_source_expressions()
            return self._first(arguments) if len(arguments) > 2 else (
                f"{type(function).__name__} without a default is NULL at the edge of its partition"
            )  # fmt: skip
        if isinstance(function, NthValue):
            return "NthValue is NULL where there are fewer rows"
        return self._first(function.get_source_expressions()[:1]) if isinstance(
            function, (FirstValue, LastValue)
        ) else ""  # fmt: skip

    def _extreme(self, expression: Any) -> str:
        reasons = [self.reason(argument) for argument in expression.get_source_expressions()]
        if dialect_of(self.query.using).extremes_skip_nulls:
            return reasons[0] if all(reasons) else ""
        return next(filter(None, reasons), "")

    def _function(self, expression: Any) -> str:
        """Django's own functions return NULL for NULL; other functions are unknown."""
        name = str(expression.extra.get("function", expression.function)).upper()
        if name == "COALESCE":
            return self._coalesce(expression)
        if name == "NULLIF":
            return "NULLIF is NULL where its arguments are equal"
        strict = type(expression).__module__.startswith("django.db.models.functions")
        return self._first(expression.get_source_expressions()) if strict else ""

    _rules: tuple[tuple[Any, Callable[["_Nulls", Any], str]], ...] = (
        (Col, _column),
        (Value, lambda _nulls, expression: "its value is None" if expression.value is None else ""),
        (Ref, lambda nulls, expression: nulls.reason(expression.source)),
        (Aggregate, _aggregate),
        (Coalesce, _coalesce),
        (Case, _case),
        (When, lambda nulls, expression: nulls.reason(expression.result)),
        (Exists, lambda _nulls, _each: ""),
        (
            Subquery,
            lambda _nulls, expression: (
                "" if expression.template.startswith("ARRAY") else "the subquery may have no row"
            ),
        ),
        # What a Subquery resolves to since Django 6.1.
        (Query, lambda _nulls, _each: "the subquery may have no row"),
        (Window, _window),
        (NullIf, lambda _nulls, _each: "NullIf is NULL where its arguments are equal"),
        (KeyTransform, lambda _nulls, _each: "the JSON may not have the key"),
        ((Concat, ConcatPair, JSONObject), lambda _nulls, _each: ""),
        ((Greatest, Least), _extreme),
        (STRICT, lambda nulls, expression: nulls._first(expression.get_source_expressions())),
        (Func, _function),
    )
