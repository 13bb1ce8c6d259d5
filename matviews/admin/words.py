"""Times, rows and schedules in words."""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .. import engine
from ..engine import RowCount, ViewStatus
from ..models import PhaseRun
from ..phases import Phase
from ..states import ViewState
from ..tasks.schedules import Planned
from ..words import counted, duration

__all__ = [
    "length", "moment", "plan", "rows_in_words", "state_in_words",
    "successes_in_words", "written",
]  # fmt: skip

AT_ONCE = timedelta(seconds=1)


def length(time: timedelta) -> str:
    """A length of time, without the zeros at its end."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return re.sub(r"( 00 \w+)+$", "", duration(seconds))


def moment(when: datetime | None, *, missing: str = "never") -> SafeString:
    """How long ago or ahead a time is; the time itself is its title."""
    if when is None:
        return format_html("{}", missing)
    now = engine.now()
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    words = f"{length(now - when)} ago" if when <= now else f"in {length(when - now)}"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        when.isoformat(),
        date_format(local, "DATETIME_FORMAT"),
        words,
    )


def state_in_words(status: ViewStatus) -> str:
    """The state of a view, and by how much where that can be said."""
    if status.state == ViewState.BEHIND and status.staleness and status.target:
        return f"behind by {length(status.staleness - status.target)}"
    return status.state.value


def rows_in_words(count: RowCount | None) -> str:
    """A number of rows, marked with ~ if the database only estimates it."""
    if count is None:
        return "no table"
    return f"{'' if count.exact else '~'}{count.rows:,}"


def written(runs: Collection[PhaseRun]) -> str:
    """What the runs of a phase did: rows and batches, and the keys checked or, where there
    are none, rows per second of all together.
    """
    rows, batches = sum(run.rows for run in runs), sum(run.batches for run in runs)
    wrote = f"{counted(rows, 'row')} in {counted(batches, 'batch')}"
    if keys_scanned := sum(run.keys_scanned for run in runs):
        return f"{wrote}, {counted(keys_scanned, 'key')} checked"
    rate = sum(run.rate for run in runs if run.rate)
    return f"{wrote}, {rate:,.0f} rows per second" if rate else wrote


def successes_in_words(successes: Mapping[Phase, datetime | None]) -> SafeString:
    """When each phase last succeeded: a line for each, one for all if none ever did."""
    if not any(successes.values()):
        return SafeString("never")
    lines = ((phase.value, moment(when)) for phase, when in successes.items())
    return _lines(format_html("{} {}", *line) for line in lines)


def plan(planned: Iterable[Planned], *, named: bool = True) -> SafeString:
    """When schedules are sent next and were sent last, or why they are not; a line for each.

    Args:
        planned: the schedules.
        named: whether to say which each is.
    """
    return _lines(_plan(each, named) for each in planned)


def _plan(planned: Planned, named: bool) -> SafeString:
    schedule = planned.schedule
    phases = f" ({', '.join(schedule.phases)})" if schedule.phases else ""
    name = f"{schedule.how_often}{phases}"
    last = format_html("last {}", moment(planned.last_sent))
    if not planned.runs:
        text = format_html('<span class="matviews-off">off: {}</span>', planned.why_not)
        return format_html("{} {}", name, text) if named else format_html("{}; {}", text, last)
    when = planned.next_due
    due = when is None or when <= engine.now() + AT_ONCE
    coming = "due now" if due else format_html("next {}", moment(when))
    if named:
        return format_html('{} <span class="matviews-quiet">{}</span>', name, coming)
    return format_html("{}; {}", coming, last)


def _lines(lines: Iterable[SafeString]) -> SafeString:
    items = format_html_join("", "<li>{}</li>", ((line,) for line in lines))
    return format_html('<ul class="matviews-lines">{}</ul>', items) if items else items
