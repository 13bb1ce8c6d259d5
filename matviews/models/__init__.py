"""The bookkeeping tables, the source of truth. A message is only a hint to look here."""

from .base import Bookkeeping
from .control import Heartbeat, NamedKey, ViewControl, ViewShard
from .refresh import Origin, PhaseRun, Refresh
from .schedule import MAX_JITTER, Period, RefreshSchedule
from .tracking import Change, DirtyKeys, LogSecret, TrackedTable, ViewChange

__all__ = [
    "MAX_JITTER", "Bookkeeping", "Change", "DirtyKeys", "Heartbeat", "LogSecret", "NamedKey",
    "Origin", "Period", "PhaseRun", "Refresh", "RefreshSchedule", "TrackedTable", "ViewChange",
    "ViewControl", "ViewShard",
]  # fmt: skip
