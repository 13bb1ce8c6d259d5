"""Windowed or staged: which way a view's source is worked through, and why.

The range of a window may be pushed into the source where it commutes with the query, an index
serves it, and the key is shown to be unique; the windows of the source are those of the view then.
Anything else is evaluated once, into a staging table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import Model

from .fields import AnyField, indexed_columns, same_type
from .lineage import key_is_unique
from .query import column_of, model_of_table
from .source import Source

__all__ = ["Path", "find_path"]


@dataclass(frozen=True, slots=True)
class Path:
    """How a view's source is worked through.

    Attributes:
        staged: whether it is evaluated once into a staging table; else window by window.
        reason: why, for a person.
        alias: windowed: the alias of the table that has the key.
        fields: windowed: its fields that are the key, in order.
        model: windowed, or staged for want of an index: the model of that table.
        wanted: staged only for want of an index: the names of the fields that it should have.
    """

    staged: bool
    reason: str
    alias: str = ""
    fields: tuple[AnyField, ...] = ()
    model: type[Model] | None = None
    wanted: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What it is called."""
        return "staged" if self.staged else "windowed"


def find_path(source: Source) -> Path:
    """The way through a source: windowed unless something forbids it."""
    if reason := next(_obstacles(source), ""):
        return Path(staged=True, reason=reason)
    places = [column_of(column.expression) for column in source.key]
    alias, fields = places[0][0], tuple(field for _alias, field in places)  # type: ignore[index,misc]
    table = next(each.table for each in source.query.tables if each.alias == alias)
    model = model_of_table(table)
    assert model is not None  # `_obstacles` has asked
    columns = tuple(field.column for field in fields)
    names = ", ".join(field.name for field in fields)
    if not any(index[: len(columns)] == columns for index in indexed_columns(model)):
        return Path(
            staged=True,
            reason=f"no index of {model._meta.label} begins with {names}",
            model=model,
            wanted=tuple(field.name for field in fields),
        )
    reason = f"the key is {model._meta.label} ({names}), which an index serves"
    return Path(staged=False, reason=reason, alias=alias, fields=fields, model=model)


def _obstacles(source: Source) -> Iterator[str]:
    """What keeps windows out of a query, the index apart."""
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
    yield from _obstacles_of_key(source)


def _obstacles_of_key(source: Source) -> Iterator[str]:
    places = {}
    for column in source.key:
        if (place := column_of(column.expression)) is None:
            yield f"{column.name}, of the key, is computed"
            return
        places[column.name] = place
        if not same_type(column.field, place[1], source.query.using):
            yield f"{column.name}, of the key, has another type or collation in the view"
    aliases = {alias for alias, _field in places.values()}
    if len(aliases) > 1:
        yield f"the key is spread over several tables: {', '.join(places)}"
    tables = {table.alias: table.table for table in source.query.tables}
    if any(model_of_table(tables.get(alias, "")) is None for alias in aliases):
        yield "no model has the table of the key"
    key = {(alias, field.column) for alias, field in places.values()}
    if not key_is_unique(source.query, key):
        yield "it cannot be shown that no two rows of source() have one key"
