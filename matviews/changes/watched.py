"""What has to be watched for a view: the tables that its source reads, and the columns that count."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from django.db import DatabaseError

from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..queryset import Plan, plan_of
from ..registry import registry

__all__ = ["Columns", "Tracking", "together", "tracking_of", "watched_tables"]

Columns = frozenset[str] | None  # None for every column


@dataclass(frozen=True, slots=True)
class Tracking:
    """On which changes a view depends.

    Attributes:
        tables: by name, the columns of which a change counts; None for any column. Rows that come or
            go always count.
        reason: why that cannot be told, for a person; "" if it can.
    """

    tables: dict[str, Columns] = field(default_factory=dict)
    reason: str = ""


def tracking_of(plan: Plan) -> Tracking:
    """On which changes a view depends, as far as its queryset tells."""
    if reason := next(_obstacles(plan), ""):
        return Tracking(reason=reason)
    read = plan.source.query.columns_read()
    return Tracking({table: None if columns is None else frozenset(columns) for table, columns in read.items()})  # fmt: skip


def _obstacles(plan: Plan) -> Iterator[str]:
    definition, query = plan.source.definition, plan.source.query
    if not definition.options.tracking:
        yield "MatviewMeta.tracking is False"
    for phase in definition.options.phases:
        hooks = definition.hooks[phase]
        if not (hooks.needs_derived and hooks.do_derived):
            yield f"the phase {phase} has hooks of the view's own, which may read anything"
    if query.has_raw_sql:
        yield "there is raw SQL in source(), which may read anything"
    for name, part in query.parts:
        if functions := query.volatile(part):
            yield f"{name} of source() changes by itself ({functions[0]})"


def watched_tables(using: str) -> dict[str, dict[str, Columns]]:
    """The tables that the views of the code want watched: by label of the view, the columns."""
    tables: dict[str, dict[str, Columns]] = {}
    for definition in registry:
        for table, columns in _wanted(definition, using).items():
            tables.setdefault(table, {})[definition.label] = columns
    return tables


def _wanted(definition: ViewDefinition, using: str) -> dict[str, Columns]:
    if not definition.has_source or definition.errors or not definition.options.tracking:
        return {}
    try:
        return tracking_of(plan_of(definition, using)).tables
    except (InvalidView, DatabaseError):  # the checks tell of it, and each refresh fails
        return {}


def together(wanted: Iterable[Columns]) -> Columns:
    """The columns that several views want watched."""
    columns: set[str] = set()
    for each in wanted:
        if each is None:
            return None
        columns |= each
    return frozenset(columns)
