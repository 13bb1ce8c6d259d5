"""The queues in which long refreshes take turns, as seen by this process.

A worker that takes a message in such a queue first sends that of the next refresh, so that as many
batches run at once as there are workers. It does so again after the batch, which may have been the
last of its refresh. A new process cannot do so before its first batch, so it sends two messages
after it: otherwise workers whose processes run one task each would run one batch at a time.
"""

import time
from collections.abc import Callable

from .. import engine
from ..engine import BatchReport, Message

__all__ = ["pass_on", "pass_on_after"]

REMEMBERED = 60.0  # seconds
NEW_PROCESS_SENDS = 2
#: By queue, when this process last saw others wait in it, in seconds of the monotonic clock.
_SEEN: dict[str, float] = {}


def pass_on_after(report: BatchReport, send: Callable[[list[Message]], bool]) -> None:
    """Remember the queue of a batch if others waited in it, and send what is due in these queues.

    Args:
        report: that of the batch.
        send: what sends messages.
    """
    queue = report.turns_in
    if queue is not None:
        if queue not in _SEEN:
            send(engine.grant_turns(queue, at_most=NEW_PROCESS_SENDS))
        _SEEN[queue] = time.monotonic()
    pass_on(None, send)


def pass_on(taken: int | None, send: Callable[[list[Message]], bool]) -> None:
    """Send the messages whose turn it is in these queues.

    Args:
        taken: the primary key of the shard whose message this process has just taken.
        send: what sends them.
    """
    now = time.monotonic()
    for queue, seen in list(_SEEN.items()):
        if now - seen > REMEMBERED:
            del _SEEN[queue]
        else:
            send(engine.grant_turns(queue, taken=taken))
