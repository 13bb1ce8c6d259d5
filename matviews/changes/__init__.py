"""Change tracking: triggers on the tables that views read, and the log that they write."""

from .change_log import (
    ChangesLogged,
    QueuedChange,
    collapse_queue,
    delete_rows,
    drain_queue,
    enqueue,
    is_logged,
    move_log,
    overlong_queues,
    unmoved,
    untracked,
)
from .change_status import ChangeStatus, change_status, oldest_waiting, unlogged_tables
from .table_locks import LOCKED
from .tracking_spec import Tracking, known_tracking, mistyped, tracking_of
from .trigger_checks import find_exposed, find_ownerless, find_problems, find_untrackable
from .triggers import drop_before_migrate, finish, install, remove, script
from .trust import (
    mark_missing_triggers,
    mark_untrackable,
    untrackable_tables,
    untracked_tables,
    untrust,
)

__all__ = [
    "LOCKED",
    "ChangeStatus",
    "ChangesLogged",
    "QueuedChange",
    "Tracking",
    "change_status",
    "collapse_queue",
    "delete_rows",
    "drain_queue",
    "drop_before_migrate",
    "enqueue",
    "find_exposed",
    "find_ownerless",
    "find_problems",
    "find_untrackable",
    "finish",
    "install",
    "is_logged",
    "known_tracking",
    "mark_missing_triggers",
    "mark_untrackable",
    "mistyped",
    "move_log",
    "oldest_waiting",
    "overlong_queues",
    "remove",
    "script",
    "tracking_of",
    "unlogged_tables",
    "unmoved",
    "untrackable_tables",
    "untracked",
    "untracked_tables",
    "untrust",
]
