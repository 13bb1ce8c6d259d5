"""Pictures of what refreshes did, as SVG that needs no script and no style of its own.

`static/matviews/pictures.css` says how they look, in the colours of the admin's theme. What is no
number is drawn as 0, what is absurdly large as the largest that fits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from statistics import median

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..models import PhaseRun
from ..presentation import pluralize, rows_in_batches
from ..states import RunState
from .plots import (
    FAILED,
    FEWEST_SLOTS,
    ROWS,
    SECONDS,
    STOPPED,
    SUCCEEDED,
    WIDTH,
    Mark,
    Plot,
    Quantity,
)

__all__ = ["MOST_BARS", "durations_picture", "pace_picture", "rows_picture"]

MOST_BARS = 30

OUTCOMES = {
    RunState.FAILED: FAILED,
    RunState.NOT_CONVERGING: FAILED,
    RunState.STOPPED: STOPPED,
    RunState.SUCCEEDED: SUCCEEDED,
}


def durations_picture(runs: Iterable[PhaseRun]) -> SafeString:
    """How long the hooks of one phase worked in each of the last refreshes, as bars.

    Args:
        runs: those of one phase of a view, oldest refresh first. The shards of a refresh work side
            by side and make one bar, as long as the longest. Runs under way are left out.
    """
    bars = _bars(runs)
    return _bars_picture("Duration", SECONDS, bars, [bar.seconds for bar in bars])


def rows_picture(runs: Iterable[PhaseRun]) -> SafeString:
    """How many rows one phase wrote in each of the last refreshes, as bars.

    Args:
        runs: as for `durations_picture`; the rows of a refresh's shards are added up.
    """
    bars = _bars(runs)
    return _bars_picture("Rows", ROWS, bars, [bar.rows for bar in bars])


def pace_picture(run: PhaseRun, *, target: float | None = None) -> SafeString:
    """How long the batches of a run took and how many rows they wrote, as two lines.

    Args:
        run: one phase of one refresh in one shard.
        target: seconds that a batch should take.
    """
    if not run.samples:
        return _nothing("No batch has ended yet.")
    numbers = [number for number, _limit, _rows, _seconds in run.samples]
    limits = [None if each[1] is None else ROWS.number(each[1]) for each in run.samples]
    rows = [ROWS.number(each[2]) for each in run.samples]
    seconds = [SECONDS.number(each[3]) for each in run.samples]
    goals = [None if target is None else SECONDS.number(target)] * len(numbers)
    tooltips = [
        f"Batch {number:,}: {ROWS.words(wrote)}, {SECONDS.words(took)}"
        for number, wrote, took in zip(numbers, rows, seconds, strict=True)
    ]
    aim = "" if target is None else f"target {SECONDS.words(SECONDS.number(target))}"
    limited = limits != rows and any(limits)
    above = Plot(SECONDS, [*seconds, *filter(None, goals)])
    below = Plot(ROWS, [*rows, *filter(None, limits)], offset=above.bottom)
    return _picture(
        f"pace-{run.pk}",
        title=f"Pace of {run.phase}: seconds and rows per batch",
        desc=f"{pluralize(run.batches, 'batch')}. Seconds per batch: {SECONDS.summary(seconds)}"
        f"{aim and ', '}{aim}. Rows per batch: {ROWS.summary(rows)}.",
        height=below.bottom,
        parts=[
            above.frame("Seconds per batch", **({"reference": aim} if aim else {})),
            above.line(numbers, [*map(Mark, seconds, tooltips)], goals),
            below.frame("Rows per batch", **({"reference": "limit"} if limited else {})),
            below.line(numbers, [*map(Mark, rows, tooltips)], limits),
            below.ends(
                f"batch {numbers[0]:,}", f"batch {numbers[-1]:,}" if len(numbers) > 1 else ""
            ),
        ],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """What one phase of one refresh did, in all of its shards."""

    key: int
    refresh: int
    outcome: str
    ended: datetime | None
    seconds: float
    rows: float
    batches: int

    def __str__(self) -> str:
        when = f", {_moment(self.ended)}" if self.ended else ""
        did = f"{rows_in_batches(round(self.rows), self.batches)}, {SECONDS.words(self.seconds)}"
        return f"Refresh {self.refresh}{when}: {did}, {self.outcome}"


def _bars(runs: Iterable[PhaseRun]) -> list[Bar]:
    ended = (run for run in runs if not run.active)
    refreshes = groupby(ended, lambda run: run.refresh_id)
    return [_bar(list(shards)) for _refresh, shards in refreshes][-MOST_BARS:]


def _bar(shards: Sequence[PhaseRun]) -> Bar:
    state = RunState.worst(run.state for run in shards)
    assert state
    return Bar(
        key=shards[0].pk,
        refresh=shards[0].refresh_id,
        outcome=OUTCOMES[state],
        ended=max((run.finished_at for run in shards if run.finished_at), default=None),
        seconds=max(SECONDS.number(run.seconds) for run in shards),
        rows=ROWS.number(sum(run.rows for run in shards)),
        batches=sum(run.batches for run in shards),
    )


def _bars_picture(
    name: str, quantity: Quantity, bars: Sequence[Bar], values: Sequence[float]
) -> SafeString:
    if not bars:
        return _nothing("No run has ended yet.")
    outcomes = [bar.outcome for bar in bars]
    legend = {
        outcome: f"{outcomes.count(outcome)} {outcome}"
        for outcome in (FAILED, STOPPED)
        if outcome in outcomes
    }
    runs = "1 run" if len(bars) == 1 else f"{len(bars)} runs"
    oldest, newest = (_moment(bar.ended) if bar.ended else "" for bar in (bars[0], bars[-1]))
    plot = Plot(quantity, values)
    return _picture(
        f"{name.lower()}-{bars[0].key}",
        title=f"{name}, {runs}",
        desc=", ".join([f"{runs}: {quantity.summary(values)}", *legend.values()]) + ".",
        height=plot.bottom,
        parts=[
            plot.frame(name, f"median {quantity.short(median(values))}", **legend),
            plot.bars([*map(Mark, values, map(str, bars), outcomes)]),
            plot.ends(oldest if len(bars) >= FEWEST_SLOTS else "", newest),
        ],
    )


def _picture(
    name: str, *, title: str, desc: str, height: float, parts: Iterable[SafeString]
) -> SafeString:
    return format_html(
        '<svg class="matviews-picture" viewBox="0 0 {0} {1}" preserveAspectRatio="xMinYMin meet" '
        'role="img" aria-labelledby="{2}-title {2}-desc">'
        '<title id="{2}-title">{3}</title><desc id="{2}-desc">{4}</desc>{5}</svg>',
        WIDTH,
        height,
        name,
        title,
        desc,
        format_html_join("", "{}", ((part,) for part in parts)),
    )


def _nothing(reason: str) -> SafeString:
    return format_html('<p class="matviews-no-picture">{}</p>', reason)


def _moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return date_format(local, "j M H:i")
