"""The database's clock, which all processes share; their own clocks may differ."""

import time
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone

from . import catalog_of

__all__ = ["UtcNow", "from_utc", "now", "stored", "timestamp"]

READING_SECONDS = 60.0  # how long a reading is extrapolated by this machine's uptime
#: By database, the reading of its clock and the uptime of this machine then.
_READINGS: dict[str, tuple[float, float]] = {}


class UtcNow(Now):
    """The time in UTC: on MariaDB and MySQL `Now` is in the server's time zone."""

    def as_mysql(self, compiler: Any, connection: Any, **_context: Any) -> Any:
        """The same as `Now`, except for the time zone."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)")


def now(using: str) -> datetime:
    """The time by the database's clock, in the form of Django's `timezone.now()`."""
    return from_utc(datetime.fromtimestamp(timestamp(using), UTC), using)


def stored(value: datetime, using: str) -> datetime:
    """A time that `UtcNow` stored and that was read from its column, in the form of `now`.

    A column without a time zone holds UTC, whatever time zone Django assumes for it.
    """
    if connections[using].features.supports_timezones:
        return value
    return from_utc(value.replace(tzinfo=UTC), using)


def from_utc(value: datetime, using: str) -> datetime:
    """A time with its zone, in the form of `now`."""
    if connections[using].timezone is not None:
        return value
    return timezone.make_naive(value, timezone.get_default_timezone())


def timestamp(using: str) -> float:
    """Seconds since 1970 by the database's clock, which is read once a minute."""
    read_at, up = _READINGS.get(using, (0.0, -READING_SECONDS))
    passed = _uptime() - up
    if not 0 <= passed < READING_SECONDS:
        read_at, passed = catalog_of(using).timestamp(), 0.0
        _READINGS[using] = read_at, _uptime()
    return read_at + passed


def _uptime() -> float:
    """Seconds by a clock that nobody can set; where possible, it runs while the machine sleeps."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)
