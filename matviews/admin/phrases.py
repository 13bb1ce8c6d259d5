"""Counts, durations and progress, as text in the active language."""

from datetime import timedelta

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..engine import Progress
from ..models import Refresh
from ..presentation import MIN_WHOLE_RATE, format_duration, localized

__all__ = [
    "count_batches", "count_keys", "count_rows", "count_runs", "count_views", "duration",
    "moving_log", "number", "progress_text", "requesters", "rows_in_batches", "work_done",
]  # fmt: skip


def number(value: float) -> str:
    """A whole number, grouped by thousands."""
    return number_format(f"{value:.0f}", force_grouping=True)


def count_rows(count: float) -> str:
    return ngettext("%(count)s row", "%(count)s rows", round(count)) % {"count": number(count)}


def count_keys(count: int) -> str:
    return ngettext("%(count)s key", "%(count)s keys", count) % {"count": number(count)}


def count_batches(count: int) -> str:
    return ngettext("%(count)s batch", "%(count)s batches", count) % {"count": number(count)}


def count_runs(count: int) -> str:
    return ngettext("%(count)s run", "%(count)s runs", count) % {"count": number(count)}


def count_views(count: int) -> str:
    return ngettext("%(count)s view", "%(count)s views", count) % {"count": number(count)}


def rows_in_batches(rows: float, batches: int) -> str:
    return _("%(rows)s in %(batches)s") % {
        "rows": count_rows(rows),
        "batches": count_batches(batches),
    }


def duration(time: timedelta | float) -> str:
    """A length of time; the symbols of its units are international."""
    return localized(format_duration(time))


def progress_text(progress: Progress) -> str:
    """How far runs are, and how fast."""
    text = _extent(progress)
    return f"{text}, {_rate(progress)}" if progress.rate else text


def moving_log(entries: int) -> str:
    """A note that a refresh is waiting for entries of the change log."""
    text = ngettext(
        "moving %(entries)s entry of the change log",
        "moving %(entries)s entries of the change log",
        entries,
    )
    return text % {"entries": number(entries)}


def work_done(progress: Progress) -> str:
    """What finished runs did: rows and batches, and the keys checked or else the rate."""
    wrote = rows_in_batches(progress.rows, progress.batches)
    if progress.unit == "key" and progress.done:
        checked = _("%(keys)s checked") % {"keys": count_keys(progress.done)}
        return f"{wrote}, {checked}"
    return f"{wrote}, {_rate(progress)}" if progress.rate else wrote


def _extent(progress: Progress) -> str:
    counts = {"done": number(progress.done), "total": number(progress.total or 0)}
    if progress.unit == "row":
        if progress.batches and not progress.done:
            return rows_in_batches(0, progress.batches)
        if not progress.total:
            return count_rows(progress.done)
        of_total = ngettext(
            "%(done)s of about %(total)s row", "%(done)s of about %(total)s rows", progress.total
        )
        return of_total % counts
    if progress.total:
        of_total = ngettext(
            "%(done)s of about %(total)s key", "%(done)s of about %(total)s keys", progress.total
        )
        checked = of_total % counts
    else:
        checked = _("%(keys)s checked") % {"keys": count_keys(progress.done)}
    written = _("%(rows)s written") % {"rows": count_rows(progress.rows)}
    return f"{checked}, {written}"


def _rate(progress: Progress) -> str:
    rate = progress.rate
    shown = number(rate) if rate >= MIN_WHOLE_RATE else localized(f"{rate:.1f}")
    text = _("%(rate)s keys/s") if progress.unit == "key" else _("%(rate)s rows/s")
    return text % {"rate": shown}


def requesters(refresh: Refresh) -> str:
    """What first requested a refresh, who did if that is known, and how many requests joined it."""
    origin = refresh.get_origin_display()
    first = f"{origin}: {refresh.requested_by}" if refresh.requested_by else origin
    joined = refresh.requests - 1
    if not joined:
        return first
    return ngettext(
        "%(first)s, and %(count)s more request", "%(first)s, and %(count)s more requests", joined
    ) % {"first": first, "count": number(joined)}
