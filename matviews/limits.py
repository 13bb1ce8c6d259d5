"""The ranges of values that settings, options, forms and the command accept."""

from dataclasses import dataclass
from datetime import timedelta

__all__ = [
    "BATCH_SECONDS", "BATCH_SIZE", "FRESHNESS_TARGET", "REFRESH_INTERVAL", "RETENTION",
    "SAMPLE_SIZE", "SHARD_COUNT", "DurationRange", "Range",
]  # fmt: skip

MAX_INTEGER = 2**31 - 1  # of an integer column
MAX_SMALL_INTEGER = 2**15 - 1  # of a small integer column


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    #: The smallest number. If it is an int, only whole numbers are in the range.
    low: float
    #: The largest number.
    high: float
    #: What is counted, in the plural.
    unit: str

    def __contains__(self, value: object) -> bool:
        types = int if isinstance(self.low, int) else (int, float)
        if not isinstance(value, types) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if isinstance(self.low, int) else "a number"
        return f"{kind} of {self.unit} from {self.low:,} to {self.high:,}"

    def fault(self, value: object) -> str | None:
        """What the value should be instead, or None if it is in the range."""
        return None if value in self else str(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DurationRange:
    """Positive durations."""

    #: The longest duration.
    high: timedelta
    #: Whether fractions of a second are refused.
    whole_seconds: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, timedelta) or not timedelta() < value <= self.high:
            return False
        return not (self.whole_seconds and value.microseconds)

    def fault(self, value: object) -> str | None:
        """What the value should be instead, or None if it is in the range."""
        if value in self:
            return None
        days = f"{self.high.days:,} days"
        if self.whole_seconds:
            return f"a timedelta of whole seconds, from 1 second to {days}"
        return f"a positive timedelta of at most {days}"


BATCH_SIZE = Range(low=1, high=MAX_INTEGER, unit="rows")
SAMPLE_SIZE = Range(low=1, high=MAX_INTEGER, unit="keys")
SHARD_COUNT = Range(low=1, high=MAX_SMALL_INTEGER, unit="shards")
# PostgreSQL stores timeouts as whole milliseconds in 31 bits, and 0 switches them off.
BATCH_SECONDS = Range(low=0.001, high=2_147_483, unit="seconds")
FRESHNESS_TARGET = DurationRange(high=timedelta(days=3650))
REFRESH_INTERVAL = DurationRange(high=timedelta(days=3650), whole_seconds=True)
RETENTION = DurationRange(high=timedelta(days=36_500))  # now minus this is a valid date
