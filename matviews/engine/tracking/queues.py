"""Moving entries from the change log to the views' queues."""

import logging
import time
from collections.abc import Collection

from django.db import DatabaseError, InterfaceError
from django.db.models import Q

from ... import changes
from ...changes import ChangesLogged
from ...logs import log
from ...redact import error_text, loggable
from ..locking import lock_available
from ..transactions import drop_broken_connection, short_transaction

__all__ = [
    "MOVE_RETRY_DELAYS",
    "await_changes",
    "collapse_long_queues",
    "move_log",
    "renumber_entries",
]

logger = logging.getLogger(__name__)


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
        _raise_floor()


def _raise_floor() -> None:
    """Raise the floor of the log; a failure does no harm, because any floor is right."""
    try:
        with short_transaction():
            changes.raise_floor()
    except (DatabaseError, InterfaceError) as error:
        drop_broken_connection()
        log(
            logger, logging.WARNING, "the floor of the change log could not be raised",
            exception=loggable(error), error=error_text(error),
        )  # fmt: skip


def renumber_entries() -> None:
    """Have entries processed that somebody loaded with old transaction IDs."""
    with short_transaction():
        changes.renumber_entries()


def await_changes(logged: ChangesLogged) -> list[str]:
    """Wait until this process or another has moved these entries of the log.

    It waits at most the sum of the delays. Then it distributes those of a view with several shards.

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
    if logged.view_id and not unmoved:
        with short_transaction():
            changes.distribute(logged.view_id)
    return unmoved


def collapse_long_queues() -> None:
    """Collapse the overlong queues of views that nobody refreshes.

    Each becomes one entry that requires a full refresh.
    """
    for view_id in changes.overlong_queues():
        with short_transaction():
            changes.collapse_queue(view_id)
    for shard_id in changes.overlong_shard_queues():
        with short_transaction():
            if lock_available(Q(pk=shard_id)):
                changes.collapse_shard_queue(shard_id)
    changes.sweep_shard_queues()
