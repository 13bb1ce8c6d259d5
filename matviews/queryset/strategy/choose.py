"""Windowed or staged: which way a view's source is worked through, and why; and whether by some keys alone.

The range of a window may be pushed into the source where it commutes with the query, an index
serves it, and the key is shown to be unique; the windows of the source are those of the view then.
Anything else is evaluated once, into a staging table.

Dirty keys may be pushed into more sources than ranges: no index need serve them, and a key may be spread
over tables, or computed of one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import Model

from ...databases import dialect_of
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
from ..analysis.expressions import (
    columns_in,
    has_aggregate_or_window,
    is_plainly_computed,
    is_truncated,
)
from ..analysis.lineage import key_is_unique
from ..analysis.source import Source

__all__ = ["Strategy", "choose_strategy", "inexact_key_obstacles"]

COMPUTED = {DATE, WHOLE, "UUID"}  # kinds of values that parts of a key may be computed as


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a view's source is worked through."""

    #: Whether it is evaluated once into a staging table; else window by window.
    staged: bool
    #: Why, for a person.
    reason: str
    #: Windowed: the alias of the table that has the key.
    alias: str = ""
    #: Windowed: its fields that are the key, in order.
    fields: tuple[AnyField, ...] = ()
    #: Windowed, or staged for want of an index: the model of that table.
    model: type[Model] | None = None
    #: Staged only for want of an index: the names of the fields that it should have.
    missing_index: tuple[str, ...] = ()
    #: Why dirty keys cannot be worked off by themselves, for a person; "" if they can.
    incremental_obstacle: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return "staged" if self.staged else "windowed"

    @property
    def is_incremental(self) -> bool:
        """Whether dirty keys can be worked off by themselves."""
        return not self.incremental_obstacle


def choose_strategy(source: Source) -> Strategy:
    """The way through a source: windowed unless something forbids it."""
    if reason := next(_windowing_obstacles(source), ""):
        return Strategy(
            staged=True,
            reason=reason,
            incremental_obstacle=next(_incremental_obstacles(source), ""),
        )
    places = [column_of(column.expression) for column in source.key]
    alias, fields = places[0][0], tuple(field for _alias, field in places)  # type: ignore[index,misc]
    table = next(each.table for each in source.query.tables if each.alias == alias)
    model = model_of_table(table)
    assert model is not None  # `_windowing_obstacles` has asked
    columns = tuple(field.column for field in fields)
    names = ", ".join(field.name for field in fields)
    if not any(index[: len(columns)] == columns for index in indexed_columns(model)):
        return Strategy(
            staged=True,
            reason=f"no index of {model._meta.label} begins with {names}",
            model=model,
            missing_index=tuple(field.name for field in fields),
            incremental_obstacle=next(_incremental_obstacles(source), ""),
        )
    reason = f"the key is {model._meta.label} ({names}), which an index serves"
    return Strategy(staged=False, reason=reason, alias=alias, fields=fields, model=model)


def _windowing_obstacles(source: Source) -> Iterator[str]:
    """What keeps windows out of a query, the index apart."""
    yield from _query_obstacles(source)
    yield from _key_obstacles(source)


def inexact_key_obstacles(source: Source) -> Iterator[str]:
    """Parts of the key of which a later batch could not be told how far this one got."""
    dialect = dialect_of(source.query.using)
    for column in source.key:
        if not exact_values([column.field], "", dialect):
            yield (
                f"{column.name}, of the key, is {dialect.kind_of(column.field)}, which has no exact "
                f"text, so all keys are one batch"
            )


def _query_obstacles(source: Source) -> Iterator[str]:
    """What keeps any condition on the key out of a query."""
    query = source.query
    if query.union:
        yield "a UNION, INTERSECT or EXCEPT has no one place for the range of a window"
    if query.sliced:
        yield "a slice depends on all rows"
    if query.distinct_on:
        yield "DISTINCT ON depends on rows outside a window"
    if query.has_raw_sql:
        yield "raw SQL cannot be looked into"
    if query.has_window:
        yield "a window function depends on rows outside a window"


def _key_obstacles(source: Source) -> Iterator[str]:
    yield from inexact_key_obstacles(source)
    places = {}
    for column in source.key:
        if (place := column_of(column.expression)) is None:
            yield f"{column.name}, of the key, is computed"
            return
        places[column.name] = place
        yield from _type_obstacles(column, place[1], source)
    aliases = {alias for alias, _field in places.values()}
    if len(aliases) > 1:
        yield f"the key is spread over several tables: {', '.join(places)}"
    tables = {table.alias: table.table for table in source.query.tables}
    if any(model_of_table(tables.get(alias, "")) is None for alias in aliases):
        yield "no model has the table of the key"
    yield from _uniqueness_obstacles(source)


def _type_obstacles(column: Column, field: AnyField, source: Source) -> Iterator[str]:
    if not same_type(column.field, field, source.query.using):
        yield f"{column.name}, of the key, has another type or collation in the view"


def _uniqueness_obstacles(source: Source) -> Iterator[str]:
    if not key_is_unique(source.query, [column.expression for column in source.key]):
        yield "it cannot be shown that no two rows of source() have one key"


def _incremental_obstacles(source: Source) -> Iterator[str]:
    """What keeps dirty keys out of a query."""
    yield from _query_obstacles(source)
    yield from inexact_key_obstacles(source)
    for column in source.key:
        if place := column_of(column.expression):
            yield from _type_obstacles(column, place[1], source)
            if family(column.field) not in {*COMPUTED, TEXT}:
                yield f"{column.name}, of the key, is no whole number, text, UUID or date"
        else:
            yield from _computed_key_obstacles(column, source)
    yield from _uniqueness_obstacles(source)


def _computed_key_obstacles(column: Column, source: Source) -> Iterator[str]:
    expression, kind = column.expression, family(column.field)
    read = columns_in(expression) or []
    aliases = {each.alias for each in read}
    if (
        len(aliases) != 1
        or has_aggregate_or_window(expression)
        or not is_plainly_computed(expression)
    ):
        yield (
            f"{column.name}, of the key, is computed by other means than Trunc..., Extract... and "
            f"Coalesce of columns of one table"
        )
        return
    known = kind in COMPUTED or (kind == DATETIME and is_truncated(expression))
    if not known or kind != family(expression.output_field):
        yield f"{column.name}, of the key, is computed, and no whole number, UUID, date or moment"
    if any(table.outer for table in source.query.tables if table.alias in aliases):
        yield f"{column.name}, of the key, is computed where there may be no row"
