"""Refreshes on change: which are due, by the schedules on change and what is pending.

A refresh is due `RefreshSchedule.delay` after the first of the pending changes was seen, so that a
burst of changes makes one refresh, and no change waits longer. It is requested like any other
refresh, so several processes may look at once, and correctness depends on none of them.
"""

import math
import time
from collections.abc import Collection, Iterator

from django.db.models import Exists, OuterRef

from .. import changes
from ..changes import Followed
from ..definition import ViewDefinition
from ..models import Refresh, RefreshSchedule
from ..states import RefreshState
from .echoes import Echoes
from .failures import may_begin
from .fingerprints import changed_phases
from .queues import move_log
from .transactions import alias, utc_now
from .waves import Ages, DueRefresh, Wave, delay_of, phases_of

__all__ = ["DueRefresh", "Lookout", "due_without_change", "has_dates", "why_not_followed"]

#: Seconds after which a lookout judges a schedule again whose refresh was not due yet, at most.
TRUSTED = 1.0


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
        self._echoes = Echoes()

    def look(self) -> list[DueRefresh]:
        """The refreshes that are due, each after those of the views that it reads.

        There are none of views with an open refresh.
        """
        found = changes.followed_changes(alias())
        if found.is_long:  # its entries for other views must not hide those that follow them
            move_log()
            found = changes.followed_changes(alias())
        moment, pending = time.monotonic(), found.pending
        self._again = {pk: again for pk, again in self._again.items() if pk in pending}
        unsettled = set()
        for pk, waiting in pending.items():
            again, was_waiting = self._again.get(pk, (moment, waiting))
            if again <= moment or (waiting and not was_waiting):
                unsettled.add(pk)
        return self._judge(found, unsettled, moment) if unsettled else []

    def _judge(self, found: Followed, unsettled: set[int], moment: float) -> list[DueRefresh]:
        wave, due = Wave(found, self._seconds_left), list[DueRefresh]()
        for schedule in wave.schedules:
            if schedule.pk not in unsettled:
                continue
            left = wave.seconds_left(schedule)
            held = left <= 0 and wave.is_held(schedule)
            if left <= 0 and not held:
                left = self._echoes.seconds_left(schedule.view)
            again = moment if held else moment + max(0.0, min(left, TRUSTED))
            self._again[schedule.pk] = again, found.pending[schedule.pk]
            if left <= 0 and not held:
                due.append(wave.due_refresh(schedule))
        return due

    def _seconds_left(self, schedule: RefreshSchedule, ages: Ages, *, waiting: bool) -> float:
        """How long until a refresh is due; infinite if it has nothing to do, or cannot begin."""
        view, definition = schedule.view, schedule.view.definition
        watched = self._labels is None or view.label in self._labels
        if not watched or definition is None or definition.errors or why_not_followed(definition):
            return math.inf
        if (hours := view.quiet_hours) and hours.until(utc_now()):
            return math.inf
        phases, delay = phases_of(schedule), delay_of(schedule)
        if delay is None or not phases:
            return math.inf
        if waiting and not delay:
            return 0.0
        age = ages.since_seen(schedule, waiting=waiting)
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
            for phase in phases_of(schedule)
            if phase in changed or getattr(view, phase.success_field) is None
        )
        if phases:
            yield DueRefresh(view.label, phases)
