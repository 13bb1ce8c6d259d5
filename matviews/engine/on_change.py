"""Refreshes on change: which are due, by the schedules on change and what is pending.

A refresh is due `RefreshSchedule.delay` after the first of the pending changes was seen, so that a
burst of changes makes one refresh, and no change waits longer. It is requested like any other
refresh, so several processes may look at once, and correctness depends on none of them.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef

from .. import changes
from ..changes import LONG_LOG
from ..definition import ViewDefinition
from ..models import ParkedKey, Refresh, RefreshSchedule, ViewShard
from ..phases import Phase
from ..states import RefreshState
from .durations import time_left_after_change
from .failures import may_begin
from .fingerprints import changed_phases
from .pending import oldest_drained
from .queues import move_log
from .transactions import alias, now, utc_now

__all__ = ["DueRefresh", "Lookout", "due_without_change", "has_dates", "why_not_followed"]

#: Seconds after which a lookout judges a schedule again whose refresh was not due yet, at most.
TRUSTED = 1.0


class DueRefresh(NamedTuple):
    """A refresh that is to be requested now."""

    #: The label of the view.
    label: str
    phases: tuple[Phase, ...]


def why_not_followed(definition: ViewDefinition | None) -> str:
    """Why nobody can tell whether a view has changes to process; "" if they can."""
    return changes.known_tracking(definition, alias()).reason if definition else ""


def has_dates(definition: ViewDefinition | None) -> bool:
    """Whether time alone may change the rows of a view, by dates in its `source()`."""
    return definition is not None and changes.known_tracking(definition, alias()).has_dates


class Lookout:
    """Looks for refreshes that are due on change.

    A look is one statement for any number of views, unless a refresh is due or soon will be.

    Args:
        labels: the views to look at; all by default.
    """

    def __init__(self, labels: Collection[str] | None = None) -> None:
        self._labels = labels
        #: When schedules with pending changes are to be judged again, by the monotonic clock, and
        #: whether changes were waiting to be drained when they last were.
        self._again: dict[int, tuple[float, bool]] = {}

    def look(self) -> list[DueRefresh]:
        """The refreshes that are due. There are none of views with an open refresh."""
        found = changes.followed_changes(alias())
        if LONG_LOG in found:  # its entries for other views must not hide those that follow them
            move_log()
            found = changes.followed_changes(alias())
        found.pop(LONG_LOG, None)
        moment = time.monotonic()
        self._again = {pk: again for pk, again in self._again.items() if pk in found}
        unsettled = {}
        for pk, waiting in found.items():
            again, was_waiting = self._again.get(pk, (moment, waiting))
            if again <= moment or (waiting and not was_waiting):
                unsettled[pk] = waiting
        return self._judge(unsettled, moment) if unsettled else []

    def _judge(self, found: Mapping[int, bool], moment: float) -> list[DueRefresh]:
        schedules = RefreshSchedule.objects.filter(pk__in=list(found)).select_related("view")
        ages, due = _Ages(), list[DueRefresh]()
        for schedule in schedules.order_by("pk"):
            left = self._seconds_left(schedule, ages, waiting=found[schedule.pk])
            again = moment + max(0.0, min(left, TRUSTED))
            self._again[schedule.pk] = again, found[schedule.pk]
            if left <= 0:
                due.append(DueRefresh(schedule.view.label, _phases(schedule)))
        return due

    def _seconds_left(self, schedule: RefreshSchedule, ages: "_Ages", *, waiting: bool) -> float:
        """How long until a refresh is due; infinite if it has nothing to do, or cannot begin."""
        view, definition = schedule.view, schedule.view.definition
        watched = self._labels is None or view.label in self._labels
        if not watched or definition is None or definition.errors or why_not_followed(definition):
            return math.inf
        if (hours := view.quiet_hours) and hours.until(utc_now()):
            return math.inf
        phases = _phases(schedule)
        delay = schedule.delay
        if delay is None:
            delay = time_left_after_change(view, phases)
        if delay is None or not phases:
            return math.inf
        if waiting and not delay:
            return 0.0
        age = _drained_age(view.pk, phases)
        if waiting:
            age = max(age or timedelta(), ages.since_seen(schedule, phases))
        return math.inf if age is None else (delay - age).total_seconds()


def due_without_change() -> Iterator[DueRefresh]:
    """The refreshes of views on change that are due although their sources have not changed.

    A `Lookout` does not find them: their phases have never succeeded, or last succeeded with
    another definition than the code has now.
    """
    unfinished = Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN)
    schedules = RefreshSchedule.objects.filter(
        ~Exists(unfinished.order_by()), may_begin("view__"),
        on_change=True, enabled=True, view__enabled=True, view__paused=False,
    )  # fmt: skip
    for schedule in schedules.select_related("view").order_by("pk"):
        view, definition = schedule.view, schedule.view.definition
        if definition is None or definition.errors or why_not_followed(definition):
            continue
        changed = changed_phases(definition, view)
        phases = tuple(
            phase
            for phase in _phases(schedule)
            if phase in changed or getattr(view, phase.success_field) is None
        )
        if phases:
            yield DueRefresh(view.label, phases)


def _phases(schedule: RefreshSchedule) -> tuple[Phase, ...]:
    has = schedule.view.options.phases
    return tuple(phase for phase in has if not schedule.phases or phase in schedule.phases)


class _Ages:
    """How old the changes are that wait to be drained; read once per look, if at all."""

    def __init__(self) -> None:
        self._found: Mapping[int, timedelta] | None = None

    def since_seen(self, schedule: RefreshSchedule, phases: Collection[Phase]) -> timedelta:
        """For how long the first change that waits for a view can have been visible, at most.

        Its transaction may have logged it long before it committed. But the rows do not include
        it, so it was not visible yet when they were last computed.
        """
        if self._found is None:
            self._found = changes.oldest_waiting()
        age = self._found.get(schedule.view_id, timedelta())
        computed = [getattr(schedule.view, phase.as_of_field) for phase in phases]
        since = [now() - moment for moment in computed if moment]
        return min(age, max(since)) if since and None not in computed else age


def _drained_age(view_id: int, phases: Collection[Phase]) -> timedelta | None:
    """How old the oldest drained change is that one of the phases has yet to process.

    None if there is none, and no parked key to be tried again now.
    """
    shard = ViewShard.objects.filter(view=view_id).order_by("number").first()
    if shard is None:
        return None
    oldest = oldest_drained(shard, phases)
    parked = ParkedKey.objects.filter(shard=shard, phase__in=phases, retry_at__lte=now())
    retries = parked.order_by("retry_at").values_list("retry_at", flat=True)
    retried = retries.first() if shard.parked_count else None
    ages = [utc_now() - oldest] if oldest else []
    return max([*ages, now() - retried] if retried else ages, default=None)
