"""Waves: refreshes on change of views that read others, one after the other.

The rows that a refresh writes are changes of the source of the views that read them. Such a view
waits while a view that it reads, directly or through others, is being refreshed, or is about to be,
with changes that are at least as old as its own: so a chain is refreshed in order, and a view that
depends on a table through two others is refreshed once. It waits at most for its schedule's delay,
or for `UPSTREAM_WAIT` if that is longer, so that no view keeps it waiting forever.
"""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from django.db.models import Exists, OuterRef

from ... import changes
from ...changes import Followed
from ...models import PhaseRun, Refresh, RefreshSchedule, ViewControl
from ...phases import Phase
from ...registry import registry
from ..graph.view_graph import reached, views_upstream
from ..tracking.change_ages import Ages, phases_of

__all__ = ["UPSTREAM_WAIT", "DueRefresh", "Wave"]

#: How long a refresh that is due waits for views upstream at most, if its schedule's delay is
#: shorter.
UPSTREAM_WAIT = timedelta(seconds=10)
#: By how much ages may differ that were read one after the other.
TOLERANCE = timedelta(milliseconds=100)
#: How long before a view was last computed a batch may have begun whose rows it has not seen.
LONG_BATCH = timedelta(minutes=1)
#: Refreshes of one view that another is said to follow.
MAX_NAMED = 10


class DueRefresh(NamedTuple):
    """A refresh that is to be requested now."""

    #: The label of the view.
    label: str
    phases: tuple[Phase, ...]
    #: The refreshes of views that it reads, whose rows it follows.
    upstream_refreshes: tuple[Refresh, ...] = ()


class SecondsLeft(Protocol):
    """Tells how long until a schedule is due, whatever happens upstream."""

    def __call__(self, schedule: RefreshSchedule, ages: Ages, *, waiting: bool) -> float: ...


class Wave:
    """What one poll has found: which views are due, and which wait for others.

    Args:
        found: what is pending and what is running.
        to_check: the primary keys of the schedules that are to be checked.
        seconds_left: tells when a schedule is due; asked once for each, if at all.
        delay: tells how long after a change a schedule is due.
    """

    def __init__(
        self,
        found: Followed,
        to_check: Collection[int],
        seconds_left: SecondsLeft,
        delay: Callable[[RefreshSchedule], timedelta | None],
    ) -> None:
        self._found, self._seconds_left, self._delay = found, seconds_left, delay
        self._reads = views_upstream(*(found.pending[each].label for each in to_check))
        upstream = [pk for pk, each in found.pending.items() if each.label in self._reads]
        pending = RefreshSchedule.objects.filter(pk__in={*to_check, *upstream})
        schedules = list(pending.select_related("view").order_by("pk"))
        #: Those to be checked, and those of views upstream with pending changes; these first.
        self.schedules = sorted(schedules, key=lambda each: len(self._upstream(each.view)))
        #: By label, the views upstream with an open refresh.
        self._running = {
            label: view for label, view in found.running.items() if label in self._reads
        }
        views = {each.view_id for each in schedules} | set(self._running.values())
        self._ages, self._left = Ages(views), dict[int, float]()

    def seconds_left(self, schedule: RefreshSchedule) -> float:
        """How long until it is due, whatever happens upstream."""
        if schedule.pk not in self._left:
            waiting = self._found.pending[schedule.pk].waiting
            self._left[schedule.pk] = self._seconds_left(schedule, self._ages, waiting=waiting)
        return self._left[schedule.pk]

    def upstream_wait(self, schedule: RefreshSchedule) -> float:
        """For how many seconds at most a schedule that is due still waits for views upstream."""
        view = schedule.view
        upstream = self._upstream(view)
        running = [pk for label, pk in self._running.items() if label in upstream]
        pending = [each for each in self.schedules if each.view.label in upstream]
        if not (running or pending):
            return 0.0
        waiting = self._found.pending[schedule.pk].waiting
        delay = self._delay(schedule) or timedelta()
        age = self._ages.since_seen(schedule, waiting=waiting) or timedelta()
        left = (delay + max(delay, UPSTREAM_WAIT) - age).total_seconds()
        if left <= 0:
            return 0.0
        begin = (each.view_id for each in pending if self.seconds_left(each) < left)
        own = self._ages.oldest(view.pk, phases_of(schedule)) or timedelta()
        return left if any(self._is_as_old(pk, own) for pk in (*running, *begin)) else 0.0

    def _is_as_old(self, view_id: int, than: timedelta) -> bool:
        """Whether a view has changes to process about as old as that, or none that are known."""
        age = self._ages.oldest(view_id, tuple(Phase))
        return age is None or age >= than - TOLERANCE

    def _upstream(self, view: ViewControl) -> set[str]:
        """Labels of the views that a view reads, directly or through others."""
        return reached([view.label], self._reads) - {view.label}

    def due_refresh(self, schedule: RefreshSchedule) -> DueRefresh:
        """The refresh that a schedule requests, and what it follows."""
        label, phases = schedule.view.label, phases_of(schedule)
        read = self._reads.get(label)
        if not read:
            return DueRefresh(label, phases)
        is_new = self._found.pending[schedule.pk].waiting
        found = _upstream_refreshes(schedule, read) if is_new else _upstream_before(schedule)
        return DueRefresh(label, phases, tuple(sorted(found, key=lambda each: each.pk)))


def _upstream_refreshes(schedule: RefreshSchedule, read: Collection[str]) -> list[Refresh]:
    """The refreshes of the views that a view reads, whose rows it has yet to process."""
    tables = {registry.find(label).model._meta.db_table: label for label in read}
    waiting = changes.waiting_tables(schedule.view_id, tables)
    if not waiting:
        return []
    labels = [tables[table] for table in waiting]
    times = [getattr(schedule.view, phase.as_of_field) for phase in phases_of(schedule)]
    since = min(filter(None, times), default=None)
    if since is None:
        return _written(labels, None, len(labels))
    return _written(labels, since, MAX_NAMED) or _written(labels, since - LONG_BATCH, len(labels))


def _written(labels: Collection[str], since: datetime | None, count: int) -> list[Refresh]:
    """The last refreshes of these views that have written rows since a moment."""
    wrote = PhaseRun.objects.filter(refresh=OuterRef("pk"), rows__gt=0)
    if since:
        wrote = wrote.filter(last_batch_at__gt=since)
    found = Refresh.objects.filter(Exists(wrote.order_by()), view__label__in=labels)
    return list(found.order_by("-pk")[:count])


def _upstream_before(schedule: RefreshSchedule) -> list[Refresh]:
    """What the last refresh of a view followed, which has left changes to process."""
    last = Refresh.objects.filter(view=schedule.view_id).order_by("-pk").first()
    followed = last.upstream_refreshes if last else []
    return list(Refresh.objects.filter(pk__in=followed)) if followed else []
