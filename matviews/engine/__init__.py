"""The batch engine: everything between a request and its end. It knows Django, not Celery."""

from .batch import run_batch
from .controls import sync_controls, sync_stripes, views_in_batch
from .databases import alias
from .freshness import is_fresh
from .history import trim_history
from .messages import BatchReport, Message, Outcome
from .progress import RunProgress, progress_of
from .requests import check_phases, request, request_stop
from .rows import RowCount
from .settle import Settlement, settle, settle_view
from .status import Announcement, ViewStatus, view_statuses
from .watch import forget_resends, watch

__all__ = [
    "Announcement",
    "BatchReport",
    "Message",
    "Outcome",
    "RowCount",
    "RunProgress",
    "Settlement",
    "ViewStatus",
    "alias",
    "check_phases",
    "forget_resends",
    "is_fresh",
    "progress_of",
    "request",
    "request_stop",
    "run_batch",
    "settle",
    "settle_view",
    "sync_controls",
    "sync_stripes",
    "trim_history",
    "view_statuses",
    "views_in_batch",
    "watch",
]
