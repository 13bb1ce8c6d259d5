"""Counts, rates, durations, times and progress as people read them, in English.

For the command and messages; `admin.phrases` has them in the language of the person, and
`localized` gives numbers its separators.
"""

from datetime import datetime, timedelta
from typing import Protocol

from django.utils import timezone
from django.utils.formats import get_format

__all__ = [
    "format_duration", "format_progress", "format_rate", "format_row_count", "format_time",
    "localized", "pluralize", "rows_in_batches",
]  # fmt: skip

MIN_WHOLE_RATE = 10  # rows or keys per second from which a decimal place says nothing
MIN_WHOLE_SECONDS = 9.95  # the same for seconds


class Counts(Protocol):
    """What is shown of `engine.Progress`, which this layer must not import."""

    @property
    def unit(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def batches(self) -> int: ...
    @property
    def rate(self) -> float: ...


def pluralize(number: int, noun: str) -> str:
    """A number with its noun: "1 batch", "2,000 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "sh")) else "s"
    return f"{number:,} {noun}{ending}"


def rows_in_batches(rows: int, batches: int) -> str:
    """How much was written: "2,000 rows in 1 batch"."""
    return f"{pluralize(rows, 'row')} in {pluralize(batches, 'batch')}"


def localized(text: str) -> str:
    """A number that Python has formatted, with the separators of the active language."""
    separators = {",": get_format("THOUSAND_SEPARATOR"), ".": get_format("DECIMAL_SEPARATOR")}
    return text.translate(str.maketrans(separators))


def format_row_count(rows: int, *, exact: bool) -> str:
    """The rows of a table, marked with ~ if the database only estimates them."""
    return f"{'' if exact else '~'}{rows:,}"


def format_rate(rate: float, unit: str) -> str:
    """How many per second: "1,200 rows/s", "0.5 keys/s"."""
    return f"{rate:,.0f} {unit}s/s" if rate >= MIN_WHOLE_RATE else f"{rate:.1f} {unit}s/s"


def format_duration(duration: timedelta | float) -> str:
    """A duration in its two largest units, or in seconds: "40 ms", "1.5 s", "2 h 05 min"."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < MIN_WHOLE_SECONDS:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return _two_units(days, "d", hours, "h")
    if hours:
        return _two_units(hours, "h", minutes, "min")
    return _two_units(minutes, "min", rest, "s") if minutes else f"{rest} s"


def _two_units(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit}" + (f" {small:02} {small_unit}" if small else "")


def format_time(when: datetime) -> str:
    """A time to the second, in the project's time zone."""
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    return f"{local:%Y-%m-%d %H:%M:%S}"


def format_progress(progress: Counts) -> str:
    """How much of the work is done, and how many rows it wrote."""
    by_keys = progress.unit == "key"
    written = f", {pluralize(progress.rows, 'row')} written" if by_keys else ""
    if progress.batches and not progress.done and not by_keys:
        return rows_in_batches(0, progress.batches)
    if progress.total:
        return f"{progress.done:,} of about {progress.total:,} {progress.unit}s{written}"
    return f"{pluralize(progress.done, progress.unit)}{' checked' if by_keys else ''}{written}"
