"""The hours of each day in which a view is not refreshed, by the local time of a zone."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

__all__ = ["QuietHours", "quiet_hours_fault", "read_quiet_hours", "zone_fault"]

FAULT = (
    "a start, an end and the name of a time zone, as in ('22:00', '06:00', 'Europe/Berlin'), where "
    "start and end differ"
)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """The time of each day from `start` to `end`, which is on the next day if it is not later.

    If the clocks go back, the hours last from the first occurrence of their start to the last
    occurrence of their end. If the clocks go forward, skipped times are an hour later.
    """

    #: The local time at which they begin.
    start: time
    #: The local time at which they end.
    end: time
    #: The name of the time zone.
    zone: str

    def __str__(self) -> str:
        return f"{self.start:%H:%M} to {self.end:%H:%M} {self.zone}"

    def until(self, moment: datetime) -> datetime | None:
        """When the quiet hours around a moment end, in UTC; None if it is outside of them."""
        return next((end for start, end in self._near(moment) if start <= moment < end), None)

    def last_end(self, moment: datetime) -> datetime:
        """When quiet hours last ended before a moment, in UTC."""
        return max(end for _start, end in self._near(moment) if end <= moment)

    def _near(self, moment: datetime) -> list[tuple[datetime, datetime]]:
        """The starts and ends of the quiet hours around a moment."""
        today = moment.astimezone(_zone(self.zone)).date()
        # One more than two nights need: Samoa has skipped a whole day.
        days = [today + timedelta(days=offset) for offset in (-3, -2, -1, 0)]
        later = timedelta(days=0 if self.start < self.end else 1)
        return [
            (self._utc(day, self.start, 0), self._utc(day + later, self.end, 1)) for day in days
        ]

    def _utc(self, day: date, wall: time, fold: int) -> datetime:
        # A skipped time, by the offset before it: as much later as the clocks go forward.
        local = datetime.combine(day, wall.replace(fold=fold), _zone(self.zone))
        skipped = local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) != (
            local.replace(tzinfo=None)
        )
        return local.replace(fold=0 if skipped else fold).astimezone(UTC)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def zone_fault(name: object) -> str | None:
    """What the name of a time zone should be instead, or None if this machine knows it."""
    try:
        _zone(str(name))
    except (ValueError, OSError, KeyError):
        return "the name of a time zone that this machine knows, as in 'Europe/Berlin'"
    return None if isinstance(name, str) else "the name of a time zone"


def quiet_hours_fault(value: object) -> str | None:
    """What `MatviewMeta.quiet_hours` should be instead, or None if it can be read."""
    if not isinstance(value, tuple | list) or len(value) != 3:
        return FAULT
    try:
        start, end = map(_time, value[:2])
    except (TypeError, ValueError):
        return FAULT
    return FAULT if start == end or zone_fault(value[2]) else None


def read_quiet_hours(value: Any) -> QuietHours:
    """The quiet hours of a `MatviewMeta` in which `quiet_hours_fault` finds no fault."""
    start, end, zone = value
    return QuietHours(_time(start), _time(end), zone)


def _time(value: Any) -> time:
    found = value if isinstance(value, time) else time.fromisoformat(value)
    if found.tzinfo is not None:
        raise ValueError(value)
    return found
