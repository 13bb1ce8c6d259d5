"""The bookkeeping tables, the source of truth. A message is only a hint to look here."""

from .alarm import Alarm, AlarmEvent
from .base import Bookkeeping
from .control import NamedKey, ViewControl
from .heartbeat import Heartbeat
from .parked_keys import ParkedKey
from .permits import RefreshPermit
from .refresh import Origin, PhaseRun, Refresh
from .schedule import MAX_JITTER, Period, RefreshSchedule, ScheduleKind, intervals_of
from .shard import ViewShard
from .totals import TOTALS
from .tracking import (
    Change,
    DirtyKeys,
    LogFloor,
    LogSecret,
    ShardChange,
    TrackedTable,
    ViewChange,
    ViewSums,
)
from .verify_runs import VerifyRun

__all__ = [
    "MAX_JITTER",
    "TOTALS",
    "Alarm",
    "AlarmEvent",
    "Bookkeeping",
    "Change",
    "DirtyKeys",
    "Heartbeat",
    "LogFloor",
    "LogSecret",
    "NamedKey",
    "Origin",
    "ParkedKey",
    "Period",
    "PhaseRun",
    "Refresh",
    "RefreshPermit",
    "RefreshSchedule",
    "ScheduleKind",
    "ShardChange",
    "TrackedTable",
    "VerifyRun",
    "ViewChange",
    "ViewControl",
    "ViewShard",
    "ViewSums",
    "intervals_of",
]  # fmt: skip
