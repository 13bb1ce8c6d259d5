"""The batch engine: everything from a request to the end of its refresh.

It depends on Django, not on Celery.
"""

from .additive import (
    AdditiveChoice,
    additive_choice,
    additive_notes,
    choose_additive,
    count_pending_values,
    forget_additive,
)
from .batches.derived import not_migrated, own_tables_missing
from .batches.hooks import raised_by_hook
from .batches.spans import connect as connect_spans
from .batches.spans import run_batch
from .batches.stages import drop_orphaned_stages, sweep_stages
from .batches.sums import distrust_misfits, trim_value_logs
from .current import CurrentQuery, current_obstacle, current_rows
from .dispatch.closing import NextStep, close_finished, close_finished_in_view
from .dispatch.fair_queueing import grant_all_turns, grant_turns, revoke_turns, take_turns
from .dispatch.governor import ineffective_limits, is_governed
from .dispatch.refresh_limit import wake_next_in_line
from .dispatch.rescue import abandoned_views, clear_resends, rescue, unclaimed_views
from .failures.backoff import (
    end_quiet_hours,
    is_waiting,
    release_changed,
    resume,
    resume_migrated,
    try_now,
    wake,
)
from .failures.fingerprints import changed_phases
from .failures.recorded import RecordedFailure, recorded_failures
from .graph.loops import LOOP_TEXT
from .graph.upstream import Upstream, upstream_problems
from .graph.view_graph import ViewGraph, find_cycle, in_order, view_graph, views_read
from .graph.wave_history import wave_of
from .history import fold_failures, trim_alarms, trim_history
from .messages import BatchReport, Message, Outcome
from .on_change.due_refreshes import ChangePoller, has_dates, on_change_obstacle
from .on_change.durations import missed_target
from .on_change.unlogged_work import due_without_change
from .on_change.waves import DueRefresh
from .parking.list_and_retry import Parked, list_parked, retry_parked
from .parking.splitting import parking_obstacle
from .requests.controls import (
    clear_as_of,
    mark_migrated_views_dirty,
    rename_controls,
    sync_controls,
    sync_shards,
    views_to_refresh,
)
from .requests.marking import mark_dirty
from .requests.refresh_order import Neighbours, Order, neighbours, request_with_neighbours
from .requests.requests import check_phases, count_requests, is_taken, request, request_stop
from .rights import MissingRight, denied_for, missing_rights, prepare_staging, staging_rights
from .row_counts import RowCount, count_rows
from .status.backlog import Backlog, backlog
from .status.data_status import DataStatus, data_status
from .status.freshness import is_fresh
from .status.known_rows import KnownRows, twin
from .status.long_statements import LongStatement, long_statements
from .status.progress import Claim, Progress, RunProgress, progress_of
from .status.recent_refreshes import RecentRefreshes, recent_refreshes
from .status.statuses import view_statuses
from .status.verifying import Verifying, find_verifying
from .status.view_status import ViewStatus
from .totals import PhaseTotals, ViewTotals, view_totals
from .tracking.dirty_keys import sweep_dirty_keys
from .tracking.queues import collapse_long_queues, move_log, renumber_entries
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
from .verification.runs import (
    VerifyMessage,
    repaired_view,
    request_verification,
    rescue_verifications,
    verify_slice,
)
from .verification.verify import Verification, verify
from .work.costs import KnownCosts, known_costs

__all__ = [
    "LOOP_TEXT",
    "AdditiveChoice",
    "Backlog",
    "BatchReport",
    "ChangePoller",
    "Claim",
    "CurrentQuery",
    "DataStatus",
    "DueRefresh",
    "KnownCosts",
    "KnownRows",
    "LongStatement",
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
    "abandoned_views",
    "additive_choice",
    "additive_notes",
    "alias",
    "backlog",
    "changed_phases",
    "check_no_transaction",
    "check_phases",
    "choose_additive",
    "clear_as_of",
    "clear_resends",
    "close_finished",
    "close_finished_in_view",
    "collapse_long_queues",
    "connect_spans",
    "count_pending_values",
    "count_requests",
    "count_rows",
    "current_obstacle",
    "current_rows",
    "data_status",
    "denied_for",
    "distrust_misfits",
    "drop_broken_connection",
    "drop_orphaned_stages",
    "due_without_change",
    "end_quiet_hours",
    "find_cycle",
    "find_verifying",
    "finish_triggers",
    "fold_failures",
    "forget_additive",
    "grant_all_turns",
    "grant_turns",
    "has_dates",
    "in_order",
    "in_transaction",
    "ineffective_limits",
    "is_fresh",
    "is_governed",
    "is_taken",
    "is_waiting",
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
    "not_migrated",
    "now",
    "on_change_obstacle",
    "own_tables_missing",
    "parking_obstacle",
    "prepare_staging",
    "progress_of",
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
    "revoke_turns",
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
    "try_now",
    "twin",
    "unclaimed_views",
    "upstream_problems",
    "utc_now",
    "verify",
    "verify_slice",
    "view_graph",
    "view_statuses",
    "view_totals",
    "views_read",
    "views_to_refresh",
    "wake",
    "wake_next_in_line",
    "wave_of",
]
