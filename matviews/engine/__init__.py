"""The batch engine: everything from a request to the end of its refresh.

It depends on Django, not on Celery.
"""

from .batch import run_batch
from .closing import NextStep, close_finished, close_finished_in_view
from .controls import (
    find_cycle,
    in_order,
    mark_migrated_views_dirty,
    rename_controls,
    sync_controls,
    sync_shards,
    views_to_refresh,
)
from .derived import changed_phases, not_migrated, own_tables_missing
from .freshness import is_fresh
from .history import trim_history
from .hooks import raised_by_hook
from .marking import mark_dirty
from .messages import BatchReport, Message, Outcome
from .progress import Claim, Progress, RunProgress, progress_of
from .queues import collapse_long_queues, move_log
from .requests import check_phases, count_requests, request, request_stop
from .rescue import clear_resends, rescue, unclaimed_views
from .rights import MissingRight, denied_for, missing_rights, prepare_staging, staging_rights
from .rows import RowCount
from .stages import drop_orphaned_stages, sweep_stages
from .status import view_statuses
from .transactions import (
    alias,
    check_no_transaction,
    in_transaction,
    now,
    short_transaction,
    timestamp,
)
from .trust import finish_triggers, mark_missing_triggers, mark_mistyped_views, mark_untrackable
from .verification import Verification, verify
from .view_status import ViewStatus

__all__ = [
    "BatchReport",
    "Claim",
    "Message",
    "MissingRight",
    "NextStep",
    "Outcome",
    "Progress",
    "RowCount",
    "RunProgress",
    "Verification",
    "ViewStatus",
    "alias",
    "changed_phases",
    "check_no_transaction",
    "check_phases",
    "clear_resends",
    "close_finished",
    "close_finished_in_view",
    "collapse_long_queues",
    "count_requests",
    "denied_for",
    "drop_orphaned_stages",
    "find_cycle",
    "finish_triggers",
    "in_order",
    "in_transaction",
    "is_fresh",
    "mark_dirty",
    "mark_migrated_views_dirty",
    "mark_missing_triggers",
    "mark_mistyped_views",
    "mark_untrackable",
    "missing_rights",
    "move_log",
    "not_migrated",
    "now",
    "own_tables_missing",
    "prepare_staging",
    "progress_of",
    "raised_by_hook",
    "rename_controls",
    "request",
    "request_stop",
    "rescue",
    "run_batch",
    "short_transaction",
    "staging_rights",
    "sweep_stages",
    "sync_controls",
    "sync_shards",
    "timestamp",
    "trim_history",
    "unclaimed_views",
    "verify",
    "view_statuses",
    "views_to_refresh",
]
