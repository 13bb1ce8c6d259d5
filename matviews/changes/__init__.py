"""Change tracking: triggers on the tables that views read, and the log that they write."""

from .log import (
    ChangesLogged,
    Taken,
    delete_rows,
    enqueue,
    logged,
    long_queues,
    move,
    shorten,
    take,
    untracked,
)
from .standing import Standing, standing
from .triggers import (
    find_problems,
    forget_gone,
    forget_untrackable,
    install,
    remove,
    script,
    take_down,
    untracked_tables,
)
from .watched import Tracking, tracking_of

__all__ = [
    "ChangesLogged",
    "Standing",
    "Taken",
    "Tracking",
    "delete_rows",
    "enqueue",
    "find_problems",
    "forget_gone",
    "forget_untrackable",
    "install",
    "logged",
    "long_queues",
    "move",
    "remove",
    "script",
    "shorten",
    "standing",
    "take",
    "take_down",
    "tracking_of",
    "untracked",
    "untracked_tables",
]
