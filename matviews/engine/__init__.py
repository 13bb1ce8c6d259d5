"""The batch engine: everything between a request and its end. It knows Django, not Celery."""

from .batch import run_batch
from .controls import note_migrated, sync_controls, sync_stripes, views_in_batch
from .databases import alias
from .derived import changed_phases, sweep_stages
from .extent import Extent, extent_of
from .freshness import is_fresh
from .history import trim_history
from .messages import BatchReport, Message, Outcome
from .progress import RunProgress, progress_of
from .requests import check_phases, request, request_stop
from .rows import RowCount
from .settle import Settlement, settle, settle_view
from .status import Announcement, ViewStatus, view_statuses
from .tracking import collect_changes, forget_untrackable, mark_dirty, shorten_queues
from .verification import Verification, verify
from .watch import forget_resends, watch

__all__ = [
    "Announcement",
    "BatchReport",
    "Extent",
    "Message",
    "Outcome",
    "RowCount",
    "RunProgress",
    "Settlement",
    "Verification",
    "ViewStatus",
    "alias",
    "changed_phases",
    "check_phases",
    "collect_changes",
    "extent_of",
    "forget_resends",
    "forget_untrackable",
    "is_fresh",
    "mark_dirty",
    "note_migrated",
    "progress_of",
    "request",
    "request_stop",
    "run_batch",
    "settle",
    "settle_view",
    "shorten_queues",
    "sweep_stages",
    "sync_controls",
    "sync_stripes",
    "trim_history",
    "verify",
    "view_statuses",
    "views_in_batch",
    "watch",
]
