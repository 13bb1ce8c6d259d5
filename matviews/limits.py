"""The ranges of values that settings, options, forms and the command accept."""

from dataclasses import dataclass
from datetime import timedelta

__all__ = [
    "BATCH_COUNT", "BATCH_SECONDS", "BATCH_SIZE", "FAILURE_COUNT", "FRESHNESS_TARGET",
    "PARKED_KEYS", "PULSE_SECONDS", "REFRESH_DELAY", "REFRESH_INTERVAL", "RETENTION",
    "SAMPLE_SIZE", "SESSION_COUNT", "SHARD_COUNT", "VIEW_COUNT", "DurationRange", "Range",
    "queue_fault",
]  # fmt: skip

MAX_INTEGER = 2**31 - 1  # of an integer column
MAX_SMALL_INTEGER = 2**15 - 1  # of a small integer column
MAX_QUEUE_LENGTH = 255  # bytes of a name that RabbitMQ accepts
RESERVED_QUEUES = "amq."  # the prefix of names that RabbitMQ keeps for itself


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
    """Positive durations, or none at all."""

    #: The longest duration.
    high: timedelta
    #: Whether fractions of a second are refused.
    whole_seconds: bool = False
    #: Whether a duration of 0 is in the range.
    zero: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, timedelta) or not timedelta() <= value <= self.high:
            return False
        if not value and not self.zero:
            return False
        return not (self.whole_seconds and value.microseconds)

    def fault(self, value: object) -> str | None:
        """What the value should be instead, or None if it is in the range."""
        if value in self:
            return None
        days = f"{self.high.days:,} days"
        if self.whole_seconds:
            lowest = "0 seconds" if self.zero else "1 second"
            return f"a timedelta of whole seconds, from {lowest} to {days}"
        return f"a positive timedelta of at most {days}"


BATCH_SIZE = Range(low=1, high=MAX_INTEGER, unit="rows")
BATCH_COUNT = Range(low=1, high=MAX_SMALL_INTEGER, unit="batches")
VIEW_COUNT = Range(low=1, high=MAX_SMALL_INTEGER, unit="views")
SESSION_COUNT = Range(low=1, high=MAX_INTEGER, unit="sessions")
SAMPLE_SIZE = Range(low=1, high=MAX_INTEGER, unit="keys")
FAILURE_COUNT = Range(low=1, high=MAX_INTEGER, unit="failures")
PARKED_KEYS = Range(low=0, high=100_000, unit="keys")  # each batch reads all that are parked
PULSE_SECONDS = Range(low=0, high=20, unit="seconds")
SHARD_COUNT = Range(low=1, high=MAX_SMALL_INTEGER, unit="shards")
# PostgreSQL stores timeouts as whole milliseconds in 31 bits, and 0 switches them off.
BATCH_SECONDS = Range(low=0.001, high=2_147_483, unit="seconds")
FRESHNESS_TARGET = DurationRange(high=timedelta(days=3650))
REFRESH_INTERVAL = DurationRange(high=timedelta(days=3650), whole_seconds=True)
REFRESH_DELAY = DurationRange(high=timedelta(days=3650), whole_seconds=True, zero=True)
RETENTION = DurationRange(high=timedelta(days=36_500))  # now minus this is a valid date


def queue_fault(value: object) -> str | None:
    """What the name of a queue should be instead, or None if every broker accepts it."""
    valid = (
        isinstance(value, str)
        and 0 < len(value.encode(errors="replace")) <= MAX_QUEUE_LENGTH
        and value.isprintable()
        and value == value.strip()
        and not value.startswith(RESERVED_QUEUES)
    )
    if valid:
        return None
    return (
        f"the name of a queue: at most {MAX_QUEUE_LENGTH} bytes of printable characters, without "
        f"spaces at its ends, and not beginning with {RESERVED_QUEUES!r}"
    )
