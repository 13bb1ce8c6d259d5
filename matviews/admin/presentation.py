"""What the admin shows of times, states and schedules, as HTML."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import engine
from ..engine import RowCount, ViewStatus
from ..models import RefreshSchedule
from ..states import ViewState
from ..tasks.schedules import ScheduleStatus
from ..waits import WaitCode
from .phrases import duration, number

__all__ = [
    "failing_text",
    "labelled",
    "next_lines",
    "pausing_text",
    "requested_text",
    "row_count",
    "schedule_lines",
    "state_text",
    "time_ago",
    "upstream_text",
    "waiting_text",
]  # fmt: skip

DUE_NOW = timedelta(seconds=1)  # before its time, a schedule counts as due


def labelled(label: str, value: str) -> SafeString:
    """A cell of a list. Its label is shown on narrow screens, which have no column headings."""
    return format_html('<span class="matviews-label">{}: </span>{}', label, value)


def time_ago(when: datetime | None) -> SafeString:
    """How long ago a time was, or how far off it is; a tooltip has the time itself."""
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


def failing_text(status: ViewStatus) -> str:
    """How many times in a row a view has failed, and when it tries again; "" if it works."""
    if not status.failures:
        return ""
    counted = ngettext("failed once", "failed %(count)s times in a row", status.failures) % {
        "count": number(status.failures)
    }
    if status.suspended_at:
        return _("%(failed)s, suspended") % {"failed": counted}
    if status.retry_in is None:
        return counted
    tries = _("%(failed)s; tries again in %(time)s at the earliest")
    return tries % {"failed": counted, "time": duration(status.retry_in)}


def upstream_text(status: ViewStatus) -> str:
    """Which views that it reads are not kept up to date, and why; "" if all are."""
    upstream = status.upstream
    texts = (
        (upstream.failed, _("upstream failed: %(views)s")),
        (upstream.held, _("upstream paused: %(views)s")),
    )
    return "; ".join(text % {"views": ", ".join(labels)} for labels, text in texts if labels)


def waiting_text(status: ViewStatus) -> str:
    """For how long no worker has taken the oldest refresh of a view; "" if one has."""
    if status.waiting_for is None:
        return ""
    return _("no worker has taken it for %(time)s") % {"time": duration(status.waiting_for)}


def pausing_text(status: ViewStatus) -> str:
    """Why and how long the refreshes of a view wait, apart from failures; "" if they do not."""
    if status.quiet_until:
        left = duration(status.quiet_until - engine.utc_now())
        return _("quiet hours, for another %(time)s") % {"time": left}
    if status.wait and status.wait.code == WaitCode.TURNS:
        return status.wait.shown
    return _("waits: %(reason)s") % {"reason": status.wait.shown} if status.wait else ""


def row_count(count: RowCount | None) -> str:
    """The number of rows of a view, marked with ~ if the database only estimates it."""
    if count is None:
        return _("no table")
    return f"{'' if count.exact else '~'}{number(count.rows)}"


def schedule_lines(statuses: Iterable[ScheduleStatus]) -> SafeString:
    """When each schedule is due next and was sent last, or why it is off; one line per schedule."""
    return _lines(_schedule_line(status) for status in statuses)


def _schedule_line(status: ScheduleStatus) -> SafeString:
    last = format_html(_("last {}"), time_ago(status.last_sent))
    return format_html("{}; {}", _off(status) or _coming(status), last)


def next_lines(statuses: Iterable[ScheduleStatus]) -> SafeString:
    """When each schedule is due next and how often it is, or why it is off; one line for each."""
    return _lines(_next_line(status) for status in statuses)


def _next_line(status: ScheduleStatus) -> SafeString:
    schedule = status.schedule
    requested = requested_text(schedule)
    often = f"{schedule.frequency} ({requested})" if requested else schedule.frequency
    return format_html(
        '{} <span class="matviews-quiet">{}</span>', _off(status) or _coming(status), often
    )


def requested_text(schedule: RefreshSchedule) -> str:
    """What a schedule requests; "" if it is a refresh of all phases."""
    if schedule.refreshes:
        return ", ".join(schedule.phases)
    if not schedule.sample:
        return _("verification")
    return _("verification of about %(count)s keys") % {"count": number(schedule.sample)}


def _off(status: ScheduleStatus) -> SafeString | str:
    if not status.disabled_reason:
        return ""
    reason = _("disabled: %(reason)s") % {"reason": status.disabled_reason}
    return format_html('<span class="matviews-off">{}</span>', reason)


def _coming(status: ScheduleStatus) -> SafeString | str:
    if status.schedule.on_change:
        return _("after the next change")
    when = status.next_due
    due = when is None or when <= engine.now() + DUE_NOW
    return _("due now") if due else format_html(_("next {}"), time_ago(when))


def _lines(lines: Iterable[SafeString]) -> SafeString:
    items = format_html_join("", "<li>{}</li>", ((line,) for line in lines))
    return format_html('<ul class="matviews-lines">{}</ul>', items) if items else items
