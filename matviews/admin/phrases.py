"""Numbers, counts and intervals as text in the active language."""

from django.utils.formats import get_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, ngettext_lazy

from ..models import Period, Refresh, RefreshSchedule

__all__ = [
    "count_batches", "count_keys", "count_rows", "count_runs", "count_views", "frequency",
    "localized", "number", "rate", "requesters",
]  # fmt: skip

_EVERY = {
    Period.SECONDS: ngettext_lazy("every second", "every %(count)d seconds", "count"),
    Period.MINUTES: ngettext_lazy("every minute", "every %(count)d minutes", "count"),
    Period.HOURS: ngettext_lazy("every hour", "every %(count)d hours", "count"),
    Period.DAYS: ngettext_lazy("every day", "every %(count)d days", "count"),
}


def number(value: float) -> str:
    """A whole number, grouped by thousands."""
    return number_format(f"{value:.0f}", force_grouping=True)


def localized(text: str) -> str:
    """A number that Python has formatted, with the separators of the active language."""
    separators = {",": get_format("THOUSAND_SEPARATOR"), ".": get_format("DECIMAL_SEPARATOR")}
    return text.translate(str.maketrans(separators))


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


def rate(per_second: float, *, keys: bool = False) -> str:
    """How many rows, or keys, are processed per second."""
    text = _("%(count)s keys per second") if keys else _("%(count)s rows per second")
    return text % {"count": number(per_second)}


def requesters(refresh: Refresh) -> str:
    """What requested a refresh first, who where that is known, and how many requests joined it."""
    origin = refresh.get_origin_display()
    first = f"{origin}: {refresh.requested_by}" if refresh.requested_by else origin
    joined = refresh.requests - 1
    if not joined:
        return first
    return ngettext(
        "%(first)s, and %(count)s more request", "%(first)s, and %(count)s more requests", joined
    ) % {"first": first, "count": number(joined)}


def frequency(schedule: RefreshSchedule) -> str:
    """As `RefreshSchedule.how_often`, which is English for the command and JSON."""
    if schedule.every is None:
        return str(schedule.crontab)
    return str(_EVERY[Period(schedule.period)] % {"count": schedule.every})
