"""How a view's source is read, windowed or staged, and why; whether it can be incremental.

The range of a window can be pushed into the source if it commutes with the query, an index serves
it, and the key is provably unique: then the windows of the source are those of the view. Any other
source is evaluated once, into a staging table.

Dirty keys can be pushed into more sources than ranges can: they need no index, and a key may be
spread over tables, or be computed from one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from django.db.models import Model

from ...databases import Dialect, dialect_of
from ...databases.fields import (
    DATE,
    DATETIME,
    TEXT,
    WHOLE,
    AnyField,
    Column,
    column_of,
    family,
    indexed_columns,
    model_of_table,
)
from ..analysis.columns import exact_values, same_type
from ..analysis.expressions import columns_in, has_aggregate_or_window, is_truncated
from ..analysis.lineage import key_is_unique, undetermined
from ..analysis.row_functions import SESSION, collation_of, inexact_part, text_collations
from ..analysis.source import Source

__all__ = ["Obstacle", "Strategy", "choose_strategy", "inexact_key_obstacles"]

_STORED = (
    "Store it in a column of the source; or compute it as the documentation describes under "
    '"Computed keys".'
)
COMPUTED = {DATE, WHOLE, "UUID"}  # the kinds of computed key parts


class Obstacle(NamedTuple):
    """What forbids a strategy, for a person."""

    reason: str
    #: What to change in the view.
    way_out: str


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a view's source is read."""

    #: Whether it is evaluated once, into a staging table; if not, window by window.
    staged: bool
    #: Why this strategy was chosen, for a person.
    reason: str
    #: If windowed, the alias of the table that has the key.
    alias: str = ""
    #: If windowed, the fields of that table that are the key, in order.
    fields: tuple[AnyField, ...] = ()
    #: If windowed, or staged because an index is missing, the model of that table.
    model: type[Model] | None = None
    #: If staged because an index is missing, the names of the fields it should begin with.
    missing_index: tuple[str, ...] = ()
    #: Why incremental refreshes are impossible, for a person; "" if they are possible.
    incremental_obstacle: str = ""
    #: What to change to make them possible.
    way_out: str = ""

    @property
    def name(self) -> str:
        """What the strategy is called: "staged" or "windowed"."""
        return "staged" if self.staged else "windowed"

    @property
    def is_incremental(self) -> bool:
        """Whether dirty keys alone can be refreshed."""
        return not self.incremental_obstacle


def choose_strategy(source: Source) -> Strategy:
    """The strategy for a source: windowed unless something forbids it."""
    if obstacle := next(_windowing_obstacles(source), None):
        return _staged(source, obstacle.reason)
    places = [column_of(column.expression) for column in source.key]
    alias = places[0][0]  # type: ignore[index]
    fields = tuple(field for _alias, field in places)  # type: ignore[misc]
    table = next(joined.table for joined in source.query.tables if joined.alias == alias)
    model = model_of_table(table)
    assert model is not None  # `_windowing_obstacles` has checked
    columns = tuple(field.column for field in fields)
    names = ", ".join(field.name for field in fields)
    if not any(index[: len(columns)] == columns for index in indexed_columns(model)):
        return replace(
            _staged(source, f"no index of {model._meta.label} begins with {names}"),
            model=model,
            missing_index=tuple(field.name for field in fields),
        )
    reason = f"the key is {model._meta.label} ({names}), which an index serves"
    return Strategy(staged=False, reason=reason, alias=alias, fields=fields, model=model)


def _staged(source: Source, reason: str) -> Strategy:
    obstacle = next(_incremental_obstacles(source), Obstacle("", ""))
    return Strategy(
        staged=True, reason=reason, incremental_obstacle=obstacle.reason, way_out=obstacle.way_out
    )


def _windowing_obstacles(source: Source) -> Iterator[Obstacle]:
    """Why a window cannot be pushed into a query, apart from a missing index."""
    yield from _query_obstacles(source)
    yield from _key_obstacles(source)


def inexact_key_obstacles(source: Source) -> Iterator[Obstacle]:
    """Parts of the key without an exact form: a batch could not start where another ended."""
    dialect = dialect_of(source.query.using)
    for column in source.key:
        if not exact_values([column.field], "", dialect):
            yield Obstacle(
                f"key field {column.name} is {dialect.kind_of(column.field)}, which has no exact "
                f"text form, so all keys are one batch",
                "Use whole numbers, texts, UUIDs or dates as the key; Cast() in source() converts "
                "to one.",
            )


def _query_obstacles(source: Source) -> Iterator[Obstacle]:
    """Why no condition on the key can be pushed into a query."""
    query = source.query
    if query.union:
        yield Obstacle(
            "a UNION, INTERSECT or EXCEPT has no single place for the range of a window",
            "Make a view of each query.",
        )
    if query.sliced:
        yield Obstacle("a slice depends on all rows", "Slice the view when it is read.")
    if query.distinct_on:
        yield Obstacle(
            "DISTINCT ON depends on rows outside a window",
            "Group by the key, and use aggregates like Max().",
        )
    if query.has_raw_sql:
        yield Obstacle("raw SQL cannot be analysed", "Write it with Django's expressions.")
    if query.has_window:
        yield Obstacle(
            "a window function depends on rows outside a window",
            "Compute it when the view is read.",
        )


def _key_obstacles(source: Source) -> Iterator[Obstacle]:
    yield from inexact_key_obstacles(source)
    places = {}
    for column in source.key:
        if (place := column_of(column.expression)) is None:
            yield Obstacle(f"key field {column.name} is computed", _STORED)
            return
        places[column.name] = place
        yield from _type_obstacles(column, place[1], source)
    aliases = {alias for alias, _field in places.values()}
    if len(aliases) > 1:
        yield Obstacle(f"the key is spread over several tables: {', '.join(places)}", _STORED)
    tables = {table.alias: table.table for table in source.query.tables}
    if any(model_of_table(tables.get(alias, "")) is None for alias in aliases):
        yield Obstacle("the table of the key has no model", "Define an unmanaged model for it.")
    yield from _uniqueness_obstacles(source)


def _type_obstacles(column: Column, field: AnyField, source: Source) -> Iterator[Obstacle]:
    if not same_type(column.field, field, source.query.using):
        yield Obstacle(
            f"key field {column.name} has another type or collation in the view",
            f"Give it the type and collation of {field.model._meta.label}.{field.name}.",
        )


def _uniqueness_obstacles(source: Source) -> Iterator[Obstacle]:
    query, key = source.query, [column.expression for column in source.key]
    if key_is_unique(query, key):
        return
    unproved = "it cannot be proved that no two rows of source() have the same key"
    if query.grouping is None:
        yield Obstacle(
            unproved, "Group by the key, with aggregates; or use a key that is unique in a table."
        )
        return
    names = ", ".join(dict.fromkeys(_shown(each, source) for each in undetermined(query, key)))
    yield Obstacle(
        f"{unproved}: they are also grouped by {names}, which the key may not determine",
        f"Use an aggregate, like Max(...), for {names}, or add it to the key.",
    )


def _shown(expression: Any, source: Source) -> str:
    """The name of an expression in `source()`, or of its column."""
    compiled = source.query.compile_expression(expression)
    for column in source.columns:
        if source.query.compile_expression(column.expression) == compiled:
            return column.name
    place = column_of(expression)
    return place[1].name if place else "an expression"


def _incremental_obstacles(source: Source) -> Iterator[Obstacle]:
    """Why dirty keys cannot be pushed into a query."""
    yield from _query_obstacles(source)
    yield from inexact_key_obstacles(source)
    for column in source.key:
        if place := column_of(column.expression):
            yield from _type_obstacles(column, place[1], source)
            if family(column.field) not in {*COMPUTED, TEXT}:
                yield Obstacle(
                    f"key field {column.name} is not a whole number, text, UUID or date",
                    "Cast() in source() converts some types to one of these.",
                )
        else:
            yield from (Obstacle(each, _STORED) for each in _computed_key_obstacles(column, source))
    yield from _uniqueness_obstacles(source)


def _computed_key_obstacles(column: Column, source: Source) -> Iterator[str]:
    expression, kind, name = column.expression, family(column.field), f"key field {column.name}"
    aliases = {read.alias for read in columns_in(expression) or []}
    if len(aliases) != 1 or has_aggregate_or_window(expression):
        yield f"{name} is computed from something other than columns of one table"
        return
    dialect = dialect_of(source.query.using)
    if part := inexact_part(expression, dialect):
        yield f"{name} is computed by {part}"
        return
    known = kind in {*COMPUTED, TEXT} or (kind == DATETIME and is_truncated(expression))
    if not known or kind != family(expression.output_field):
        yield (
            f"{name} is computed, but is not a whole number, text, UUID, date or truncated datetime"
        )
    elif kind == TEXT:
        yield from _text_obstacles(column, dialect)
    if any(table.outer for table in source.query.tables if table.alias in aliases):
        yield (
            f"{name} is computed from a table that may have no matching row: exclude rows without "
            f"one, as by .filter(customer__isnull=False)"
        )


def _text_obstacles(column: Column, dialect: Dialect) -> Iterator[str]:
    """Why texts that are equal in the source may differ in the view, or the other way round."""
    own = collation_of(column.field, dialect)
    if dialect.kind_of(column.field) != TEXT:
        yield f"key field {column.name} is computed, but is {dialect.kind_of(column.field)}"
    found = text_collations(column.expression, dialect)
    if SESSION in found:  # compared in the database, where the session decides it
        found = (found - {SESSION}) | {own if dialect.session_collation else ""}
    for collation in sorted(found):
        if not (dialect.same_collation(collation, own) and dialect.same_collation(own, collation)):
            yield (
                f"key field {column.name} has another collation in the view than where it is "
                f"computed; Collate() in source() changes that"
            )
