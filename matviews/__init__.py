"""Materialized views for Django: ordinary tables, kept up to date in small batches by Celery."""

from . import early_checks, registry  # noqa: F401 - they watch for the definition of views
from .api import is_fresh, mark_dirty, parked, refresh, status, untracked, verify
from .contract import Batch, Shard
from .exceptions import KeyFailed
from .mixin import MaterializedView
from .phases import Phase

__all__ = [
    "Batch", "KeyFailed", "MaterializedView", "Phase", "Shard", "is_fresh", "mark_dirty",
    "parked", "refresh", "status", "untracked", "verify",
]  # fmt: skip
__version__ = "0.1.0"
