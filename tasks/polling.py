"""Polling for refreshes that are due on change: by pulses, between batches, and by `--follow`.

A pulse may wait in a queue behind many batches. So a worker polls after its batches too, once it is
time for a pulse, and one that is busy all day polls as often as an idle one, with any broker.
"""

import logging
import time
from collections.abc import Collection, Iterable

from django.db import InterfaceError, OperationalError

from .. import engine
from ..conf import get_settings
from ..exceptions import MatviewsError
from ..logs import log
from ..models import Origin
from ..redact import error_text

__all__ = ["is_due", "poll", "request_due", "request_without_change"]

logger = logging.getLogger(__name__)

#: The fraction of the time between two pulses in which a process does not poll again.
SHARE = 0.5
#: One per process: it remembers what is not due yet.
_POLLER = engine.ChangePoller()
#: When this process last polled as a worker, by the monotonic clock; until it has, when it began.
_POLLED = [time.monotonic()]


def is_due() -> bool:
    """Whether a worker should poll again on its own, as if a pulse had come; never without pulses.

    Of the pulses that have piled up during a long batch, one is enough.
    """
    seconds = get_settings().PULSE_SECONDS
    return bool(seconds) and time.monotonic() >= _POLLED[0] + SHARE * seconds


def poll() -> list[int] | None:
    """Poll as a worker, and request what is due.

    Returns:
        The primary keys of views that have work; None if the database cannot be reached.
    """
    _POLLED[0] = time.monotonic()
    try:
        return request_due(_POLLER)
    except (OperationalError, InterfaceError) as error:
        engine.drop_broken_connection()
        sentence = "no poll for changes, the database cannot be reached"
        log(logger, logging.WARNING, sentence, error=error_text(error, trusted=False))
        return None


def request_due(poller: engine.ChangePoller) -> list[int]:
    """Request the refreshes due on change; return the primary keys of views that have work."""
    return _request_all(poller.poll())


def request_without_change(labels: Collection[str] | None = None) -> list[int]:
    """Request the refreshes on change that are due for another reason than a logged change.

    Returns:
        The primary keys of views that have work.
    """
    return _request_all(engine.due_without_change(labels))


def _request_all(refreshes: Iterable[engine.DueRefresh]) -> list[int]:
    return [view for due in refreshes if (view := _request(due)) is not None]


def _request(due: engine.DueRefresh) -> int | None:
    try:
        requested = engine.request(
            due.label,
            phases=due.phases,
            origin=Origin.DEPENDENCY if due.upstream_refreshes else Origin.SCHEDULE,
            upstream_refreshes=due.upstream_refreshes,
        )
    except MatviewsError as error:  # it has been disabled, or the code has changed, since the poll
        log(logger, logging.INFO, "refresh refused", view=due.label, error=error)
        return None
    if requested.finished_at:  # what the poll found is for newer code than this process has
        engine.move_log()
        return None
    return requested.view_id
