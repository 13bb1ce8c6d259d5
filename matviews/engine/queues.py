"""Moving entries from the change log to the views' queues."""

import time

from .. import changes
from ..changes import ChangesLogged
from .transactions import short_transaction

__all__ = ["MOVE_RETRY_DELAYS", "await_changes", "collapse_long_queues", "move_log"]


# Seconds between checks of a log that another process is moving. It takes milliseconds, or seconds
# if that process is frozen.
MOVE_RETRY_DELAYS = tuple(0.01 * 2**number for number in range(8))


def move_log() -> None:
    """Move the log's entries to the views' queues, except those that another process is moving."""
    if changes.move_few():
        return
    move = changes.LogMove()
    while move.more:
        with short_transaction():
            move.step()


def await_changes(logged: ChangesLogged) -> list[str]:
    """Wait until this process or another has moved these entries of the log.

    It waits at most the sum of the delays.

    Returns:
        The tables with entries that are still not moved.
    """
    unmoved: list[str] = []
    for delay in MOVE_RETRY_DELAYS:
        move_log()
        unmoved = changes.unmoved(logged.tables, logged.newest)
        if not unmoved:
            break
        time.sleep(delay)
    return unmoved


def collapse_long_queues() -> None:
    """Collapse the overlong queues of views that nobody refreshes.

    Each becomes one entry that requires a full refresh.
    """
    for view_id in changes.overlong_queues():
        with short_transaction():
            changes.collapse_queue(view_id)
