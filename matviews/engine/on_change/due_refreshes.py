"""Refreshes on change: which are due, by the schedules on change and what is pending.

A refresh is due `RefreshSchedule.delay` after the first of the pending changes was seen, so that a
burst of changes makes one refresh, and no change waits longer. It is requested like any other
refresh, so several processes may poll at once, and correctness depends on none of them. What waits
for views upstream is in `waves`.
"""

import math
import time
from collections.abc import Collection
from datetime import timedelta

from ... import changes
from ...changes import Followed
from ...definition import ViewDefinition
from ...models import RefreshSchedule
from ..graph.loops import Echoes
from ..tracking.change_ages import Ages, phases_of
from ..tracking.queues import move_log
from ..transactions import alias, utc_now
from .durations import time_left_after_change
from .waves import DueRefresh, Wave

__all__ = ["ChangePoller", "has_dates", "on_change_obstacle"]

#: Seconds after which a poller checks a schedule again whose refresh was not due yet, at most: an
#: operator may have changed it meanwhile.
TRUSTED = 5.0
#: Seconds for which it trusts what it has read of how long the refreshes of a view take.
DURATIONS_TRUSTED = 60.0
#: Seconds after which it checks again whether a refresh must still wait for views upstream, if
#: nothing has begun or ended meanwhile.
UPSTREAM_TRUSTED = 1.0


def on_change_obstacle(definition: ViewDefinition | None) -> str:
    """Why a view cannot be refreshed on change: its changes are not known. "" if it can."""
    return changes.known_tracking(definition, alias()).reason if definition else ""


def has_dates(definition: ViewDefinition | None) -> bool:
    """Whether time alone may change the rows of a view, by dates in its `source()`."""
    return definition is not None and changes.known_tracking(definition, alias()).has_dates


class ChangePoller:
    """Polls for refreshes that are due on change.

    A poll is one statement for any number of views. It takes some more, again for any number, if
    changes have come since the last poll, or a refresh is due; and one a minute for each view that
    is refreshed as late as its target allows, while it has changes pending; and a few for each
    refresh that is due because of others.

    Args:
        labels: the views to poll for; all by default.
    """

    def __init__(self, labels: Collection[str] | None = None) -> None:
        self._labels = labels
        #: When schedules with pending changes are to be checked again, by the monotonic clock, and
        #: whether changes were waiting to be drained when they last were.
        self._again: dict[int, tuple[float, bool]] = {}
        #: The schedules that wait for views upstream, and what was pending and running then.
        self._after_upstream, self._around = set[int](), (frozenset[int](), frozenset[str]())
        #: By schedule, the delay that its target allows, and until when that is trusted.
        self._allowed: dict[int, tuple[timedelta | None, float]] = {}
        self._echoes = Echoes()

    def poll(self) -> list[DueRefresh]:
        """The refreshes that are due, each after those of the views that it reads.

        There are none of views with an open refresh.
        """
        found = changes.followed_changes(alias())
        if found.is_long:  # its entries for other views must not hide those that follow them
            move_log()
            found = changes.followed_changes(alias())
        moment, pending = time.monotonic(), found.pending
        self._again = {pk: again for pk, again in self._again.items() if pk in pending}
        around = frozenset(pending), frozenset(found.running)
        released = self._after_upstream if around != self._around else set[int]()
        self._around = around
        to_check = set[int]()
        for pk, each in pending.items():
            again, was_waiting = self._again.get(pk, (moment, each.waiting))
            if again <= moment or (each.waiting and not was_waiting) or pk in released:
                to_check.add(pk)
        self._after_upstream &= pending.keys() - to_check
        return self._check(found, to_check, moment) if to_check else []

    def _check(self, found: Followed, to_check: set[int], moment: float) -> list[DueRefresh]:
        wave, due = Wave(found, to_check, self._seconds_left, self._delay), list[DueRefresh]()
        for schedule in wave.schedules:
            if schedule.pk not in to_check:
                continue
            left = wave.seconds_left(schedule)
            if left <= 0 and (wait := wave.upstream_wait(schedule)):
                self._after_upstream.add(schedule.pk)
                left = min(UPSTREAM_TRUSTED, wait)
            elif left <= 0:
                left = self._echoes.record_due(schedule.view)
            again = moment + max(0.0, min(left, TRUSTED))
            self._again[schedule.pk] = again, found.pending[schedule.pk].waiting
            if left <= 0:
                due.append(wave.due_refresh(schedule))
        return due

    def _seconds_left(self, schedule: RefreshSchedule, ages: Ages, *, waiting: bool) -> float:
        """How long until a refresh is due; infinite if it has nothing to do, or cannot begin."""
        view, definition = schedule.view, schedule.view.definition
        watched = self._labels is None or view.label in self._labels
        if not watched or definition is None or definition.errors or on_change_obstacle(definition):
            return math.inf
        if (hours := view.quiet_hours) and hours.until(utc_now()):
            return math.inf
        delay = self._delay(schedule)
        if delay is None or not phases_of(schedule):
            return math.inf
        if waiting and not delay:
            return 0.0
        age = ages.since_seen(schedule, waiting=waiting)
        return math.inf if age is None else (delay - age).total_seconds()

    def _delay(self, schedule: RefreshSchedule) -> timedelta | None:
        """How long after a change a refresh is due; None if there is no target."""
        if schedule.delay is not None:
            return schedule.delay
        allowed, until = self._allowed.get(schedule.pk, (None, -math.inf))
        if time.monotonic() >= until:
            allowed = time_left_after_change(schedule.view, phases_of(schedule))
            self._allowed[schedule.pk] = allowed, time.monotonic() + DURATIONS_TRUSTED
        return allowed
