"""Following changes: a process that polls for refreshes that are due on change, and runs them.

It requests them as everybody does, so that several may poll at once, beside `matviews.pulse`.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from django.db import DatabaseError, InterfaceError
from django.db.models import QuerySet

from .. import engine
from ..conf import get_settings
from ..engine import ChangePoller, Message, NextStep, Outcome
from ..logs import log
from ..models import Refresh, RefreshSchedule
from ..redact import loggable
from ..states import RefreshState
from . import dispatch_all, dispatch_others, heartbeat
from .polling import request_due, request_without_change

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

#: Seconds between two polls: after a refresh, and at most, after polls that found none due.
SHORTEST_WAIT, LONGEST_WAIT = 0.02, 0.1
GROWTH = 1.25
#: The wait after a poll that found nothing, as a multiple of what it took. Polls may become
#: slow: 0.3 s on PostgreSQL, where a snapshot hides a million deleted entries from its vacuum.
IDLE_PER_POLL = 4
#: How many times per lease, and how often at least and at most, in seconds, it checks for work that
#: others have left.
CHECKS_PER_LEASE, SHORTEST_CHECK, LONGEST_CHECK = 4, 1.0, 15.0
#: Seconds until the next attempt while the database cannot be reached: the first, and the longest.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0


class Follower:
    """A process that polls for refreshes that are due, and runs them here or sends them to workers.

    Args:
        stop: asked before each poll and each batch; if true, it ends.
        report_alive: called after each poll that succeeded, after each batch, and while the
            database cannot be reached.
        labels: the views to follow; all by default.
        enqueue: whether workers run the refreshes.
    """

    def __init__(
        self,
        *,
        stop: Callable[[], bool],
        report_alive: Callable[[], object],
        labels: Collection[str] | None = None,
        enqueue: bool = False,
    ) -> None:
        self._stop, self._report_alive, self._enqueue = stop, report_alive, enqueue
        self._labels, self._poller = labels, ChangePoller(labels)
        #: None before the first poll, and after an outage.
        self._running: _Running | None = None
        self._next_check = 0.0

    def run(self) -> None:
        """Follow changes until it is to stop."""
        wait, retry = SHORTEST_WAIT, 0.0
        while not self._stop():
            began = time.monotonic()
            try:
                worked = self._work()
            except (DatabaseError, InterfaceError) as error:
                retry = min(2 * retry, LAST_RETRY) or FIRST_RETRY
                self._running = None  # the next poll finds what is open
                self._await_database(error, retry)
                continue
            if retry:
                log(logger, logging.INFO, "the database can be reached again")
                retry = 0.0
            heartbeat.try_record_poll("followed_at")
            self._report_alive()
            took = time.monotonic() - began
            wait = SHORTEST_WAIT if worked else min(wait * GROWTH, LONGEST_WAIT)
            if not (self._running and self._running.views):
                time.sleep(wait if worked else max(wait, IDLE_PER_POLL * took))
        if self._running:
            self._running.close()

    def _work(self) -> bool:
        """Poll once, and let each refresh that runs here take a turn; whether there was any."""
        views = self._begin() if self._running is None else self._left_by_others()
        views += request_due(self._poller)
        assert self._running is not None
        if self._enqueue:
            dispatch_all(views)
            return bool(views)
        self._running.add(views)
        return self._running.take_turns()

    def _begin(self) -> list[int]:
        """The views that a process before this one may have left, or a new release has changed."""
        views = request_without_change(self._labels)
        if not self._enqueue:
            views += _left_open(self._labels)
        self._running = _Running(self._stop, self._report_alive, self._labels)
        return views

    def _left_by_others(self) -> list[int]:
        """The views whose messages were lost or whose workers died; workers leave them to
        `matviews.maintain`.
        """
        moment = time.monotonic()
        if self._enqueue or moment < self._next_check:
            return []
        pause = get_settings().LEASE / CHECKS_PER_LEASE
        self._next_check = moment + min(max(pause, SHORTEST_CHECK), LONGEST_CHECK)
        return engine.abandoned_views(self._labels)

    def _await_database(self, error: Exception, seconds: float) -> None:
        engine.drop_broken_connection()
        if seconds == FIRST_RETRY:
            sentence = "the database refused; following continues when it accepts again"
            log(logger, logging.WARNING, sentence, exception=loggable(error, trusted=False))
        until = time.monotonic() + seconds
        while not self._stop() and time.monotonic() < until:
            self._report_alive()
            time.sleep(LONGEST_WAIT)


def _left_open(labels: Collection[str] | None) -> list[int]:
    """The views to follow with open refreshes: a process before this one may have left them."""
    views = _followed(labels).values("view")
    left = Refresh.objects.filter(state=RefreshState.OPEN, view__in=views)
    return sorted(set(left.values_list("view", flat=True)))


def _followed(labels: Collection[str] | None) -> QuerySet[RefreshSchedule]:
    """The schedules on change of the views to follow."""
    schedules = RefreshSchedule.objects.filter(on_change=True, enabled=True)
    return schedules if labels is None else schedules.filter(view__label__in=labels)


class _Running:
    """The refreshes that run in this process, batch by batch.

    Those of one batch come first, so that they wait for at most one batch of a long refresh.
    """

    def __init__(
        self,
        stop: Callable[[], bool],
        report_alive: Callable[[], object],
        labels: Collection[str] | None,
    ) -> None:
        #: The primary keys of their views; the one whose long batch ran last is the last.
        self.views = list[int]()
        self._stop, self._report_alive, self._labels = stop, report_alive, labels

    def add(self, views: Collection[int]) -> None:
        """Run the refreshes of more views."""
        self.views += [view for view in views if view not in self.views]

    def take_turns(self) -> bool:
        """Run all short batches, and one long one; return whether any view had work."""
        had_work, long = bool(self.views), list[tuple[int, Message]]()
        for view in list(self.views):
            long += [(view, message) for message in self._run_short(view)]
        if long and not self._stop():
            view, message = long[0]
            outcome = self._run(message)
            self.views.remove(view)
            if _is_ours(outcome):
                self.views.append(view)
        return had_work

    def close(self) -> None:
        """Close the refreshes that the last batches have finished."""
        with suppress(DatabaseError, InterfaceError):  # `matviews.maintain` does it then
            for view in list(self.views):
                self._close_finished(view)

    def _close_finished(self, view: int) -> list[NextStep]:
        """What is due in a view; others go on that have waited for what is closed here."""
        steps = engine.close_finished_in_view(view)
        for step in steps:
            if step.closed:
                dispatch_others(step, self._take)
        return steps

    def _take(self, views: list[int]) -> list[int]:
        """Run those of some views here that this process follows; the others, for workers."""
        if not views or self._stop():
            return views
        followed = _followed(self._labels).filter(view__in=views)
        here = {each.view_id for each in followed}
        self.add(sorted(here))
        return [view for view in views if view not in here]

    def _run(self, message: Message) -> Outcome:
        outcome = engine.run_batch(message).outcome
        self._report_alive()
        return outcome

    def _run_short(self, view: int) -> Iterator[Message]:
        """Run the batches of a view that are not long; yield those that are."""
        while not self._stop():
            due = [step.message for step in self._close_finished(view) if step.message]
            short = [message for message in due if not message.is_long]
            outcomes = list(map(self._run, short))
            if not all(map(_is_ours, outcomes)) or not due:
                self.views.remove(view)
                return
            if not short:
                yield from due
                return


def _is_ours(outcome: Outcome) -> bool:
    """Whether this process continues with the shard; else another does, or `matviews.maintain`."""
    return outcome.recorded
