"""How recent the rows of a view are: one or two statements, for pages that show them.

If the view reads others, a third one reads the status of these. The statements read no catalog:
triggers count as the maintenance task last found them. All times come from committed rows, so none
is later than the snapshot of the caller's transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import DatabaseError
from django.db.models import (
    Case,
    DateTimeField,
    Exists,
    F,
    FilteredRelation,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
)

from ... import changes
from ...changes import Tracking
from ...databases import clock
from ...databases.clock import UtcNow
from ...definition import ViewDefinition
from ...exceptions import InvalidView
from ...models import (
    Heartbeat,
    PhaseRun,
    Refresh,
    ScheduleKind,
    ShardChange,
    ViewChange,
    ViewShard,
    intervals_of,
)
from ...queryset import fingerprint_of, plan_of
from ...registry import registry
from ...states import RefreshState, ViewState
from ..failures.backoff import is_forced, may_begin
from ..graph.upstream import Upstream, upstream_problems
from ..tracking.pending_drains import oldest_drained
from ..transactions import alias
from .statuses import compute_status
from .timeliness import Sources
from .view_status import ViewStatus

__all__ = ["DataStatus", "data_status"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataStatus:
    """As of when the rows of a view are, and whether it is well."""

    #: Every change of the source that committed before this moment is in the rows, as `source()` or
    #: the hooks compute them now. None if no moment can be promised.
    as_of: datetime | None
    #: Whether changes wait for a refresh or keys are parked, even if none of these is due for a
    #: retry; None if changes of the view are not tracked.
    pending: bool | None
    #: The state that operators see.
    state: ViewState
    #: Whether it works and its rows are no older than its target, if it has one, and no view that
    #: it reads has failed or is held.
    on_time: bool
    #: Labels of the views that it reads, directly or through others, and that have failed; and of
    #: those that a person has paused or disabled.
    upstream_failed: tuple[str, ...] = ()
    upstream_paused: tuple[str, ...] = ()


def data_status(view: str | type) -> DataStatus:
    """How recent the rows of a view are, and whether changes are pending.

    Raises:
        UnknownView: there is no such view.
    """
    definition = registry.find(view)
    tracking = changes.known_tracking(definition, alias())
    rows = list(_query(definition, tracking))
    if not rows:
        state = ViewState.NOT_MIGRATED
        return DataStatus(as_of=None, pending=None, state=state, on_time=False)
    first, shards = rows[0], list({row.pk: row for row in rows}.values())
    for facts in (first, shards[0]):
        facts.queued_at = _oldest_queued(shards)
        facts.marked = any(shard.marked or shard.marked_here for shard in shards)
    control = _control(rows, shards)
    unlogged = set() if tracking.reason else changes.recorded_as_unlogged(control.pk, tracking)
    upstream = upstream_problems(definition.label)
    status = _status(definition, control, first, tracking, unlogged, upstream)
    read = _Read(definition, control, shards, status)
    logged = not tracking.reason and not unlogged
    return DataStatus(
        as_of=read.as_of(logged=logged),
        pending=not read.is_current if logged else None,
        state=status.state,
        on_time=status.on_time,
        upstream_failed=upstream.failed,
        upstream_paused=upstream.held,
    )


def _oldest_queued(shards: Iterable[Any]) -> datetime | None:
    """When the oldest change was logged that is in a queue of the view or of one of its shards."""
    times = (at for shard in shards for at in (shard.queued_at, shard.queued_here))
    return min(filter(None, times), default=None)


def _query(definition: ViewDefinition, tracking: Tracking) -> QuerySet[Any]:
    """A row for each shard and schedule of a view, with what is known about it.

    One statement, because a change is first in the log, then in the queue, then counted by the
    shard.
    """
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    own = {"view": OuterRef("view")}
    queue = ViewChange.objects.filter(**own).order_by()
    own_queue = ShardChange.objects.filter(shard=OuterRef("pk")).order_by()
    unknown = Value(None, output_field=DateTimeField())
    schedules = FilteredRelation(
        "view__schedules",
        condition=Q(view__schedules__enabled=True, view__schedules__kind=ScheduleKind.REFRESH),
    )
    return (
        ViewShard.objects.filter(view__label=definition.label)
        .select_related("view")
        .annotate(
            schedule=schedules,
            every=F("schedule__every"),
            period=F("schedule__period"),
            on_change=F("schedule__on_change"),
            scheduled_phases=F("schedule__phases"),
            schedule_id=F("schedule__pk"),
            now=UtcNow(),
            waits=Case(When(may_begin("view__") | is_forced("view"), then=False), default=True),
            last_state=Subquery(ended.filter(**own).order_by("-pk").values("state")[:1]),
            opened=Subquery(
                Refresh.objects.filter(**own, state=RefreshState.OPEN).values("pk")[:1]
            ),
            logged_at=unknown if tracking.reason else changes.oldest_logged(tracking, alias()),
            queued_at=Subquery(
                queue.values("view").annotate(oldest=Min("logged_at")).values("oldest")
            ),
            marked=Exists(queue.filter(table="")),
            queued_here=Subquery(
                own_queue.values("shard").annotate(oldest=Min("logged_at")).values("oldest")
            ),
            marked_here=Exists(own_queue.filter(table="")),
            mixed=Exists(_runs_of_others(definition)),
            triggers_seen_at=Subquery(Heartbeat.objects.values("triggers_seen_at")[:1]),
        )
        .order_by("number", "schedule_id")
    )


def _runs_of_others(definition: ViewDefinition) -> QuerySet[PhaseRun]:
    """Runs by another definition since a phase last succeeded: their rows may still be there."""
    current = fingerprint_of(definition, alias()) if definition.derived else ""
    since = Q()
    for phase in definition.options.phases:
        since |= Q(last_batch_at__gt=OuterRef(f"view__{phase.success_field}"))
    runs = PhaseRun.objects.filter(since, shard=OuterRef("pk"))
    return runs.exclude(fingerprint__in=("", current or "")) if current else runs.none()


def _control(rows: Sequence[Any], shards: list[Any]) -> Any:
    """The control, with what `compute_status` needs to know of it."""
    first = rows[0]
    control = first.view
    control.last_state, control.last_error = first.last_state, None
    control.now, control.waits = first.now, first.waits
    schedules = {
        row.schedule_id: (row.every, row.period, row.on_change, row.scheduled_phases)
        for row in rows
        if row.schedule_id
    }
    control.all_shards = shards
    control.intervals = intervals_of(schedules.values())
    control._state.fields_cache["verify_run"] = None  # nobody asks for it here
    control.open_refreshes, control.follows = [], False
    if first.opened:
        refresh: Any = Refresh(pk=first.opened, phases=[""], requested_at=first.now)
        refresh.all_runs = []
        control.open_refreshes = [refresh]
    return control


def _status(
    definition: ViewDefinition,
    control: Any,
    facts: Any,
    tracking: Tracking,
    unlogged: set[str],
    upstream: Upstream,
) -> ViewStatus:
    since = [moment for moment in (facts.logged_at, facts.queued_at) if moment]
    tracked = {} if tracking.reason else {control.pk: tracking}
    sources = Sources(
        now=clock.stored(control.now, alias()),
        waiting={control.pk: control.now - min(since)} if since else {},
        trackings=tracked,
        unlogged={control.pk: unlogged} if tracked else {},
        untrackable=(),
    )
    return compute_status(definition.label, definition, control, None, sources, upstream)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of a view."""

    definition: ViewDefinition
    control: Any
    shards: list[Any]
    status: ViewStatus

    @property
    def is_current(self) -> bool:
        """Whether no logged change is pending."""
        facts = self.shards[0]
        return (
            not (facts.logged_at or facts.queued_at or self.status.parked)
            and self._reflects_source
            and all(
                shard.checkpoints[phase].drain_number == shard.drain_number
                for shard in self.shards
                for phase in self.definition.options.phases
            )
        )

    @property
    def _reflects_source(self) -> bool:
        """Whether all rows are of `source()` as it is now, apart from logged changes."""
        try:
            exact = plan_of(self.definition, alias()).exact_fingerprint
        except (InvalidView, DatabaseError):
            return False
        return all(
            phase in shard.checkpoints
            and shard.checkpoints[phase].fingerprint == exact
            and shard.checkpoints[phase].drain_number >= shard.full_refresh_after
            for shard in self.shards
            for phase in self.definition.options.phases
        )

    def as_of(self, *, logged: bool) -> datetime | None:
        """The latest moment that can be promised.

        Args:
            logged: whether all changes that matter to the view are logged.
        """
        definition, facts = self.definition, self.shards[0]
        if (
            definition.errors
            or self.status.definition_changed
            or self.status.differing
            or any(shard.mixed for shard in self.shards)
        ):
            return None
        phases = [getattr(self.control, phase.as_of_field) for phase in definition.options.phases]
        if None in phases:
            return None
        recorded: datetime = min(phases)
        # Whoever marks keys knows of changes that were not logged.
        certain = logged and not self.status.parked and not facts.marked
        if not certain or not facts.triggers_seen_at or not self._reflects_source:
            return recorded
        bounds: list[datetime] = [facts.triggers_seen_at, *self._pending_since()]
        return max(recorded, min(bounds))

    def _pending_since(self) -> list[datetime]:
        """When the oldest changes that are pending were logged, which was before they committed."""
        facts, phases = self.shards[0], self.definition.options.phases
        drained = [oldest_drained(shard, phases) for shard in self.shards]
        return [
            *(clock.stored(at, alias()) for at in (facts.logged_at, facts.queued_at) if at),
            *(clock.from_utc(at, alias()) for at in drained if at),
        ]
