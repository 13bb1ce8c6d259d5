"""What has to be watched for a view: the tables that its source reads, and the columns that count."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from django.db import DatabaseError

from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..queryset import Plan, declared, plan_of
from ..registry import registry

__all__ = ["Tracking", "Watch", "together", "tracking_of", "watched_tables"]


@dataclass(frozen=True, slots=True)
class Watch:
    """What triggers are to do with one table.

    Attributes:
        columns: those of which a change counts; None for any. Rows that come or go always count.
        links: those of which the values before and after a change are logged; none if a change leads to
            no key in particular, but concerns the whole view.
    """

    columns: frozenset[str] | None = None
    links: frozenset[str] = frozenset()

    def covers(self, other: "Watch") -> bool:
        """Whether what is logged suffices for `other`."""
        changes = self.columns is None or (
            other.columns is not None and other.columns <= self.columns
        )
        return changes and other.links <= self.links


@dataclass(frozen=True, slots=True)
class Tracking:
    """On which changes a view depends.

    Attributes:
        tables: what is to be watched, by name of the table.
        reason: why that cannot be told, for a person; "" if it can.
    """

    tables: dict[str, Watch] = field(default_factory=dict)
    reason: str = ""


@lru_cache(maxsize=64)
def tracking_of(plan: Plan) -> Tracking:
    """On which changes a view depends, as far as its queryset tells."""
    if reason := next(_obstacles(plan), ""):
        return Tracking(reason=reason)
    read: dict[str, set[str] | None] = plan.source.query.columns_read()
    if plan.source.query.has_raw_sql:  # which may read any column of these
        read = dict.fromkeys(read)
    read |= dict.fromkeys(declared(plan.source.definition))
    tables = {}
    for table, columns in read.items():
        links = {column for link in plan.links.get(table, ()) for column in link.columns}
        tables[table] = Watch(None if columns is None else frozenset(columns), frozenset(links))
    return Tracking(tables)


def _obstacles(plan: Plan) -> Iterator[str]:
    definition, query = plan.source.definition, plan.source.query
    if not definition.options.tracking:
        yield "MatviewMeta.tracking is False"
    for phase in definition.options.phases:
        hooks = definition.hooks[phase]
        if not (hooks.needs_derived and hooks.do_derived):
            yield f"the phase {phase} has hooks of the view's own, which may read anything"
    for name, part in query.parts:
        if functions := query.volatile(part):
            yield f"{name} of source() changes by itself ({functions[0]})"


def watched_tables(using: str) -> dict[str, dict[str, Watch]]:
    """What the views of the code want watched: by table, and by label of the view."""
    tables: dict[str, dict[str, Watch]] = {}
    for definition in registry:
        for table, watch in _wanted(definition, using).items():
            tables.setdefault(table, {})[definition.label] = watch
    return tables


def _wanted(definition: ViewDefinition, using: str) -> dict[str, Watch]:
    if not definition.has_source or definition.errors or not definition.options.tracking:
        return {}
    try:
        return tracking_of(plan_of(definition, using)).tables
    except (InvalidView, DatabaseError):  # the checks tell of it, and each refresh fails
        return {}


def together(wanted: Collection[Watch]) -> Watch:
    """What several views want of a table."""
    several = [each.columns for each in wanted if each.columns is not None]
    columns = frozenset[str]().union(*several) if len(several) == len(wanted) else None
    return Watch(columns, frozenset[str]().union(*(each.links for each in wanted)))
