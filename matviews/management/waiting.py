"""`--enqueue --wait`: following refreshes that workers run, to their end."""

import time
from collections.abc import Sequence

from django.core.management.base import CommandError

from matviews import engine
from matviews.models import Refresh
from matviews.presentation import format_duration, pluralize
from matviews.states import RefreshState
from matviews.tasks import broker_errors
from matviews.tasks.queues import BATCHES, queues_in_words

from . import tables
from .interrupts import StopRequest, stop_on_signal
from .refresh import report_failure
from .reporting import ProgressDisplay, Reporter
from .targets import Targets

__all__ = ["wait"]

SECONDS_BETWEEN_UPDATES = 0.2
MAX_SECONDS_UNTAKEN = 10.0  # after which the command says that no worker has taken a refresh


def wait(requested: Sequence[Refresh], targets: Targets) -> None:
    """Show the progress of refreshes until they have ended; workers continue whatever happens.

    Raises:
        CommandError: the command was interrupted.
    """
    reporter = targets.output.reporter()
    stopping = "The refreshes go on; only this command stops waiting."
    with stop_on_signal(reporter.note, stopping) as stop:
        ended = [_follow(each, reporter, stop) for each in requested if not stop()]
    for refresh in ended:
        label = refresh.view.label
        entry = next(each for each in targets.output.entries if each["view"] == label)
        entry |= tables.refresh_as_dict(label, refresh)
        report_failure(refresh, targets, stop)
    waiting = [each for each in requested if _is_open(each)] if stop() else []
    if waiting:
        raise CommandError(
            f"Stopped waiting for {pluralize(len(waiting), 'refresh')}: workers go on with "
            f"{'it' if len(waiting) == 1 else 'them'}.",
            returncode=stop.returncode,
        )


def _follow(refresh: Refresh, reporter: Reporter, stop: StopRequest) -> Refresh:
    """The refresh once it has ended, cannot begin, or nobody waits for it any longer."""
    display = ProgressDisplay(refresh, reporter, elsewhere=True)
    began, told = time.monotonic(), False
    try:
        while True:
            now = Refresh.objects.select_related("view").get(pk=refresh.pk)
            display.update(now=bool(now.finished_at))
            if now.finished_at or stop():
                return now
            if now.view.held or engine.is_waiting(
                now.view_id
            ):  # perhaps because it has just failed
                return Refresh.objects.select_related("view").get(pk=refresh.pk)
            if not told and time.monotonic() >= began + MAX_SECONDS_UNTAKEN:
                told = True
                if not engine.is_taken(now):
                    reporter.note(_waits(now) or _not_taken(now))
            time.sleep(SECONDS_BETWEEN_UPDATES)
    finally:
        reporter.close()


def _waits(refresh: Refresh) -> str:
    """For what the refresh waits, so that no worker is to take it yet; "" if one should."""
    (status,) = engine.view_statuses([refresh.view.label], counted=False)
    return f"{status.label} waits: {status.wait}" if status.wait else ""


def _not_taken(refresh: Refresh) -> str:
    error = broker_errors.last_error()
    broker = f" The broker could not be reached: {error}." if error else ""
    queues = queues_in_words(*BATCHES, queue=refresh.view.queue_name)
    return (
        f"{refresh.view.label}: no worker has taken the refresh for "
        f"{format_duration(MAX_SECONDS_UNTAKEN)}. Check that one runs and listens to {queues}."
        f"{broker} The refresh begins as soon as one takes it."
    )


def _is_open(refresh: Refresh) -> bool:
    waiting = (RefreshState.OPEN, RefreshState.MERGED)
    return Refresh.objects.filter(pk=refresh.pk, state__in=waiting).exists()
