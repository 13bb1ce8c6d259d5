"""Whether a view is additive: whether its groups can be kept by adding and subtracting rows."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet
from django.db.models import Model

from ...databases import Dialect, dialect_of, sums_of
from ...databases.fields import (
    DATE,
    DATETIME,
    NUMBER,
    TEXT,
    WHOLE,
    AnyField,
    family,
    model_of_table,
)
from ...databases.trigger_spec import ValueLog
from ..analysis.aggregates import (
    Added,
    aggregates_in,
    aggregates_of_groups,
    of_aggregate,
    row_columns,
)
from ..analysis.boundary import NotUnderstood, looking
from ..analysis.dependencies import declared_dependencies
from ..analysis.expressions import columns_in
from ..analysis.fingerprint import fingerprint, has_dates
from ..analysis.row_functions import inexact_part
from ..analysis.source import Source
from .inspection import Inspection
from .joins import Lookup, columns_of_joins, lookups_of, obstacles_of_joins

__all__ = ["Additive", "Returned", "find_additive", "obstacles_of"]

LOGGED = {WHOLE, NUMBER, TEXT, DATE, DATETIME, "boolean", "UUID"}


Compiled = tuple[str, tuple[Any, ...]]


class Returned(NamedTuple):
    """What an aggregate returns."""

    #: `COUNT`, `SUM`, `AVERAGE`, `LARGEST` or `SMALLEST`.
    kind: str
    #: Of which of `Additive.added`; None for the count of all rows.
    number: int | None


@dataclass(frozen=True, slots=True)
class Additive:
    """What is kept of an additive view's source."""

    #: The model of the table whose rows are aggregated.
    model: type[Model]
    #: The value logs by table, that of `model` first, then those of lookups.
    logs: Mapping[str, ValueLog]
    #: The other tables, in which each row finds at most one.
    lookups: tuple[Lookup, ...]
    #: What its aggregates count and add up, each once.
    added: tuple[Added, ...]
    #: What its aggregates return, by their SQL and its parameters.
    returned: Mapping[Compiled, Returned]
    #: The name of its table of sums.
    sums: str

    @property
    def table(self) -> str:
        """The name of the table whose rows are aggregated."""
        return self.model._meta.db_table

    @property
    def log(self) -> str:
        """The name of the value log of this table."""
        return self.logs[self.table].name

    @property
    def lookup_logs(self) -> dict[str, ValueLog]:
        """The value logs of lookups, by table."""
        return {table: log for table, log in self.logs.items() if table != self.table}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of this table that groups, filters, aggregates and joins read."""
        return self.logs[self.table].columns


def find_additive(source: Source, inspection: Inspection) -> Additive | None:
    """What is kept of a view's source; None if it is not additive."""
    try:
        with looking():
            return None if next(_obstacles(source, inspection), "") else _found(source)
    except NotUnderstood:
        return None


def _found(source: Source) -> Additive:
    model = model_of_table(source.query.tables[0].table)
    assert model is not None  # an obstacle otherwise
    added, returned = _added(source)
    name = f"{source.definition.label} {fingerprint(source)}"
    columns: dict[str, set[str]] = {model._meta.db_table: set()}
    for table, field in _columns(source, added):
        columns.setdefault(table, set()).add(field.column or "")
    return Additive(
        model=model,
        logs={
            table: ValueLog(
                f"matviews_values_{_digest(f'{name} {table}')}", tuple(sorted(of_table))
            )
            for table, of_table in columns.items()
        },
        lookups=lookups_of(source.query),
        added=added,
        returned=returned,
        sums=f"matviews_sums_{_digest(name)}",
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def obstacles_of(source: Source, inspection: Inspection) -> list[str]:
    """Why a view is not additive, for a person; none if it is."""
    try:
        with looking():
            return list(dict.fromkeys(_obstacles(source, inspection)))
    except NotUnderstood as error:
        return [f"source() cannot be analysed ({error})"]


def _obstacles(source: Source, inspection: Inspection) -> Iterator[str]:
    yield from _obstacles_of_view(source, inspection)
    if found := list(_obstacles_of_query(source)):
        yield from found
        return
    yield from _obstacles_of_key(source)
    if found := list(_obstacles_of_values(source)):
        yield from found
        return
    yield from _obstacles_of_columns(source, inspection)


def _obstacles_of_view(source: Source, inspection: Inspection) -> Iterator[str]:
    definition, unknown = source.definition, inspection.unknown
    found = {
        "MatviewMeta.tracking is False": not definition.options.tracking,
        f"source() cannot be analysed ({unknown})": unknown,
        inspection.untrackable: inspection.untrackable,
        inspection.strategy.incremental_obstacle: inspection.strategy.incremental_obstacle,
        "MatviewMeta.depends_on declares dependencies": declared_dependencies(definition),
        "source() has a date or time as a parameter, which may differ in each call": has_dates(
            source
        ),
    }
    yield from (reason for reason, applies in found.items() if applies)
    for phase in definition.options.phases:
        if not definition.hooks[phase].is_derived:
            yield f"the phase {phase} has hooks of its own"


def _obstacles_of_query(source: Source) -> Iterator[str]:
    query = source.query
    found = {
        "source() combines queries, as by union()": query.union,
        "source() is sliced": query.sliced,
        "source() has DISTINCT": query.distinct or query.distinct_on,
        "source() has raw SQL": query.has_raw_sql,
        "source() has a window function": query.has_window,
        "source() does not group rows": not query.grouped,
        "source() has a subquery": any(columns_in(part) is None for _name, part in query.parts),
    }
    yield from (reason for reason, applies in found.items() if applies)
    if query.union:
        return
    tables = query.tables
    if not tables:
        yield "source() reads no table"
        return
    if model_of_table(tables[0].table) is None or tables[0].alias != tables[0].table:
        yield f"{tables[0].table} is not a plain table of a model"
    elif set('"`.') & set(tables[0].table):
        yield f"the name of {tables[0].table} includes a schema"
    yield from obstacles_of_joins(query)


def _obstacles_of_key(source: Source) -> Iterator[str]:
    query, dialect = source.query, dialect_of(source.query.using)
    key = {query.compile_expression(column.expression) for column in source.key}
    groups = {query.compile_expression(each) for each in query.grouping or ()}
    if key != groups:
        yield "source() is not grouped by exactly the key"
    for column in source.key:
        if family(column.field) == TEXT and dialect.has_ci_collation(column.field):
            yield f"equal texts in key field {column.name} may be spelled differently"
        if part := inexact_part(column.expression, dialect):
            yield f"key field {column.name} is computed by {part}"


def _obstacles_of_values(source: Source) -> Iterator[str]:
    dialect = dialect_of(source.query.using)
    for column in source.values:
        try:
            for aggregate in aggregates_in(column.expression):
                _check(aggregate, source, dialect)
        except ValueError as error:
            yield f"the column {column.name} is {error}"
    try:
        for aggregate in _of_groups(source):
            _check(aggregate, source, dialect)
    except ValueError as error:
        yield f"the condition on groups (HAVING) has {error}"


def _check(aggregate: Any, source: Source, dialect: Dialect) -> None:
    """Raise a ValueError if an aggregate cannot be kept; the message says what it is."""
    of_aggregate(aggregate, source.query.tables[0].alias, dialect)
    try:
        source.query.compile_expression(aggregate)
    except EmptyResultSet as error:
        fault = f"{type(aggregate).__name__} with a filter that matches nothing"
        raise ValueError(fault) from error


def _obstacles_of_columns(source: Source, inspection: Inspection) -> Iterator[str]:
    dialect, of_rows = dialect_of(source.query.using), source.query.conditions[0]
    if of_rows is not None and (part := inexact_part(of_rows, dialect)):
        yield f"the filter of source() has {part}"
    copies = sums_of(source.query.using).copies_collations
    added, _returned = _added(source)
    read = set(_columns(source, added))
    fields = {field for _table, field in read}
    names = {each.column or "" for each in (*fields, *(column.field for column in source.key))}
    for name in sorted(filter(sums_of(source.query.using).is_reserved, names)):
        yield f"the column {name} has a name that is reserved for the tables of sums"
    for table, field in read:
        known = inspection.columns.get(table)
        if family(field) not in LOGGED or field.get_internal_type() == "FloatField":
            yield f"source() reads {field.name}, which is a {family(field)}"
        elif not copies and family(field) == TEXT and dialect.has_ci_collation(field):
            yield f"source() reads {field.name}, whose equal texts may be spelled differently"
        elif known is None or field.column not in known:
            yield f"changes of {field.name} are not logged"


def _columns(source: Source, added: Iterable[Added]) -> Iterator[tuple[str, AnyField]]:
    """The tables and columns of a row and its lookups that decide what it gives to its group."""
    of_rows, _of_groups = source.query.conditions
    given = [column.expression for column in source.key]
    given += [of_rows] if of_rows is not None else []
    for each in added:
        given += [part for part in (each.argument, each.condition) if part is not None]
    by_alias = {table.alias: table.table for table in source.query.tables}
    for expression in given:
        for column in row_columns(expression):
            yield by_alias[column.alias], column.target
    yield from columns_of_joins(source.query)


def _added(source: Source) -> tuple[tuple[Added, ...], dict[Compiled, Returned]]:
    """What the aggregates of a source count and add up, and what each returns of it."""
    query, dialect = source.query, dialect_of(source.query.using)
    found: dict[tuple[Compiled | None, Compiled | None], Added] = {}
    returned: dict[Compiled, Returned] = {}
    of_columns = (each for column in source.values for each in aggregates_in(column.expression))
    for aggregate in chain(of_columns, _of_groups(source)):
        kind, each = of_aggregate(aggregate, query.tables[0].alias, dialect)
        of = (
            None if each.argument is None else query.compile_expression(each.argument),
            None if each.condition is None else query.compile_condition(each.condition),
        )
        number = None
        if of != (None, None):
            found[of] = found.get(of, each) | each
            number = [*found].index(of)
        returned[query.compile_expression(aggregate)] = Returned(kind, number)
    return tuple(found.values()), returned


def _of_groups(source: Source) -> Iterator[Any]:
    """The aggregates of the condition on groups."""
    _of_rows, condition = source.query.conditions
    return iter(()) if condition is None else aggregates_of_groups(condition)
