"""Moving entries from the change log to the views' queues."""

import time
from collections.abc import Collection

from .. import changes
from ..changes import ChangesLogged
from .transactions import short_transaction

__all__ = ["MOVE_RETRY_DELAYS", "await_changes", "collapse_long_queues", "move_log"]


# Seconds between checks of a log that another process is moving. It takes milliseconds, or seconds
# if that process is frozen.
MOVE_RETRY_DELAYS = tuple(0.01 * 2**number for number in range(8))


def move_log(tables: Collection[str] = ()) -> None:
    """Move the log's entries to the views' queues, except those that another process is moving.

    Args:
        tables: those whose entries matter; none for all. If there are many, those of other tables
            may stay.
    """
    is_done, floor_is_due = changes.move_few()
    if not is_done:
        move = changes.LogMove(tables)
        while move.more:
            with short_transaction():
                move.step()
        floor_is_due = move.raises_floor
    if floor_is_due:
        with short_transaction():
            changes.raise_floor()


def await_changes(logged: ChangesLogged) -> list[str]:
    """Wait until this process or another has moved these entries of the log.

    It waits at most the sum of the delays.

    Returns:
        The tables with entries that are still not moved.
    """
    unmoved, newest = list[str](), changes.newest_entry(logged.tables)
    for delay in MOVE_RETRY_DELAYS:
        move_log(logged.tables)
        unmoved = changes.unmoved(logged.tables, newest)
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
