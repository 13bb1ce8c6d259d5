"""Change tracking: triggers on the tables that views read, and the log that they write."""

from .change_log import (
    ChangesLogged,
    LogMove,
    QueuedChange,
    collapse_queue,
    delete_rows,
    drain_queue,
    enqueue,
    move_few,
    overlong_queues,
    untracked,
)
from .change_status import (
    ChangeStatus,
    change_status,
    count_waiting,
    newest_waiting,
    oldest_logged,
    oldest_waiting,
    recorded_as_unlogged,
    unlogged_tables,
    waiting_tables,
)
from .current_sql import STATE, WaitingSQL
from .followed import Followed, followed_changes
from .log_entries import count_logged, newest_entry, raise_floor, renumber_entries, unmoved
from .table_locks import LOCKED
from .tracking_spec import Tracking, known_tracking, mistyped, tracking_of, with_value_logs
from .trigger_checks import find_exposed, find_ownerless, find_problems, find_untrackable
from .triggers import drop_before_migrate, finish, install, remove, script
from .trust import (
    mark_missing_triggers,
    mark_truncated,
    mark_untrackable,
    untrackable_tables,
    untracked_tables,
    untrust,
)
from .value_logs import are_valued, count_values, present_logs, trim_values
from .waiting_changes import waiting_changes

__all__ = [
    "LOCKED",
    "STATE",
    "ChangeStatus",
    "ChangesLogged",
    "Followed",
    "LogMove",
    "QueuedChange",
    "Tracking",
    "WaitingSQL",
    "are_valued",
    "change_status",
    "collapse_queue",
    "count_logged",
    "count_values",
    "count_waiting",
    "delete_rows",
    "drain_queue",
    "drop_before_migrate",
    "enqueue",
    "find_exposed",
    "find_ownerless",
    "find_problems",
    "find_untrackable",
    "finish",
    "followed_changes",
    "install",
    "known_tracking",
    "mark_missing_triggers",
    "mark_truncated",
    "mark_untrackable",
    "mistyped",
    "move_few",
    "newest_entry",
    "newest_waiting",
    "oldest_logged",
    "oldest_waiting",
    "overlong_queues",
    "present_logs",
    "raise_floor",
    "recorded_as_unlogged",
    "remove",
    "renumber_entries",
    "script",
    "tracking_of",
    "trim_values",
    "unlogged_tables",
    "unmoved",
    "untrackable_tables",
    "untracked",
    "untracked_tables",
    "untrust",
    "waiting_changes",
    "waiting_tables",
    "with_value_logs",
]
