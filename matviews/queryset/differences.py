"""Compares a view with its source, in one statement and so at one point in time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any

from django.db import connections

from ..databases import ROWS
from ..databases.fields import DATE, DATETIME, AnyField, Column, family
from ..databases.keys import Key, KeySelection, Range
from ..databases.sql import SQL, joined
from .analysis.source_query import from_database
from .plan import Plan
from .sql.statements import Statements

__all__ = ["Difference", "Differences", "Kind", "compare", "ranges"]


PARSED: dict[str, Callable[[str], Any]] = {
    DATE: date.fromisoformat,
    DATETIME: datetime.fromisoformat,
}


class Kind(Enum):
    """How the view and its source can differ on a key."""

    MISSING = "missing"
    DIFFERING = "differing"
    SURPLUS = "surplus"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One key on which view and source differ; values by the names of the view's fields."""

    #: How they differ.
    kind: Kind
    #: The values of the key's fields.
    key: dict[str, Any]
    #: The values in the view; None if the key is missing there.
    in_view: dict[str, Any] | None
    #: The values in the source; None if the key is surplus.
    in_source: dict[str, Any] | None
    #: The key in exact form; () if it has none.
    exact: Key = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """What a comparison found."""

    #: How many rows of the source were compared.
    rows_compared: int
    #: How many keys differ, by kind.
    counts: dict[Kind, int]
    #: The first few of each kind.
    examples: tuple[Difference, ...]


def ranges(plan: Plan, size: int, low: Key | None = None) -> Iterator[Range]:
    """Ranges of keys above `low`, each with at most `size` keys of the view.

    They have about as many keys of the source. A staged source is compared as a whole.
    """
    if plan.strategy.staged:
        yield None, None
        return
    statements = plan.statements()
    while True:
        of_source = statements.next_source_keys(low, size).high
        high = statements.next_view_keys(low, size, [(of_source, None)] if of_source else ()).high
        high = high or of_source
        yield low, high
        if high is None:
            return
        low = high


def compare(
    plan: Plan, within: KeySelection, examples: int, statements: Statements | None = None
) -> Differences:
    """Compare a range of the view, or some keys, with its source.

    Args:
        plan: the plan of the view.
        within: the range or the keys.
        examples: the maximum number of examples of each kind.
        statements: those that read the source; by default, as a full refresh would.
    """
    comparison = _Comparison(plan, statements or plan.statements())
    statement = comparison.statement(within, examples)
    with connections[plan.dialect.using].cursor() as cursor:
        cursor.execute(*statement)
        rows = cursor.fetchall()
    counts = dict.fromkeys(Kind, 0) | {Kind(row[0]): int(row[1]) for row in rows if row[0]}
    rows_compared = next(int(row[1]) for row in rows if not row[0])
    found = tuple(comparison.difference(row) for row in rows if row[0])
    return Differences(rows_compared=rows_compared, counts=counts, examples=found)


class _Comparison:
    """The statement of a comparison, and how its rows are read.

    A row has the kind ("" for the number of all rows), the number of keys of that kind, and for
    each column the value in the view and the value in the source.
    """

    def __init__(self, plan: Plan, statements: Statements) -> None:
        self.plan, self.statements = plan, statements
        self.columns: list[Column] = list(plan.source.columns)
        self.names = plan.dialect.names([column.field for column in self.columns])

    def statement(self, within: KeySelection, examples: int) -> SQL:
        """One query for everything, which computes the source once."""
        table, key = self.statements.table, self.statements.key
        rows = self.statements.reader.rows(within)
        same, is_null = self.statements.same, self.plan.dialect.is_null
        of_view = joined(
            " AND ", [*self.statements.of_view(within), SQL(is_null(f"{ROWS}.{key[0]}"))]
        )
        parts = [
            # The first part reads both sides, so that it determines the types of the columns.
            self._part(
                Kind.DIFFERING, f"{ROWS} JOIN {table} ON {same}", self.statements.differs_sql()
            ),
            self._part(
                Kind.MISSING,
                f"{ROWS} LEFT JOIN {table} ON {same}",
                SQL(is_null(f"{table}.{key[0]}")),
            ),
            self._part(Kind.SURPLUS, f"{table} LEFT JOIN {ROWS} ON {same}", of_view),
        ]
        found = joined(" UNION ALL ", parts)
        names = [f"c{place}" for place in range(2 * len(self.columns))]
        values = [*map(self._selected, 2 * self.columns, names), *self._exact()]
        nothing = ", ".join(["NULL"] * len(values))
        width, selected = ", ".join(names), ", ".join(values)
        return SQL(
            f"WITH {ROWS} AS ({rows.text}), matviews_found AS ({found.text}), "
            f"matviews_counted AS (SELECT kind, "
            f"COUNT(*) OVER (PARTITION BY kind) AS total, {width}, "
            f"ROW_NUMBER() OVER (PARTITION BY kind ORDER BY kind) AS place FROM matviews_found) "
            f"SELECT kind, total, {selected} FROM matviews_counted WHERE place <= %s "
            f"UNION ALL SELECT '', COUNT(*), {nothing} FROM {ROWS}",
            (*rows.params, *found.params, examples),
        )

    def _exact(self) -> list[str]:
        """The key's columns as exact values; empty if one of them has no exact form."""
        fields, kinds = [column.field for column in self.columns], self.statements.kinds
        if not self.statements.exact:
            return []
        places = [fields.index(field) for field in self.statements.key_fields]
        found = [
            self.plan.dialect.exact(kind, f"COALESCE(c{place}, c{place + len(fields)})")
            for kind, place in zip(kinds, places, strict=True)
        ]
        return [value for value in found if value]

    def _part(self, kind: Kind, tables: str, condition: SQL) -> SQL:
        sides = [f"{side}.{name}" for side in (self.statements.table, ROWS) for name in self.names]
        columns = ", ".join(f"{side} AS c{place}" for place, side in enumerate(sides))
        return SQL(
            f"SELECT '{kind.value}' AS kind, {columns} FROM {tables} WHERE {condition.text}",
            condition.params,
        )

    def difference(self, row: tuple[Any, ...]) -> Difference:
        """The difference that a row of the statement is about."""
        kind, width = Kind(row[0]), len(self.columns)
        in_view = self._values(row[2 : 2 + width])
        in_source = self._values(row[2 + width : 2 + 2 * width])
        of_key = in_view if kind is Kind.SURPLUS else in_source
        return Difference(
            kind=kind,
            key={field.name: of_key[field.name] for field in self.statements.key_fields},
            in_view=None if kind is Kind.MISSING else in_view,
            in_source=None if kind is Kind.SURPLUS else in_source,
            exact=tuple(row[2 + 2 * width :]),
        )

    def _values(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return {
            column.field.name: self._value(column.field, value)
            for column, value in zip(self.columns, values, strict=True)
        }

    def _selected(self, column: Column, name: str) -> str:
        """A value; dates as text, because drivers cannot return all that the database can store."""
        dialect = self.plan.dialect
        if family(column.field) not in (DATE, DATETIME):
            return name
        return dialect.exact(dialect.kind_of(column.field), name) or name

    def _value(self, field: AnyField, value: Any) -> Any:
        """A value as Python has it, or else as the database returned it."""
        try:
            if family(field) in (DATE, DATETIME) and isinstance(value, str):
                value = PARSED[family(field)](value)
            return from_database(field, value, self.plan.dialect.using)
        except Exception:  # noqa: BLE001 - a field may raise anything for a value it did not write
            return value
