"""Refreshes of views on change that are due for another reason than a logged change.

A `ChangePoller` finds what is logged. This module finds the phases that are due for any other
reason: those that `change_status_of` does not call fresh although no change is pending.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef

from ... import changes
from ...changes import Tracking
from ...definition import ViewDefinition
from ...models import Refresh, RefreshSchedule, ViewControl, ViewShard
from ...phases import Phase
from ...queryset import fingerprint_of
from ...states import RefreshState
from ..failures.backoff import may_begin
from ..failures.fingerprints import changed_phases
from ..parking.parked_keys import max_parked
from ..tracking.change_ages import phases_of
from ..tracking.pending_drains import oldest_drained
from ..transactions import alias, now, utc_now
from .durations import usual_duration
from .waves import DueRefresh

__all__ = ["due_without_change"]

#: Views whose changes are not logged, for lack of triggers, are refreshed again after the interval,
#: or after this multiple of what their refreshes take if that is longer.
UNLOGGED_INTERVAL, UNLOGGED_SHARE = timedelta(minutes=10), 10


class _Followed(NamedTuple):
    """A schedule on change, and what is known about its view."""

    schedule: RefreshSchedule
    definition: ViewDefinition
    tracking: Tracking
    shards: Sequence[ViewShard]
    #: Whether all changes of its sources are logged.
    logged: bool

    @property
    def view(self) -> ViewControl:
        return self.schedule.view


def due_without_change(labels: Collection[str] | None = None) -> Iterator[DueRefresh]:
    """The refreshes of views on change that are due although no change is pending.

    So their phases have never succeeded, or have failed; or their rows are not all of the present
    `source()`, as after a definition that was rolled back half-built; or they must be
    recomputed; or changes are not logged.

    The number of statements does not depend on the number of views, except on how many of them lack
    triggers. Dates in `source()` that have moved are no reason: a schedule by time is for them.

    Args:
        labels: the views to check; all by default.
    """
    for each in _followed(labels):
        reasons = _Reasons(each)
        if phases := tuple(phase for phase in phases_of(each.schedule) if reasons.has(phase)):
            yield DueRefresh(each.view.label, phases)


def _followed(labels: Collection[str] | None) -> Iterator[_Followed]:
    """The enabled schedules whose views are tracked and may begin a refresh, and have none open."""
    unfinished = Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN)
    schedules = RefreshSchedule.objects.filter(
        ~Exists(unfinished.order_by()), may_begin("view__"),
        on_change=True, enabled=True, view__enabled=True, view__paused=False,
    )  # fmt: skip
    if labels is not None:
        schedules = schedules.filter(view__label__in=labels)
    found = [
        (schedule, definition, tracking)
        for schedule in schedules.select_related("view").order_by("pk")
        if (definition := schedule.view.definition)
        and not definition.errors
        and not (tracking := changes.known_tracking(definition, alias())).reason
        and not ((hours := schedule.view.quiet_hours) and hours.until(utc_now()))
    ]
    trackings = {schedule.view_id: tracking for schedule, _definition, tracking in found}
    unlogged = changes.unlogged_tables(trackings, alias())
    shards = defaultdict[int, list[ViewShard]](list)
    for shard in ViewShard.objects.filter(view__in=trackings).order_by("pk"):
        shards[shard.view_id].append(shard)
    for schedule, definition, tracking in found:
        if schedule.view_id in shards:
            logged = not unlogged[schedule.view_id]
            yield _Followed(schedule, definition, tracking, shards[schedule.view_id], logged)


class _Reasons:
    """Why phases of a view have work, other than changes."""

    def __init__(self, followed: _Followed) -> None:
        self._each = followed
        self._changed = changed_phases(followed.definition, followed.view)
        #: "" if a refresh would only fail. Without dates it is the exact one.
        self._fingerprint = fingerprint_of(followed.definition, alias())

    def has(self, phase: Phase) -> bool:
        """Whether there is one for this phase."""
        if not self._fingerprint:
            return False
        succeeded = getattr(self._each.view, phase.success_field)
        if succeeded is None or phase in self._changed or self._has_failed(phase):
            return True
        if not self._each.logged:
            return bool(now() - succeeded >= self._unlogged_interval())
        return self._must_be_full(phase) or self._may_park_no_longer()

    def _has_failed(self, phase: Phase) -> bool:
        """Whether a success of this phase would show that the view no longer fails."""
        view, present = self._each.view, self._each.definition.options.phases
        return view.failures > 0 and (
            phase in view.failed_phases or not set(view.failed_phases) & set(present)
        )

    def _unlogged_interval(self) -> timedelta:
        view = self._each.view
        takes = usual_duration(view.pk, self._each.definition.options.phases)
        return max(UNLOGGED_INTERVAL, UNLOGGED_SHARE * (takes or timedelta()))

    def _must_be_full(self, phase: Phase) -> bool:
        """Whether the next run is a full refresh, for a reason that no pending change brings."""
        return any(self._must_be_full_in(shard, phase) for shard in self._each.shards)

    def _must_be_full_in(self, shard: ViewShard, phase: Phase) -> bool:
        reached = shard.checkpoints.get(phase)
        if reached is None or reached.drain_number < 0:
            return True
        if reached.fingerprint != self._fingerprint and not self._each.tracking.has_dates:
            return True
        required = reached.drain_number < shard.full_refresh_after
        return required and oldest_drained(shard, [phase]) is None

    def _may_park_no_longer(self) -> bool:
        """Whether keys are parked although the view may no longer have any."""
        parked = any(shard.parked_count for shard in self._each.shards)
        return parked and not max_parked(self._each.definition)
