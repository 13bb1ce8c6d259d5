"""Change tracking: triggers on the tables that views read, and the log that they write."""

from .bulk_loads import untracked
from .change_log import (
    ChangesLogged,
    LogMove,
    QueuedChange,
    delete_rows,
    drain_queue,
    enqueue,
    move_few,
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
from .long_queues import (
    collapse_queue,
    collapse_shard_queue,
    overlong_queues,
    overlong_shard_queues,
)
from .shard_queues import (
    delete_shard_queues,
    distribute,
    drain_shard,
    has_queued,
    sweep_shard_queues,
)
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
    "collapse_shard_queue",
    "count_logged",
    "count_values",
    "count_waiting",
    "delete_rows",
    "delete_shard_queues",
    "distribute",
    "drain_queue",
    "drain_shard",
    "drop_before_migrate",
    "enqueue",
    "find_exposed",
    "find_ownerless",
    "find_problems",
    "find_untrackable",
    "finish",
    "followed_changes",
    "has_queued",
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
    "overlong_shard_queues",
    "present_logs",
    "raise_floor",
    "recorded_as_unlogged",
    "remove",
    "renumber_entries",
    "script",
    "sweep_shard_queues",
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
