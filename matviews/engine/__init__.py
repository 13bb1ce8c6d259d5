"""The batch engine: everything between a request and its end. It knows Django, not Celery."""

from .batch import run_batch
from .controls import sync_controls, views_in_batch
from .databases import alias
from .freshness import is_fresh
from .messages import BatchReport, Message, Outcome
from .requests import check_phases, request
from .settle import Settlement, settle, stripes_of
from .status import ViewStatus, view_statuses
from .watch import watch

__all__ = [
    "BatchReport",
    "Message",
    "Outcome",
    "Settlement",
    "ViewStatus",
    "alias",
    "check_phases",
    "is_fresh",
    "request",
    "run_batch",
    "settle",
    "stripes_of",
    "sync_controls",
    "view_statuses",
    "views_in_batch",
    "watch",
]
