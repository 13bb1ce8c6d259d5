"""Looks for refreshes that are due on change: by pulses, between batches, and by `--follow`.

A pulse waits in a queue, so a worker looks after its batches too, if it is time for a pulse. So no
pulse has to get past a long row of batches, in any broker, and a worker that is busy all day looks
as often as an idle one.
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

__all__ = ["is_time", "look", "request_due", "request_without_change"]

logger = logging.getLogger(__name__)

#: Of the time between two pulses, the part in which a process does not look again.
SHARE = 0.5
#: One per process: it remembers what is not due yet.
_LOOKOUT = engine.Lookout()
#: When this process last looked as a worker, by the monotonic clock; for one that has not, when it
#: began.
_LOOKED = [time.monotonic()]


def is_time() -> bool:
    """Whether a worker should look again on its own, as if a pulse had come; never without pulses.

    Of the pulses that have piled up during a long batch, one is enough.
    """
    seconds = get_settings().PULSE_SECONDS
    return bool(seconds) and time.monotonic() >= _LOOKED[0] + SHARE * seconds


def look() -> list[int] | None:
    """Look as a worker, and request what is due.

    Returns:
        The primary keys of views that have work; None if the database cannot be reached.
    """
    _LOOKED[0] = time.monotonic()
    try:
        return request_due(_LOOKOUT)
    except (OperationalError, InterfaceError) as error:
        engine.drop_broken_connection()
        sentence = "no look for changes, the database cannot be reached"
        log(logger, logging.WARNING, sentence, error=error_text(error, trusted=False))
        return None


def request_due(lookout: engine.Lookout) -> list[int]:
    """Request the refreshes due on change; return the primary keys of views that have work."""
    return _request_all(lookout.look())


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
    except MatviewsError as error:  # it has been disabled, or the code has changed, since the look
        log(logger, logging.INFO, "refresh refused", view=due.label, error=error)
        return None
    if requested.finished_at:  # what the look has found is for code that this process lacks
        engine.move_log()
        return None
    return requested.view_id
