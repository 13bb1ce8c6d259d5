"""Refreshes on change: which are due, by the schedules on change and what is pending.

A refresh is due `RefreshSchedule.delay` after the first of the pending changes was seen, so that a
burst of changes makes one refresh, and no change waits longer. It is requested like any other
refresh, so several processes may look at once, and correctness depends on none of them.
"""

import math
import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from django.db.models import Min

from .. import changes
from ..changes import LONG_LOG
from ..definition import ViewDefinition
from ..models import ParkedKey, RefreshSchedule, ViewShard
from ..phases import Phase
from .durations import time_left_after_change
from .pending import oldest_drained
from .queues import move_log
from .transactions import alias, now, utc_now

__all__ = ["DueRefresh", "Lookout", "has_dates", "phases_of", "why_not_followed"]

#: Seconds after which a lookout judges a schedule again whose refresh was not due yet, at most: an
#: operator may have changed it meanwhile.
TRUSTED = 5.0
#: Seconds for which it trusts what it has read of how long the refreshes of a view take.
DURATIONS_TRUSTED = 60.0


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

    A look is one statement for any number of views. It takes some more, again for any number, if
    changes have come since the last look, or a refresh is due; and one a minute for each view that
    is refreshed as late as its target allows, while it has changes pending.

    Args:
        labels: the views to look at; all by default.
    """

    def __init__(self, labels: Collection[str] | None = None) -> None:
        self._labels = labels
        #: When schedules with pending changes are to be judged again, by the monotonic clock, and
        #: whether changes were waiting to be drained when they last were.
        self._again: dict[int, tuple[float, bool]] = {}
        #: By schedule, the delay that its target allows, and until when that is trusted.
        self._allowed: dict[int, tuple[timedelta | None, float]] = {}

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
        judged = list(schedules.order_by("pk"))
        facts, due = _Facts([each.view_id for each in judged]), list[DueRefresh]()
        for schedule in judged:
            left = self._seconds_left(schedule, facts, waiting=found[schedule.pk])
            again = moment + max(0.0, min(left, TRUSTED))
            self._again[schedule.pk] = again, found[schedule.pk]
            if left <= 0:
                due.append(DueRefresh(schedule.view.label, phases_of(schedule)))
        return due

    def _seconds_left(self, schedule: RefreshSchedule, facts: "_Facts", *, waiting: bool) -> float:
        """How long until a refresh is due; infinite if it has nothing to do, or cannot begin."""
        view, definition = schedule.view, schedule.view.definition
        watched = self._labels is None or view.label in self._labels
        if not watched or definition is None or definition.errors or why_not_followed(definition):
            return math.inf
        if (hours := view.quiet_hours) and hours.until(utc_now()):
            return math.inf
        phases = phases_of(schedule)
        delay = self._delay(schedule, phases)
        if delay is None or not phases:
            return math.inf
        if waiting and not delay:
            return 0.0
        age = facts.drained_age(view.pk, phases)
        if waiting:
            age = max(age or timedelta(), facts.since_seen(schedule, phases))
        return math.inf if age is None else (delay - age).total_seconds()

    def _delay(self, schedule: RefreshSchedule, phases: Collection[Phase]) -> timedelta | None:
        if schedule.delay is not None:
            return schedule.delay
        allowed, until = self._allowed.get(schedule.pk, (None, -math.inf))
        if time.monotonic() >= until:
            allowed = time_left_after_change(schedule.view, phases)
            self._allowed[schedule.pk] = allowed, time.monotonic() + DURATIONS_TRUSTED
        return allowed


def phases_of(schedule: RefreshSchedule) -> tuple[Phase, ...]:
    """The phases that a schedule requests."""
    has = schedule.view.options.phases
    return tuple(phase for phase in has if not schedule.phases or phase in schedule.phases)


class _Facts:
    """What is known of the changes of some views, read at most once per look, each in a statement.

    Args:
        views: the primary keys of their controls.
    """

    def __init__(self, views: Collection[int]) -> None:
        self._views = views

    def since_seen(self, schedule: RefreshSchedule, phases: Collection[Phase]) -> timedelta:
        """For how long the first change that waits for a view can have been visible, at most.

        Its transaction may have logged it long before it committed. But the rows do not include
        it, so it was not visible yet when they were last computed.
        """
        age = self._waiting.get(schedule.view_id, timedelta())
        computed = [getattr(schedule.view, phase.as_of_field) for phase in phases]
        since = [now() - moment for moment in computed if moment]
        return min(age, max(since)) if since and None not in computed else age

    def drained_age(self, view_id: int, phases: Collection[Phase]) -> timedelta | None:
        """How old the oldest drained change is that one of the phases has yet to process.

        None if there is none, and no parked key to be tried again now.
        """
        shard = self._shards.get(view_id)
        if shard is None:
            return None
        oldest = oldest_drained(shard, phases)
        ages = [utc_now() - oldest] if oldest else []
        if shard.parked_count:
            retries = (self._retries.get((shard.pk, phase.value)) for phase in phases)
            ages += [now() - moment for moment in retries if moment]
        return max(ages, default=None)

    @cached_property
    def _waiting(self) -> Mapping[int, timedelta]:
        return changes.oldest_waiting(self._views)

    @cached_property
    def _shards(self) -> Mapping[int, ViewShard]:
        return {
            each.view_id: each for each in ViewShard.objects.filter(view__in=self._views, number=0)
        }

    @cached_property
    def _retries(self) -> Mapping[tuple[int, str], datetime]:
        """Since when parked keys are to be tried again, by shard and phase."""
        due = ParkedKey.objects.filter(shard__view__in=self._views, retry_at__lte=now())
        rows = due.order_by().values("shard", "phase").annotate(first=Min("retry_at"))
        return {(each["shard"], each["phase"]): each["first"] for each in rows}
