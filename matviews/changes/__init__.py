"""Change tracking: triggers on the tables that views read, and the log that they write."""

from .log import (
    ChangesLogged,
    Taken,
    enqueue,
    is_logged,
    is_queued,
    long_queues,
    move,
    shorten,
    take,
)
from .triggers import (
    find_problems,
    install,
    is_watched,
    remove,
    script,
    take_down,
    untracked_tables,
)
from .watched import Tracking, tracking_of

__all__ = [
    "ChangesLogged",
    "Taken",
    "Tracking",
    "enqueue",
    "find_problems",
    "install",
    "is_logged",
    "is_queued",
    "is_watched",
    "long_queues",
    "move",
    "remove",
    "script",
    "shorten",
    "take",
    "take_down",
    "tracking_of",
    "untracked_tables",
]
