"""Waves: refreshes on change of views that read others, one after the other.

The rows that a refresh writes are changes of the source of the views that read them. Such a view
waits while one that it reads, over any number of views, is running or about to begin with changes
that are as old as its own: so a chain is refreshed in order, and a view that is reached in two ways
is refreshed once. It waits as long as its schedule's delay at most, but for `PATIENCE` at least, so
that no view without end keeps it waiting.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import NamedTuple, Protocol

from django.db.models import Exists, OuterRef

from .. import changes
from ..changes import Followed
from ..models import ParkedKey, PhaseRun, Refresh, RefreshSchedule, ViewControl, ViewShard
from ..phases import Phase
from ..registry import registry
from .durations import time_left_after_change
from .graph import reached, views_upstream
from .pending import oldest_drained
from .transactions import now, utc_now

__all__ = ["PATIENCE", "Ages", "DueRefresh", "Wave", "delay_of", "phases_of"]

#: How long a refresh that is due waits for views upstream, if its schedule's delay is shorter.
PATIENCE = timedelta(seconds=10)
#: Refreshes of one view that another is said to follow.
MAX_CAUSES = 10


class DueRefresh(NamedTuple):
    """A refresh that is to be requested now."""

    #: The label of the view.
    label: str
    phases: tuple[Phase, ...]
    #: The refreshes of views that it reads, whose rows it follows.
    causes: tuple[Refresh, ...] = ()


def phases_of(schedule: RefreshSchedule) -> tuple[Phase, ...]:
    """The phases that a schedule requests."""
    has = schedule.view.options.phases
    return tuple(phase for phase in has if not schedule.phases or phase in schedule.phases)


def delay_of(schedule: RefreshSchedule) -> timedelta | None:
    """How long after a change a refresh is due; None if it is for a target that there is not."""
    if schedule.delay is not None:
        return schedule.delay
    return time_left_after_change(schedule.view, phases_of(schedule))


class Ages:
    """How old the changes are that views have yet to process; read once per look, if at all."""

    def __init__(self) -> None:
        self._waiting: Mapping[int, timedelta] | None = None

    def oldest(self, view_id: int, phases: Collection[Phase]) -> timedelta | None:
        """How long ago the oldest change was logged, drained or not; None if there is none."""
        ages = [self._of_waiting(view_id), _drained_age(view_id, phases)]
        return max(filter(None, ages), default=None)

    def since_seen(self, schedule: RefreshSchedule, *, waiting: bool) -> timedelta | None:
        """For how long the first change can have been visible, at most; None if there is none.

        Its transaction may have logged it long before it committed. But the rows do not include
        it, so it was not visible yet when they were last computed.
        """
        phases = phases_of(schedule)
        drained = _drained_age(schedule.view_id, phases)
        if not waiting:
            return drained
        age = self._of_waiting(schedule.view_id) or timedelta()
        computed = [getattr(schedule.view, phase.as_of_field) for phase in phases]
        since = [now() - moment for moment in computed if moment]
        age = min(age, max(since)) if since and None not in computed else age
        return max(drained or timedelta(), age)

    def _of_waiting(self, view_id: int) -> timedelta | None:
        if self._waiting is None:
            self._waiting = changes.oldest_waiting()
        return self._waiting.get(view_id)


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


class SecondsLeft(Protocol):
    """Tells how long until a schedule is due, whatever happens upstream."""

    def __call__(self, schedule: RefreshSchedule, ages: Ages, *, waiting: bool) -> float: ...


class Wave:
    """What one look has found: who is due, and who waits for whom.

    Args:
        found: what is pending and what is running.
        seconds_left: tells when a schedule is due; asked once for each, if at all.
    """

    def __init__(self, found: Followed, seconds_left: SecondsLeft) -> None:
        self._found, self._seconds_left = found, seconds_left
        pending = RefreshSchedule.objects.filter(pk__in=list(found.pending))
        schedules = list(pending.select_related("view").order_by("pk"))
        self._reads = views_upstream(*(each.view.label for each in schedules))
        #: The schedules with pending changes, those of views upstream first.
        self.schedules = sorted(schedules, key=lambda each: len(self._upstream(each.view)))
        self._ages, self._left = Ages(), dict[int, float]()

    def seconds_left(self, schedule: RefreshSchedule) -> float:
        """How long until it is due, whatever happens upstream."""
        if schedule.pk not in self._left:
            waiting = self._found.pending[schedule.pk]
            self._left[schedule.pk] = self._seconds_left(schedule, self._ages, waiting=waiting)
        return self._left[schedule.pk]

    def is_held(self, schedule: RefreshSchedule) -> bool:
        """Whether a schedule that is due waits for views upstream."""
        view = schedule.view
        upstream = self._upstream(view)
        running = upstream & self._found.running
        pending = [each for each in self.schedules if each.view.label in upstream]
        if not (running or pending):
            return False
        waiting = self._found.pending[schedule.pk]
        delay = delay_of(schedule) or timedelta()
        patience = delay + max(delay, PATIENCE)
        age = self._ages.since_seen(schedule, waiting=waiting) or timedelta()
        left = (patience - age).total_seconds()
        if left <= 0:
            return False
        own = self._ages.oldest(view.pk, phases_of(schedule)) or timedelta()
        for each in pending:
            if self.seconds_left(each) < left and self._is_as_old(each.view_id, own):
                return True
        return any(self._is_as_old(view_id, own) for view_id in self._keys(running))

    def _is_as_old(self, view_id: int, than: timedelta) -> bool:
        """Whether a view has changes to process as old as that, or none that are known."""
        age = self._ages.oldest(view_id, tuple(Phase))
        return age is None or age >= than

    def _keys(self, labels: Collection[str]) -> list[int]:
        if not labels:
            return []
        return list(ViewControl.objects.filter(label__in=labels).values_list("pk", flat=True))

    def _upstream(self, view: ViewControl) -> set[str]:
        """Labels of the views that a view reads, over any number of views."""
        return reached([view.label], self._reads) - {view.label}

    def due_refresh(self, schedule: RefreshSchedule) -> DueRefresh:
        """The refresh that a schedule requests, and what it follows."""
        label, phases = schedule.view.label, phases_of(schedule)
        read = self._reads.get(label)
        if not read:
            return DueRefresh(label, phases)
        is_new = self._found.pending[schedule.pk]
        causes = _causes(schedule, read) if is_new else _causes_before(schedule)
        return DueRefresh(label, phases, tuple(sorted(causes, key=lambda cause: cause.pk)))


def _causes(schedule: RefreshSchedule, read: Collection[str]) -> list[Refresh]:
    """The refreshes of the views that a view reads, whose rows it has yet to process."""
    tables = {registry.find(label).model._meta.db_table: label for label in read}
    waiting = changes.waiting_tables(schedule.view_id, tables)
    if not waiting:
        return []
    times = [getattr(schedule.view, phase.as_of_field) for phase in phases_of(schedule)]
    wrote = PhaseRun.objects.filter(refresh=OuterRef("pk"), rows__gt=0)
    if since := min(filter(None, times), default=None):
        wrote = wrote.filter(ran_at__gt=since)
    labels = [tables[table] for table in waiting]
    found = Refresh.objects.filter(Exists(wrote.order_by()), view__label__in=labels)
    return list(found.order_by("-pk")[: MAX_CAUSES if since else len(labels)])


def _causes_before(schedule: RefreshSchedule) -> list[Refresh]:
    """What the last refresh of a view followed, which has left changes to process."""
    last = Refresh.objects.filter(view=schedule.view_id).order_by("-pk").first()
    return list(Refresh.objects.filter(pk__in=last.causes)) if last and last.causes else []
