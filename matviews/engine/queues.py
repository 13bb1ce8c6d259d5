"""The log of changes and the views' queues: moving entries from the one to the others."""

import time

from .. import changes
from ..changes import ChangesLogged
from .transactions import short_transaction

__all__ = ["PAUSES", "await_changes", "collapse_long_queues", "move_log"]


# Seconds between looks at a log that another process is moving: that takes it milliseconds, unless it is
# frozen, and then seconds.
PAUSES = tuple(0.01 * 2**number for number in range(8))


def move_log() -> None:
    """Move what triggers have logged into the queues of the views, but for what others are moving."""
    more = changes.is_logged()
    while more:
        with short_transaction():
            more = changes.move_log()


def await_changes(logged: ChangesLogged) -> list[str]:
    """Have the entries of a log moved, here or by whoever is at it, for as long as PAUSES are.

    Returns:
        The tables of which some are still not.
    """
    left: list[str] = []
    for pause in PAUSES:
        move_log()
        left = changes.unmoved(logged.tables, logged.newest)
        if not left:
            break
        time.sleep(pause)
    return left


def collapse_long_queues() -> None:
    """Keep the queues of views that nobody refreshes short."""
    for view_id in changes.overlong_queues():
        with short_transaction():
            changes.collapse_queue(view_id)
