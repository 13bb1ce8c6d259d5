"""What is tracked for a view: the tables that its source reads, and the columns that count."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from django.db import DatabaseError
from django.db.models import Model

from ..databases.trigger_spec import TriggerSpec, ValueLog
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewControl
from ..queryset import Compared, Plan, find_mismatches, plan_of
from ..registry import registry

__all__ = [
    "Tracking",
    "known_tracking",
    "mistyped",
    "tracked_tables",
    "tracking_of",
    "union",
    "with_value_logs",
]


@dataclass(frozen=True, slots=True)
class Tracking:
    """Which changes a view depends on."""

    #: What the triggers of each table have to log.
    tables: dict[str, TriggerSpec] = field(default_factory=dict)
    #: Why the view is not tracked; "" if it is.
    reason: str = ""
    #: Whether the parameters of `source()` include dates, so that time alone may change its rows.
    has_dates: bool = False


@lru_cache(maxsize=64)
def tracking_of(plan: Plan) -> Tracking:
    """Which changes a view depends on, as far as its queryset shows."""
    if reason := next(_obstacles(plan), ""):
        return Tracking(reason=reason)
    tables = {}
    for table, columns in plan.inspection.columns.items():
        links = {column for link in plan.links.get(table, ()) for column in link.columns}
        tables[table] = TriggerSpec(columns, frozenset(links))
    return Tracking(tables, has_dates=plan.has_dates)


def with_value_logs(tracking: Tracking, plan: Plan) -> Tracking:
    """The same, with what triggers log for the sums of an additive view."""
    logs = plan.additive.additive.logs if plan.additive else {}
    tables = {
        table: replace(spec, value_logs=frozenset([logs[table]])) if table in logs else spec
        for table, spec in tracking.tables.items()
    }
    return replace(tracking, tables=tables)


def _obstacles(plan: Plan) -> Iterator[str]:
    definition = plan.source.definition
    if not definition.options.tracking:
        yield "MatviewMeta.tracking is False"
    for phase in definition.options.phases:
        hooks = definition.hooks[phase]
        if not hooks.is_derived:
            yield f"the phase {phase} has hooks, which may read anything"
    if plan.inspection.untrackable:
        yield plan.inspection.untrackable


def known_tracking(definition: ViewDefinition, using: str) -> Tracking:
    """The `tracking_of` a view's definition as this process first saw it.

    For pages that show many views: compiling a queryset takes milliseconds.
    """
    known = _KNOWN.get((definition.model, using))
    if known is None and definition.has_source and not definition.errors:
        try:
            known = tracking_of(plan_of(definition, using))
        except (InvalidView, DatabaseError) as error:
            return Tracking(reason=str(error))
        _KNOWN[definition.model, using] = known
    return known or Tracking(reason="it has no source()")


_KNOWN: dict[tuple[type[Model], str], Tracking] = {}


def tracked_tables(using: str) -> dict[str, dict[str, TriggerSpec]]:
    """What the triggers of each table have to log, by table and by label of the view."""
    tables: dict[str, dict[str, TriggerSpec]] = {}
    chosen = set(ViewControl.objects.filter(additive=True).values_list("label", flat=True))
    for definition in registry:
        by_code = definition.options.additive
        additive = definition.label in chosen if by_code is None else by_code
        for table, spec in _required(definition, using, additive=additive).items():
            tables.setdefault(table, {})[definition.label] = spec
    return tables


def _required(definition: ViewDefinition, using: str, *, additive: bool) -> dict[str, TriggerSpec]:
    if not definition.has_source or definition.errors or not definition.options.tracking:
        return {}
    try:
        plan = plan_of(definition, using)
        tracking = tracking_of(plan)
        return (with_value_logs(tracking, plan) if additive else tracking).tables
    except (InvalidView, DatabaseError):  # a check reports it, and every refresh fails
        return {}


def mistyped(using: str) -> dict[str, str]:
    """Why the database's columns contradict the models, by label of the view.

    The links that triggers log for such a view may lead to the wrong keys.
    """
    groups = {}
    for definition in registry:
        if definition.has_source and not definition.errors:
            with suppress(Exception):  # a check reports it
                groups[definition.label] = _compared(definition.model, using)
    return find_mismatches(groups, using)


@cache
def _compared(model: type[Model], using: str) -> list[tuple[Compared, ...]]:
    """The columns that a view's plan compares, as this process first saw it: see above."""
    return plan_of(registry.find(model), using).compared_columns


def union(specs: Collection[TriggerSpec]) -> TriggerSpec:
    """One spec that covers those of several views, and keeps their changes apart."""
    read = {spec.columns for spec in specs}
    named = frozenset[str]().union(*(columns for columns in read if columns is not None))
    return TriggerSpec(
        columns=None if None in read else named,
        links=frozenset[str]().union(*(spec.links for spec in specs)),
        recorded=named if len(read) > 1 else frozenset(),
        value_logs=frozenset[ValueLog]().union(*(spec.value_logs for spec in specs)),
    )
