"""Where the time of a refresh went: waiting for its first batch, working, and between batches."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from ..models import PhaseRun, Refresh
from ..states import RefreshState
from .phrases import duration

__all__ = ["Span", "Timing", "bar", "timing"]

WIDTH, HEIGHT = 1000, 12  # of a bar, in units that the page stretches
LEAST = 2  # units: what took no time at this scale is still seen

WAITING, WORKING, FAILED = "waiting", "working", "failed"


class Span(NamedTuple):
    """A part of a bar: what happened then, when it began, and how long it took, in seconds."""

    kind: str
    start: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How long a refresh waited and worked; all in seconds."""

    #: From the request to the first batch; to the end, if there was none.
    waited: float
    #: What its batches took. Shards work at the same time, so the longest of them counts.
    worked: float
    #: From the first batch to the end, without the work; batches that failed do not count as work.
    between: float
    #: Whether it failed.
    failed: bool = False

    @property
    def total(self) -> float:
        """From the request to the end, or until now."""
        return self.waited + self.worked + self.between

    @property
    def spans(self) -> list[Span]:
        """The parts, one after the other."""
        ends = self.waited + self.worked
        return [
            Span(WAITING, 0, self.waited),
            Span(FAILED if self.failed else WORKING, self.waited, self.worked),
            Span(WAITING, ends, self.between),
        ]

    def __str__(self) -> str:
        parts = [_("waited %(time)s") % {"time": duration(self.waited)}]
        if self.worked:
            parts.append(_("worked %(time)s") % {"time": duration(self.worked)})
        if self.between:
            text = (
                _("%(time)s in batches that failed and between batches")
                if self.failed
                else _("%(time)s between batches")
            )
            parts.append(text % {"time": duration(self.between)})
        return ", ".join(parts)


def timing(refresh: Refresh, runs: Iterable[PhaseRun], now: datetime) -> Timing:
    """Where the time of a refresh went so far.

    Args:
        refresh: the refresh.
        runs: its own. If another refresh did the work of one, it has no work here.
        now: the time by the database's clock.
    """
    by_shard = defaultdict(list)
    for run in runs:
        by_shard[run.shard_id].append(run)
    end = refresh.finished_at or now
    starts = [run.started_at for shard in by_shard.values() for run in shard if run.started_at]
    start = min(starts, default=refresh.started_at or end)
    start = end if refresh.merged_into_id else max(start, refresh.requested_at)
    elapsed = max(0.0, (end - start).total_seconds())
    worked = max((sum(run.seconds for run in shard) for shard in by_shard.values()), default=0.0)
    worked = min(worked, elapsed)
    return Timing(
        waited=max(0.0, (start - refresh.requested_at).total_seconds()),
        worked=worked,
        between=elapsed - worked,
        failed=refresh.state == RefreshState.FAILED,
    )


def bar(spans: Sequence[Span], longest: float) -> SafeString:
    """Spans on a scale from 0 to `longest` seconds: blocks of work on lines of waiting.

    The text beside it says the same, so screen readers skip it.
    """
    unit = WIDTH / longest if longest > 0 else 0
    drawn = (
        (span.kind, _c(span.start * unit), _height(span), _c(max(LEAST, span.seconds * unit)))
        for span in spans
        if span.seconds > 0
    )
    return format_html(
        '<svg class="matviews-bar" viewBox="0 0 {} {}" preserveAspectRatio="none" '
        'aria-hidden="true">{}</svg>',
        WIDTH,
        HEIGHT,
        format_html_join(
            "",
            '<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>',
            ((kind, x, y, width, height) for kind, x, (y, height), width in drawn),
        ),
    )


def _height(span: Span) -> tuple[float, float]:
    """Top and height: waiting is thin, so that not only the colour tells it from work."""
    return (HEIGHT // 2 - 1, 2) if span.kind == WAITING else (0, HEIGHT)


def _c(coordinate: float) -> str:
    return f"{coordinate:.1f}".removesuffix(".0")
