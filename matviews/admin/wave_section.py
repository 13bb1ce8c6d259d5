"""The wave of a refresh on its page: what it followed and what it led to, on one time scale."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..models import Refresh
from ..states import RefreshState
from .badges import badge
from .phrases import count_rows, duration
from .timeline import FAILED, WAITING, WORKING, Span, bar

__all__ = ["wave_context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A refresh of a wave, as the page shows it."""

    refresh: Any
    #: The address of its page; "" for that of the page itself.
    page: str
    badge: SafeString
    #: When it waited and ran, on the scale of the wave.
    bar: SafeString
    #: The same in words, and what it wrote.
    words: str
    #: Whether the refresh of the page has followed it.
    is_followed: bool
    #: The refreshes that it followed, as far as they are shown.
    follows: list[int]


def wave_context(refresh: Refresh, site: str) -> list[Step]:
    """The refreshes of a wave in order of their requests; [] if it has only one.

    Args:
        refresh: that of the page.
        site: the name of the admin site.
    """
    steps = engine.wave_of(refresh)
    if len(steps) < 2:
        return []
    now, began = engine.now(), steps[0].requested_at
    total = max(((each.finished_at or now) - began).total_seconds() for each in steps)
    shown = {each.pk for each in steps}

    def page(pk: int) -> str:
        return reverse("admin:matviews_refresh_change", args=[pk], current_app=site)

    return [
        Step(
            refresh=each,
            page=page(each.pk) if each.pk != refresh.pk else "",
            badge=badge(each.state),
            bar=bar(_spans(each, began, now), total),
            words=_words(each, began),
            is_followed=each.pk in refresh.upstream_refreshes,
            follows=[pk for pk in each.upstream_refreshes if pk in shown],
        )
        for each in steps
    ]


def _spans(each: Any, began: datetime, now: datetime) -> list[Span]:
    """Waiting from the request to the first batch, then working to the end."""
    end = each.finished_at or now
    start = max(min(each.started_at or end, end), each.requested_at)
    kind = FAILED if each.state == RefreshState.FAILED else WORKING
    requested, worked = each.requested_at - began, end - start
    return [
        Span(WAITING, requested.total_seconds(), (start - each.requested_at).total_seconds()),
        Span(kind, (start - began).total_seconds(), worked.total_seconds()),
    ]


def _words(each: Any, began: datetime) -> str:
    after = _("requested after %(time)s") % {"time": duration(each.requested_at - began)}
    if each.finished_at is None:
        return f"{after}, {_('still open')}"
    took = _("took %(time)s") % {"time": duration(each.finished_at - each.requested_at)}
    return f"{after}, {took}, {count_rows(each.rows_written or 0)}"
