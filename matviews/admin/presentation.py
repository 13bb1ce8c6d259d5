"""What the admin shows of times, states and schedules, as HTML."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..engine import RowCount, ViewStatus
from ..phases import Phase
from ..states import ViewState
from ..tasks.schedules import ScheduleStatus
from .phrases import duration, number

__all__ = ["labelled", "last_successes", "row_count", "schedule_lines", "state_text", "time_ago"]

DUE_NOW = timedelta(seconds=1)  # before its time, a schedule counts as due


def labelled(label: str, value: str) -> SafeString:
    """A cell of a list. Its label is shown on narrow screens, which have no column headings."""
    return format_html('<span class="matviews-label">{}: </span>{}', label, value)


def time_ago(when: datetime | None) -> SafeString:
    """How long ago, or in how long, a time is; a tooltip has the time itself."""
    if when is None:
        return format_html("{}", _("never"))
    now = engine.now()
    text = (
        _("%(time)s ago") % {"time": duration(now - when)}
        if when <= now
        else _("in %(time)s") % {"time": duration(when - now)}
    )
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        when.isoformat(),
        date_format(local, "DATETIME_FORMAT"),
        text,
    )


def state_text(status: ViewStatus) -> str:
    """The state of a view; if it is behind, by how much."""
    if status.state == ViewState.BEHIND and status.staleness and status.target:
        return _("behind by %(time)s") % {"time": duration(status.staleness - status.target)}
    return str(status.state.label)


def row_count(count: RowCount | None) -> str:
    """The number of rows of a view, marked with ~ if the database only estimates it."""
    if count is None:
        return _("no table")
    return f"{'' if count.exact else '~'}{number(count.rows)}"


def last_successes(successes: Mapping[Phase, datetime | None]) -> SafeString:
    """When each phase last succeeded, one line per phase; a single word if none ever did."""
    if not any(successes.values()):
        return format_html("{}", _("never"))
    lines = ((phase.value, time_ago(when)) for phase, when in successes.items())
    return _lines(format_html("{} {}", *line) for line in lines)


def schedule_lines(statuses: Iterable[ScheduleStatus], *, named: bool = True) -> SafeString:
    """When each schedule is due next and was sent last, or why it is off; one line per schedule.

    Args:
        statuses: of the schedules.
        named: whether a line begins with the interval and phases of its schedule.
    """
    return _lines(_schedule_line(status, named) for status in statuses)


def _schedule_line(status: ScheduleStatus, named: bool) -> SafeString:
    schedule = status.schedule
    phases = f" ({', '.join(schedule.phases)})" if schedule.phases else ""
    name = f"{schedule.frequency}{phases}"
    last = format_html(_("last {}"), time_ago(status.last_sent))
    if status.disabled_reason:
        reason = _("disabled: %(reason)s") % {"reason": status.disabled_reason}
        text = format_html('<span class="matviews-off">{}</span>', reason)
        return format_html("{} {}", name, text) if named else format_html("{}; {}", text, last)
    when = status.next_due
    due = when is None or when <= engine.now() + DUE_NOW
    coming = _("due now") if due else format_html(_("next {}"), time_ago(when))
    if named:
        return format_html('{} <span class="matviews-quiet">{}</span>', name, coming)
    return format_html("{}; {}", coming, last)


def _lines(lines: Iterable[SafeString]) -> SafeString:
    items = format_html_join("", "<li>{}</li>", ((line,) for line in lines))
    return format_html('<ul class="matviews-lines">{}</ul>', items) if items else items
