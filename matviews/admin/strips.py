"""The last refreshes of views as strips, and ages against targets as bars: SVG without styles."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from django.db.models import OuterRef, Q, Subquery
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..models import Refresh, ViewControl
from ..redact import in_one_line
from ..states import RefreshState
from .phrases import duration, number

__all__ = ["age_bar", "last_refreshes", "strip"]

MAX_REFRESHES = 30
PITCH, HEIGHT = 4, 18  # of a refresh in the strip, in pixels
BAR = 100  # pixels from now to the target
MAX_TEXT = 200  # characters of an error in a tooltip
#: Shapes that differ without colour: a low bar, a tall one with a gap, an empty one, a dot.
SHAPES = {
    RefreshState.SUCCEEDED: "M0 8h3v10h-3z",
    RefreshState.FAILED: "M0 0h3v11h-3zM0 14h3v4h-3z",
    RefreshState.STOPPED: "M.5 8.5h2v9h-2z",
    RefreshState.OPEN: "M.5 14.5h2v3h-2z",
}


def last_refreshes(views: Collection[int]) -> dict[int, list[Refresh]]:
    """The last refreshes of each view, the oldest first, in two statements.

    Args:
        views: primary keys of their controls.
    """
    own = Refresh.objects.filter(view=OuterRef("pk")).exclude(state=RefreshState.MERGED)
    controls = ViewControl.objects.filter(pk__in=views).annotate(
        newest=Subquery(own.order_by("-pk").values("pk")[:1]),
        oldest=Subquery(own.order_by("-pk").values("pk")[MAX_REFRESHES - 1 : MAX_REFRESHES]),
    )
    shown = Q(pk__in=())
    for view, newest, oldest in controls.order_by().values_list("pk", "newest", "oldest"):
        if newest:
            shown |= Q(view=view, pk__gte=oldest or 0)
    columns = ("view", "state", "error", "requested_at", "started_at", "finished_at", "repeats")
    found = Refresh.objects.filter(shown).exclude(state=RefreshState.MERGED).only(*columns)
    by_view: dict[int, list[Refresh]] = defaultdict(list)
    for refresh in found.order_by("pk"):
        by_view[refresh.view_id].append(refresh)
    return by_view


def strip(refreshes: Sequence[Refresh], label: str) -> SafeString:
    """How the last refreshes of a view ended, the newest on the right."""
    shown = refreshes[-MAX_REFRESHES:]
    if not shown:
        return format_html('<span class="matviews-quiet">{}</span>', _("none yet"))
    first = MAX_REFRESHES - len(shown)
    marks = (
        (PITCH * place, refresh.state, PITCH, HEIGHT, SHAPES[RefreshState(refresh.state)],
         _in_words(refresh))
        for place, refresh in enumerate(shown, start=first)
    )  # fmt: skip
    return format_html(
        '<svg class="matviews-strip" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="{2}">{3}</svg>',
        PITCH * MAX_REFRESHES,
        HEIGHT,
        f"{label}: {_summary(shown)}",
        format_html_join(
            "",
            '<g transform="translate({} 0)" class="{}"><rect width="{}" height="{}" class="hit"/>'
            '<path d="{}"/><title>{}</title></g>',
            marks,
        ),
    )


def _summary(refreshes: Sequence[Refresh]) -> str:
    counts = Counter(RefreshState(each.state) for each in refreshes)
    counted = ngettext("%(count)s refresh", "%(count)s refreshes", len(refreshes)) % {
        "count": number(len(refreshes))
    }
    states = ", ".join(f"{number(count)} {state.label}" for state, count in counts.items())
    last = _("The last: %(refresh)s") % {"refresh": _in_words(refreshes[-1])}
    return f"{counted}: {states}. {last}"


def _in_words(refresh: Refresh) -> str:
    """When a refresh ended, or was requested, and how."""
    text = f"{_moment(refresh.finished_at or refresh.requested_at)}, {refresh.get_state_display()}"
    if refresh.started_at and refresh.finished_at:
        text += f", {duration(refresh.finished_at - refresh.started_at)}"
    if refresh.repeats:
        again = ngettext("%(count)s time before", "%(count)s times before", refresh.repeats)
        text += f", {again % {'count': number(refresh.repeats)}}"
    error = in_one_line(refresh.error)
    return f"{text}: {error[:MAX_TEXT]}" if error else text


def _moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return date_format(local, "j M H:i:s")


def age_bar(age: timedelta, target: timedelta) -> SafeString:
    """How old rows are against how old they may be: full at the target, marked beyond it."""
    share = age / target
    late = share > 1
    return format_html(
        '<svg class="matviews-age{0}" width="{1}" height="8" viewBox="0 0 {1} 8" '
        'aria-hidden="true"><rect width="{1}" height="8" class="all"/>'
        '<rect width="{2}" height="8" class="used"/>{3}</svg>',
        " late" if late else "",
        BAR,
        f"{BAR * min(share, 1):.0f}",
        format_html('<path d="M{} 0l4 4-4 4z" class="past"/>', BAR - 4) if late else "",
    )
