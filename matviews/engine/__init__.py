"""The batch engine: everything from a request to the end of its refresh.

It depends on Django, not on Celery.
"""

from .closing import NextStep, close_finished, close_finished_in_view
from .controls import (
    mark_migrated_views_dirty,
    promise_nothing_of,
    rename_controls,
    sync_controls,
    sync_shards,
    views_to_refresh,
)
from .costs import KnownCosts, known_costs
from .current import CurrentQuery, current_obstacle, current_rows
from .data_status import DataStatus, data_status
from .derived import not_migrated, own_tables_missing
from .dirty_keys import sweep_dirty_keys
from .durations import missed_target
from .echoes import LOOP_TEXT
from .failures import (
    end_quiet_hours,
    release_changed,
    resume,
    resume_migrated,
    try_now,
    waits,
    wake,
)
from .fingerprints import changed_phases
from .freshness import is_fresh
from .governor import blindness, is_governed
from .graph import ViewGraph, find_cycle, in_order, view_graph, views_read
from .history import fold_failures, trim_alarms, trim_history
from .hooks import raised_by_hook
from .known_rows import KnownRows, twin
from .long_statements import LongStatement, long_statements
from .marking import mark_dirty
from .messages import BatchReport, Message, Outcome
from .on_change import Lookout, has_dates, why_not_followed
from .order import Neighbours, Order, neighbours, request_with_neighbours
from .parking import Parked, list_parked, retry_parked
from .progress import Claim, Progress, RunProgress, progress_of
from .queue_turns import due_turns, give_back, next_turns, take_turns
from .queues import collapse_long_queues, move_log, renumber_entries
from .recent_refreshes import RecentRefreshes, recent_refreshes
from .recorded_failures import RecordedFailure, recorded_failures
from .refresh_limit import next_in_line
from .requests import check_phases, count_requests, is_taken, request, request_stop
from .rescue import clear_resends, forsaken_views, rescue, unclaimed_views
from .rights import MissingRight, denied_for, missing_rights, prepare_staging, staging_rights
from .rows import RowCount, count_rows
from .spans import connect as connect_spans
from .spans import run_batch
from .splitting import parking_obstacle
from .stages import drop_orphaned_stages, sweep_stages
from .status import view_statuses
from .sums import trim_value_logs
from .totals import PhaseTotals, ViewTotals, view_totals
from .transactions import (
    alias,
    check_no_transaction,
    drop_broken_connection,
    in_transaction,
    now,
    short_transaction,
    timestamp,
    utc_now,
)
from .trust import (
    finish_triggers,
    mark_missing_triggers,
    mark_mistyped_views,
    mark_truncated,
    mark_untrackable,
)
from .unlogged_work import due_without_change
from .upstream import Upstream, troubles_upstream
from .verification import Verification, verify
from .verify_runs import (
    VerifyMessage,
    repaired_view,
    request_verification,
    rescue_verifications,
    verify_slice,
)
from .verifying import Verifying, find_verifying
from .view_status import ViewStatus
from .waiting import Backlog, backlog
from .wave_history import wave_of
from .waves import DueRefresh

__all__ = [
    "LOOP_TEXT",
    "Backlog",
    "BatchReport",
    "Claim",
    "CurrentQuery",
    "DataStatus",
    "DueRefresh",
    "KnownCosts",
    "KnownRows",
    "LongStatement",
    "Lookout",
    "Message",
    "MissingRight",
    "Neighbours",
    "NextStep",
    "Order",
    "Outcome",
    "Parked",
    "PhaseTotals",
    "Progress",
    "RecentRefreshes",
    "RecordedFailure",
    "RowCount",
    "RunProgress",
    "Upstream",
    "Verification",
    "VerifyMessage",
    "Verifying",
    "ViewGraph",
    "ViewStatus",
    "ViewTotals",
    "alias",
    "backlog",
    "blindness",
    "changed_phases",
    "check_no_transaction",
    "check_phases",
    "clear_resends",
    "close_finished",
    "close_finished_in_view",
    "collapse_long_queues",
    "connect_spans",
    "count_requests",
    "count_rows",
    "current_obstacle",
    "current_rows",
    "data_status",
    "denied_for",
    "drop_broken_connection",
    "drop_orphaned_stages",
    "due_turns",
    "due_without_change",
    "end_quiet_hours",
    "find_cycle",
    "find_verifying",
    "finish_triggers",
    "fold_failures",
    "forsaken_views",
    "give_back",
    "has_dates",
    "in_order",
    "in_transaction",
    "is_fresh",
    "is_governed",
    "is_taken",
    "known_costs",
    "list_parked",
    "long_statements",
    "mark_dirty",
    "mark_migrated_views_dirty",
    "mark_missing_triggers",
    "mark_mistyped_views",
    "mark_truncated",
    "mark_untrackable",
    "missed_target",
    "missing_rights",
    "move_log",
    "neighbours",
    "next_in_line",
    "next_turns",
    "not_migrated",
    "now",
    "own_tables_missing",
    "parking_obstacle",
    "prepare_staging",
    "progress_of",
    "promise_nothing_of",
    "raised_by_hook",
    "recent_refreshes",
    "recorded_failures",
    "release_changed",
    "rename_controls",
    "renumber_entries",
    "repaired_view",
    "request",
    "request_stop",
    "request_verification",
    "request_with_neighbours",
    "rescue",
    "rescue_verifications",
    "resume",
    "resume_migrated",
    "retry_parked",
    "run_batch",
    "short_transaction",
    "staging_rights",
    "sweep_dirty_keys",
    "sweep_stages",
    "sync_controls",
    "sync_shards",
    "take_turns",
    "timestamp",
    "trim_alarms",
    "trim_history",
    "trim_value_logs",
    "troubles_upstream",
    "try_now",
    "twin",
    "unclaimed_views",
    "utc_now",
    "verify",
    "verify_slice",
    "view_graph",
    "view_statuses",
    "view_totals",
    "views_read",
    "views_to_refresh",
    "waits",
    "wake",
    "wave_of",
    "why_not_followed",
]
