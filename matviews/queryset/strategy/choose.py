"""How a view's source is read, windowed or staged, and why; whether it can be incremental.

The range of a window can be pushed into the source if it commutes with the query, an index serves
it, and the key is provably unique: then the windows of the source are those of the view. Any other
source is evaluated once, into a staging table.

Dirty keys can be pushed into more sources than ranges can: they need no index, and a key may be
spread over tables, or be computed from one row.
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

COMPUTED = {DATE, WHOLE, "UUID"}  # the kinds of computed key parts


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
    if reason := next(_windowing_obstacles(source), ""):
        return Strategy(
            staged=True,
            reason=reason,
            incremental_obstacle=next(_incremental_obstacles(source), ""),
        )
    places = [column_of(column.expression) for column in source.key]
    alias = places[0][0]  # type: ignore[index]
    fields = tuple(field for _alias, field in places)  # type: ignore[misc]
    table = next(joined.table for joined in source.query.tables if joined.alias == alias)
    model = model_of_table(table)
    assert model is not None  # `_windowing_obstacles` has checked
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
    """Why a window cannot be pushed into a query, apart from a missing index."""
    yield from _query_obstacles(source)
    yield from _key_obstacles(source)


def inexact_key_obstacles(source: Source) -> Iterator[str]:
    """Parts of the key without an exact form: a batch could not start where another ended."""
    dialect = dialect_of(source.query.using)
    for column in source.key:
        if not exact_values([column.field], "", dialect):
            yield (
                f"key field {column.name} is {dialect.kind_of(column.field)}, which has no exact "
                f"text form, so all keys are one batch"
            )


def _query_obstacles(source: Source) -> Iterator[str]:
    """Why no condition on the key can be pushed into a query."""
    query = source.query
    if query.union:
        yield "a UNION, INTERSECT or EXCEPT has no single place for the range of a window"
    if query.sliced:
        yield "a slice depends on all rows"
    if query.distinct_on:
        yield "DISTINCT ON depends on rows outside a window"
    if query.has_raw_sql:
        yield "raw SQL cannot be analysed"
    if query.has_window:
        yield "a window function depends on rows outside a window"


def _key_obstacles(source: Source) -> Iterator[str]:
    yield from inexact_key_obstacles(source)
    places = {}
    for column in source.key:
        if (place := column_of(column.expression)) is None:
            yield f"key field {column.name} is computed"
            return
        places[column.name] = place
        yield from _type_obstacles(column, place[1], source)
    aliases = {alias for alias, _field in places.values()}
    if len(aliases) > 1:
        yield f"the key is spread over several tables: {', '.join(places)}"
    tables = {table.alias: table.table for table in source.query.tables}
    if any(model_of_table(tables.get(alias, "")) is None for alias in aliases):
        yield "the table of the key has no model"
    yield from _uniqueness_obstacles(source)


def _type_obstacles(column: Column, field: AnyField, source: Source) -> Iterator[str]:
    if not same_type(column.field, field, source.query.using):
        yield f"key field {column.name} has another type or collation in the view"


def _uniqueness_obstacles(source: Source) -> Iterator[str]:
    if not key_is_unique(source.query, [column.expression for column in source.key]):
        yield "it cannot be proved that no two rows of source() have the same key"


def _incremental_obstacles(source: Source) -> Iterator[str]:
    """Why dirty keys cannot be pushed into a query."""
    yield from _query_obstacles(source)
    yield from inexact_key_obstacles(source)
    for column in source.key:
        if place := column_of(column.expression):
            yield from _type_obstacles(column, place[1], source)
            if family(column.field) not in {*COMPUTED, TEXT}:
                yield f"key field {column.name} is not a whole number, text, UUID or date"
        else:
            yield from _computed_key_obstacles(column, source)
    yield from _uniqueness_obstacles(source)


def _computed_key_obstacles(column: Column, source: Source) -> Iterator[str]:
    expression, kind = column.expression, family(column.field)
    read = columns_in(expression) or []
    aliases = {column.alias for column in read}
    if (
        len(aliases) != 1
        or has_aggregate_or_window(expression)
        or not is_plainly_computed(expression)
    ):
        yield (
            f"key field {column.name} is computed by something other than Trunc..., Extract... and "
            f"Coalesce on columns of one table"
        )
        return
    known = kind in COMPUTED or (kind == DATETIME and is_truncated(expression))
    if not known or kind != family(expression.output_field):
        yield (
            f"key field {column.name} is computed, but is not a whole number, UUID, date or "
            f"truncated datetime"
        )
    if any(table.outer for table in source.query.tables if table.alias in aliases):
        yield f"key field {column.name} is computed from a table that may have no matching row"
