"""What has to be tracked for a view: the tables that its source reads, and the columns that count."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from django.db import DatabaseError
from django.db.models import Model

from ..databases.trigger_spec import TriggerSpec
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..queryset import Plan, find_mismatches, plan_of
from ..registry import registry

__all__ = [
    "Tracking",
    "known_tracking",
    "mistyped",
    "tracked_tables",
    "tracking_of",
    "union",
]


@dataclass(frozen=True, slots=True)
class Tracking:
    """On which changes a view depends."""

    #: What is to be tracked, by name of the table.
    tables: dict[str, TriggerSpec] = field(default_factory=dict)
    #: Why that cannot be told, for a person; "" if it can.
    reason: str = ""
    #: Whether it depends on the time as well, by dates among the parameters of `source()`.
    has_dates: bool = False


@lru_cache(maxsize=64)
def tracking_of(plan: Plan) -> Tracking:
    """On which changes a view depends, as far as its queryset tells."""
    if reason := next(_obstacles(plan), ""):
        return Tracking(reason=reason)
    tables = {}
    for table, columns in plan.inspection.columns.items():
        links = {column for link in plan.links.get(table, ()) for column in link.columns}
        tables[table] = TriggerSpec(columns, frozenset(links))
    return Tracking(tables, has_dates=plan.has_dates)


def _obstacles(plan: Plan) -> Iterator[str]:
    definition = plan.source.definition
    if not definition.options.tracking:
        yield "MatviewMeta.tracking is False"
    for phase in definition.options.phases:
        hooks = definition.hooks[phase]
        if not (hooks.needs_derived and hooks.do_derived):
            yield f"the phase {phase} has hooks of the view's own, which may read anything"
    if plan.inspection.untrackable:
        yield plan.inspection.untrackable


def known_tracking(definition: ViewDefinition, using: str) -> Tracking:
    """As `tracking_of`, of the definition as this process first saw it.

    For showing many views at once: compiling a queryset takes milliseconds.
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
    """What the views of the code want tracked: by table, and by label of the view."""
    tables: dict[str, dict[str, TriggerSpec]] = {}
    for definition in registry:
        for table, spec in _wanted(definition, using).items():
            tables.setdefault(table, {})[definition.label] = spec
    return tables


def _wanted(definition: ViewDefinition, using: str) -> dict[str, TriggerSpec]:
    if not definition.has_source or definition.errors or not definition.options.tracking:
        return {}
    try:
        return tracking_of(plan_of(definition, using)).tables
    except (InvalidView, DatabaseError):  # the checks tell of it, and each refresh fails
        return {}


def mistyped(using: str) -> dict[str, str]:
    """The views whose columns in the database are not what the models say, by label, and where.

    What triggers log of such a view cannot be believed to lead to its keys.
    """
    plans = []
    for definition in registry:
        if definition.has_source and not definition.errors:
            with suppress(Exception):  # the checks tell of it
                plan = plan_of(definition, using)
                assert plan.compared_columns is not None  # looked into here, where it may fail
                plans.append(plan)
    return find_mismatches(plans, using)


def union(wanted: Collection[TriggerSpec]) -> TriggerSpec:
    """What several views want of a table."""
    several = [each.columns for each in wanted if each.columns is not None]
    columns = frozenset[str]().union(*several) if len(several) == len(wanted) else None
    return TriggerSpec(columns, frozenset[str]().union(*(each.links for each in wanted)))
