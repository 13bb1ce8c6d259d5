"""The statement that reads a view as of now.

A view is read as its `source()` is in the snapshot of this very statement. The same snapshot shows
which changes are pending, and whether all changes are logged: a change is logged in the transaction
that makes it, and a batch that drains it commits it as dirty keys, or together with the rows. So a
key without pending changes is right in the view's table, and the others are computed.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import NamedTuple

from django.db.models import Model

from .. import changes
from ..answer_cache import CachedAnswer
from ..changes import STATE
from ..databases import CurrentSQL, triggers_of
from ..databases.base.current import ENTRIES, Part
from ..databases.fields import AnyField
from ..databases.sql import SQL, joined
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewSums
from ..phases import Phase
from ..queryset import (
    PARKED,
    PENDING,
    CurrentRows,
    CurrentSums,
    Plan,
    RowsQuery,
    RowsTable,
    StoredColumns,
    plan_of,
    stored_columns,
)
from ..registry import registry

__all__ = ["CurrentQuery", "current_obstacle", "current_rows"]

FINE = "matviews_fine"  # the part with a row if not everything is to be computed
SUMMED = "matviews_summed"  # the part with a row if the sums are to be used
RECOMPUTED = "matviews_recomputed"  # the part with the rows of the keys that wait
EVERY = "matviews_every"  # the part with the rows of all keys
SECONDS_KNOWN = 60.0  # for how long it is known which views have been made additive
IS_FINE = f"EXISTS (SELECT 1 FROM {FINE})"
IS_SUMMED = f"EXISTS (SELECT 1 FROM {SUMMED})"


def current_obstacle(definition: ViewDefinition, plan: Plan) -> str:
    """Why a view cannot be read as of now, and the way out; "" if it can be."""
    for phase in Phase:
        if phase not in definition.options.phases:
            return (
                f"MatviewMeta.phases has no {phase}, so its rows are not those of source(): read "
                f"its table"
            )
    if reason := changes.tracking_of(plan).reason:
        return f"its changes are not tracked: {reason}. Read its table, or query source()"
    for field in definition.model._meta.concrete_fields:
        if getattr(field, "generated", False):
            return (
                f"the database computes the field {field.name} when a row is written: leave it "
                f"out, or annotate source() with it"
            )
    return ""


def current_rows(model: type[Model], using: str) -> SQL:
    """A query for all rows of a view as of now, with the columns of its table.

    Raises:
        InvalidView: the view cannot be read as of now.
    """
    return current_statement(_current_plan(model, using)).written


def current_key(model: type[Model], using: str) -> list[AnyField]:
    """The fields of a view's key; raises as `current_rows`."""
    return _current_plan(model, using).key_fields


def _current_plan(model: type[Model], using: str) -> Plan:
    definition = registry.usable(model._meta.concrete_model or model)
    if not definition.has_source:
        raise InvalidView(f"{definition.label} has no source(), so only its table can be read.")
    plan = plan_of(definition, using)
    if obstacle := current_obstacle(definition, plan):
        raise InvalidView(f"{definition.label} cannot be read as of now: {obstacle}.")
    return plan


def current_statement(plan: Plan) -> "_Statement":
    """The statement for a view that can be read as of now."""
    if not _has_sums(plan):
        return _by_keys(plan)
    assert plan.additive is not None
    return _from_sums_or_keys(plan) if plan.additive.additive.lookups else _from_sums(plan)


def _has_sums(plan: Plan) -> bool:
    """Whether a view can be read from its sums, as far as this can be told beforehand."""
    sums, using = plan.additive, plan.dialect.using
    if sums is None:
        return False
    by_code = plan.source.definition.options.additive
    if not (by_code or sums.additive.log in _recorded(using)()):
        return False
    return sums.fit() and sums.may_read()


@cache
def _recorded(using: str) -> CachedAnswer[frozenset[str]]:
    """The value logs in use. Old answers do no harm: a view by keys is read as exactly."""

    def found() -> frozenset[str]:
        return frozenset(ViewSums.objects.using(using).values_list("log", flat=True))

    return CachedAnswer(found, SECONDS_KNOWN, SECONDS_KNOWN)


class _Known(NamedTuple):
    """What the statement takes from the catalog as this process first saw it."""

    plan: Plan
    stored: StoredColumns
    #: Tables that have partitions or are some.
    in_parts: frozenset[str]


class _Statement(NamedTuple):
    """The statement that reads a view as of now, before the caller's filters and columns."""

    sql: CurrentSQL
    parts: list[Part]
    #: Queries whose rows together are those of the view.
    rows: list[SQL]

    @property
    def written(self) -> SQL:
        """A query for the rows."""
        return self.asked(joined(" UNION ALL ", self.rows))

    def asked(self, query: SQL) -> SQL:
        """Another query of the same parts."""
        return self.sql.with_parts(self.parts, query)


@lru_cache(maxsize=64)
def _known(plan: Plan) -> _Known:
    checked, using = plan.checked(), plan.dialect.using
    tables = changes.tracking_of(plan).tables
    in_parts = triggers_of(using).tables_in_parts(tables)
    return _Known(checked, stored_columns(checked), frozenset(in_parts))


def _begun(plan: Plan, *, valued: bool = False) -> tuple[changes.WaitingSQL, CurrentRows]:
    """What waits, and how rows are computed; `valued` if value logs are read."""
    known, tracking, using = _known(plan), changes.tracking_of(plan), plan.dialect.using
    tracking = changes.with_value_logs(tracking, plan) if valued else tracking
    label = plan.source.definition.label
    return (
        changes.WaitingSQL(label, tracking, known.in_parts, using),
        CurrentRows(known.plan, known.stored),
    )


def _fine(waiting: changes.WaitingSQL, obstacles: Iterable[SQL], name: str = FINE) -> Part:
    logged, either = waiting.logged(), joined(" OR ", obstacles)
    params = (*logged.params, *either.params)
    query = f"SELECT 1 FROM {STATE} WHERE {logged.text} AND NOT ({either.text})"
    return Part(name, ["fine"], SQL(query, params))


@lru_cache(maxsize=64)
def _by_keys(plan: Plan) -> _Statement:
    """Of rows of the view's table, and of the source for the keys that wait."""
    waiting, rows = _begun(plan)
    reached, conditions = waiting.processed(tuple(Phase), plan.exact_fingerprint)
    parts = [
        Part(STATE, [], waiting.state(f", {reached} AS reached", SQL(""), conditions)),
        Part(ENTRIES, [], waiting.entries()),
        Part(PARKED, rows.key_names, waiting.parked_keys(rows.key, plan.fingerprint)),
    ]
    if rows.plan.strategy.is_incremental:
        more, linked = rows.linked()
        pending = rows.pending([waiting.dirty(rows.key), waiting.marked(rows.key), *linked])
        obstacles = [
            waiting.unresolved({"": [], **rows.links()}),
            waiting.has_unreadable_dirty(rows.key),
            rows.sql.mixes_snapshots(),
        ]
        parts += [
            *more,
            Part(PENDING, rows.key_names, pending),
            _fine(waiting, obstacles),
            Part(RECOMPUTED, [], rows.pending_rows(), is_shared=False),
        ]
        found = [
            rows.of_view(joined(" AND ", [SQL(IS_FINE), rows.not_pending()])),
            rows.sql.only_if(IS_FINE, rows.computed(SQL(RECOMPUTED))),
        ]
    else:
        parts.append(
            _fine(waiting, [SQL(f"EXISTS (SELECT 1 FROM {ENTRIES})"), waiting.has_dirty()])
        )
        found = [rows.of_view(SQL(IS_FINE))]
    parked = joined(" AND ", [SQL(f"NOT {IS_FINE}"), rows.of_parked()])
    parts.append(Part(EVERY, [], rows.all_rows(), is_shared=False))
    return _Statement(rows.sql, parts, [*found, _every(rows), rows.of_view(parked)])


def _every(rows: CurrentRows) -> SQL:
    return rows.sql.only_if(f"NOT {IS_FINE}", rows.computed(SQL(EVERY)))


@lru_cache(maxsize=64)
def _from_sums(plan: Plan) -> _Statement:
    """From the sums of an additive view, and the pending entries of its value logs."""
    waiting, rows = _begun(plan, valued=True)
    sums, kept, usable = _kept_sums(plan, rows)
    parts = [
        Part(STATE, [], waiting.state("", kept, [usable])),
        Part(ENTRIES, [], waiting.entries()),
        Part(PARKED, rows.key_names, waiting.parked_keys(rows.key, plan.fingerprint)),
        *sums.parts(),
        _fine(waiting, _unvalued(plan, waiting, sums)),
        Part(EVERY, [], rows.all_rows(), is_shared=False),
    ]
    found = (rows.sql.only_if(IS_FINE, each) for each in sums.queries())
    return _Statement(rows.sql, parts, [*found, _every(rows), rows.of_view(rows.of_parked())])


@lru_cache(maxsize=64)
def _from_sums_or_keys(plan: Plan) -> _Statement:
    """As `_from_sums` while no change of a lookup waits, else `_by_keys`."""
    waiting, rows = _begun(plan, valued=True)
    sums, kept, usable = _kept_sums(plan, rows)
    state = SQL(
        f"EXISTS (SELECT 1 FROM {STATE} JOIN {waiting.control} control "
        f"ON control.id = {STATE}.view_id JOIN {waiting.shard} shard "
        f"ON shard.id = {STATE}.shard_id{kept.text} WHERE {usable.text})",
        kept.params,
    )
    obstacles = [SQL(f"NOT {state.text}", state.params), *_unvalued(plan, waiting, sums)]
    by_keys = _by_keys(plan)
    parts = [
        *by_keys.parts,
        *sums.parts(),
        _fine(waiting, obstacles, SUMMED),
    ]
    summed = [*sums.queries(), rows.of_view(rows.of_parked())]
    found = [rows.sql.only_if(IS_SUMMED, each) for each in summed]
    found += [rows.sql.only_if(f"NOT {IS_SUMMED}", each) for each in by_keys.rows]
    return _Statement(rows.sql, parts, found)


def _kept_sums(plan: Plan, rows: CurrentRows) -> tuple[CurrentSums, SQL, SQL]:
    """The sums, what joins their record to `control` and `shard`, and when they may be used."""
    assert plan.additive is not None
    table = plan.dialect.name(ViewSums._meta.db_table)
    joins = SQL(
        f" JOIN {table} kept ON kept.view_id = control.id AND kept.fingerprint = %s "
        f"AND kept.log = %s",
        (plan.fingerprint, plan.additive.additive.log),
    )
    usable = SQL("kept.drain_number >= 0 AND kept.drain_number >= shard.full_refresh_after")
    return CurrentSums(plan.additive, rows), joins, usable


def _unvalued(plan: Plan, waiting: changes.WaitingSQL, sums: CurrentSums) -> list[SQL]:
    """Why sums and value logs may not be all that counts."""
    assert plan.additive is not None
    return [
        waiting.unresolved({table: [] for table in plan.additive.additive.logs}),
        *sums.obstacles(),
        sums.rows.sql.mixes_snapshots(),
    ]


class CurrentTable(RowsTable):
    """A view as of now, in place of its table."""

    rows = staticmethod(current_rows)
    key = staticmethod(current_key)


class CurrentQuery(RowsQuery):
    """A query of a view as of now."""

    base_table_class = CurrentTable
