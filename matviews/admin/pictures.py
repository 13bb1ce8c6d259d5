"""Charts of what refreshes did, as SVG without scripts or styles.

`static/matviews/pictures.css` styles them in the colours of the admin's theme. A value that is not
a number is drawn as 0, an absurdly large one as the largest that fits.
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
from django.utils.translation import gettext as _

from ..models import PhaseRun
from ..states import RunState
from .phrases import count_batches, count_runs, number, rows_in_batches
from .plots import FAILED, MIN_SLOTS, ROWS, SECONDS, STOPPED, SUCCEEDED, WIDTH, Mark, Plot, Quantity

__all__ = ["MAX_BARS", "durations_picture", "pace_picture", "rows_picture"]

MAX_BARS = 30

OUTCOMES = {
    RunState.FAILED: FAILED,
    RunState.NOT_CONVERGING: FAILED,
    RunState.STOPPED: STOPPED,
    RunState.SUCCEEDED: SUCCEEDED,
}
OUTCOME_LABELS = {
    SUCCEEDED: RunState.SUCCEEDED.label,
    STOPPED: RunState.STOPPED.label,
    FAILED: RunState.FAILED.label,
}


def durations_picture(runs: Iterable[PhaseRun]) -> SafeString:
    """How long the batches of one phase took in each of the last refreshes, as bars.

    Args:
        runs: those of one phase of a view, oldest refresh first. The shards of a refresh run in
            parallel and make one bar, as long as the longest. Unfinished runs are left out.
    """
    bars = _bars(runs)
    return _bars_picture("seconds", _("Time working"), SECONDS, bars, [bar.seconds for bar in bars])


def rows_picture(runs: Iterable[PhaseRun]) -> SafeString:
    """How many rows one phase wrote in each of the last refreshes, as bars.

    Args:
        runs: as for `durations_picture`; the rows of a refresh's shards are added up.
    """
    bars = _bars(runs)
    return _bars_picture("rows", _("Rows"), ROWS, bars, [bar.rows for bar in bars])


def pace_picture(run: PhaseRun, *, target: float | None = None) -> SafeString:
    """How long the batches of a run took and how many rows they wrote, as two lines.

    Args:
        run: one phase of one refresh in one shard.
        target: seconds that a batch should take.
    """
    if not run.samples:
        return _nothing(_("No batch has ended yet."))
    numbers = [int(sample[0]) for sample in run.samples]
    limits = [None if sample[1] is None else ROWS.number(sample[1]) for sample in run.samples]
    rows = [ROWS.number(sample[2]) for sample in run.samples]
    seconds = [SECONDS.number(sample[3]) for sample in run.samples]
    goals = [None if target is None else SECONDS.number(target)] * len(numbers)
    tooltips = [
        _("Batch %(number)s: %(rows)s, %(time)s")
        % {"number": number(batch), "rows": ROWS.words(wrote), "time": SECONDS.words(took)}
        for batch, wrote, took in zip(numbers, rows, seconds, strict=True)
    ]
    aim = target and _("target %(time)s") % {"time": SECONDS.words(SECONDS.number(target))}
    limited = limits != rows and any(limits)
    above = Plot(SECONDS, [*seconds, *filter(None, goals)])
    below = Plot(ROWS, [*rows, *filter(None, limits)], offset=above.bottom)
    times = SECONDS.summary(seconds)
    return _picture(
        f"pace-{run.pk}",
        title=_("Pace of %(phase)s: seconds and rows per batch") % {"phase": run.phase},
        desc=_("%(batches)s. Seconds per batch: %(seconds)s. Rows per batch: %(rows)s.")
        % {
            "batches": count_batches(run.batches),
            "seconds": f"{times}, {aim}" if aim else times,
            "rows": ROWS.summary(rows),
        },
        height=below.bottom,
        parts=[
            above.frame(_("Seconds per batch"), **({"reference": aim} if aim else {})),
            above.line(numbers, [*map(Mark, seconds, tooltips)], goals),
            below.frame(_("Rows per batch"), **({"reference": _("limit")} if limited else {})),
            below.line(numbers, [*map(Mark, rows, tooltips)], limits),
            below.ends(
                _batch_number(numbers[0]), _batch_number(numbers[-1]) if len(numbers) > 1 else ""
            ),
        ],
    )


def _batch_number(batch: int) -> str:
    return _("batch %(number)s") % {"number": number(batch)}


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
        name = _("Refresh %(refresh)s") % {"refresh": self.refresh}
        when = f", {_moment(self.ended)}" if self.ended else ""
        did = rows_in_batches(self.rows, self.batches)
        return f"{name}{when}: {did}, {SECONDS.words(self.seconds)}, {OUTCOME_LABELS[self.outcome]}"


def _bars(runs: Iterable[PhaseRun]) -> list[Bar]:
    ended = (run for run in runs if not run.active)
    refreshes = groupby(ended, lambda run: run.refresh_id)
    return [_bar(list(shards)) for _refresh, shards in refreshes][-MAX_BARS:]


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
    name: str, heading: str, quantity: Quantity, bars: Sequence[Bar], values: Sequence[float]
) -> SafeString:
    if not bars:
        return _nothing(_("No run has ended yet."))
    outcomes = [bar.outcome for bar in bars]
    legend = {
        outcome: f"{number(outcomes.count(outcome))} {OUTCOME_LABELS[outcome]}"
        for outcome in (FAILED, STOPPED)
        if outcome in outcomes
    }
    runs = count_runs(len(bars))
    oldest, newest = (_moment(bar.ended) if bar.ended else "" for bar in (bars[0], bars[-1]))
    plot = Plot(quantity, values)
    middle = _("median %(value)s") % {"value": quantity.short(median(values))}
    return _picture(
        f"{name}-{bars[0].key}",
        title=f"{heading}, {runs}",
        desc=", ".join([f"{runs}: {quantity.summary(values)}", *legend.values()]) + ".",
        height=plot.bottom,
        parts=[
            plot.frame(heading, middle, **legend),
            plot.bars([*map(Mark, values, map(str, bars), outcomes)]),
            plot.ends(oldest if len(bars) >= MIN_SLOTS else "", newest),
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
