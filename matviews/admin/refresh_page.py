"""What the list of refreshes and the page of one show."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..engine import Progress, RunProgress, count_requests, progress_of
from ..models import PhaseRun, Refresh
from ..states import RefreshState, RefreshStrategy
from .badges import badge
from .live import refresh_progress, state_of
from .phrases import duration, requesters, rows_in_batches, work_done
from .pictures import pace_picture
from .timeline import Span, bar, timing

__all__ = ["refresh_context", "took"]

MAX_NAMED = 20  # of the refreshes that were merged into one


@dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    """Refreshes that were merged into one: some of their primary keys, and how many more."""

    named: Sequence[int]
    more: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardShown:
    """One phase of a refresh in one shard."""

    #: How far the phase is, and whose run does the work.
    progress: RunProgress
    #: The refreshes whose work this run does too.
    merged: Others
    #: A picture of its batches, "" if there are too few.
    pace: SafeString | str

    @property
    def badge(self) -> SafeString:
        """Its state."""
        return badge(state_of(self.progress))

    @property
    def wrote(self) -> str:
        """Rows, batches and rate."""
        return work_done(Progress.of([self.progress.run]))

    @property
    def worked(self) -> str:
        """The time that its batches took, without the pauses between them."""
        return duration(self.progress.run.seconds)

    @property
    def strategy(self) -> str:
        """The strategy, and what each was expected to take; "" before it is chosen."""
        run = self.progress.run
        expected = [
            f"{strategy.label} {duration(run.expected_seconds[strategy])}"
            for strategy in RefreshStrategy
            if strategy in run.expected_seconds
        ]
        if not expected:
            return run.get_strategy_display()
        return _("%(strategy)s (expected: %(expected)s)") % {
            "strategy": run.get_strategy_display(),
            "expected": ", ".join(expected),
        }


def took(refresh: Refresh) -> str:
    """The time from the request to the end."""
    return duration(refresh.finished_at - refresh.requested_at) if refresh.finished_at else "-"


def refresh_context(refresh: Refresh) -> dict[str, Any]:
    """The state of a refresh and what it did, for its template."""
    is_open = refresh.finished_at is None
    progress = [each for each in progress_of(refresh) if is_open or each.run.pk]
    merged = _merged(refresh)
    shown = [
        ShardShown(
            progress=each,
            merged=_others(merged[each.run.pk]),
            pace=_pace(refresh, each.run),
        )
        for each in progress
    ]
    by_phase = groupby(shown, lambda each: each.progress.phase)
    now = engine.now()
    spent = timing(refresh, [each.run for each in progress if each.other is None], now)
    return {
        "is_open": is_open,
        "badge": badge(refresh.state),
        "timing": spent,
        "timeline": bar(spent.spans, spent.total),
        "lanes": [_lane(refresh, each, spent.total, now) for each in shown if _has_worked(each)],
        "requests": count_requests(refresh),
        "requesters": requesters(refresh),
        "live": refresh_progress(refresh, progress),
        "no_phases": _("Nothing had changed since these phases last succeeded.")
        if refresh.state == RefreshState.SUCCEEDED
        else _("It ended before its first batch."),
        "phases": [(phase, list(shards)) for phase, shards in by_phase],
        "failures": [each for each in shown if each.progress.run.error and not each.progress.ahead],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """When one phase ran in one shard, on the time scale of its refresh."""

    shown: ShardShown
    bar: SafeString

    @property
    def words(self) -> str:
        """What it did, and how long that took."""
        run = self.shown.progress.run
        return _("worked %(time)s, %(wrote)s") % {
            "time": duration(run.seconds),
            "wrote": rows_in_batches(run.rows, run.batches),
        }


def _has_worked(shown: ShardShown) -> bool:
    return shown.progress.run.batches > 0 and shown.progress.other is None


def _lane(refresh: Refresh, shown: ShardShown, total: float, now: datetime) -> Lane:
    """Its batches are drawn as one block at the start: when each ran is not recorded."""
    run = shown.progress.run
    start = run.started_at or now
    begun = max(0.0, (start - refresh.requested_at).total_seconds())
    took = ((run.finished_at or now) - start).total_seconds()
    spans = [Span("waiting", begun, took), Span("working", begun, min(run.seconds, took))]
    return Lane(shown=shown, bar=bar(spans, total))


def _merged(refresh: Refresh) -> defaultdict[int | None, list[int]]:
    """The refreshes that were merged into each run of this one, by run."""
    runs = PhaseRun.objects.filter(merged_into__refresh=refresh).order_by("refresh")
    found = defaultdict(list)
    for run, other in runs.values_list("merged_into", "refresh"):
        found[run].append(other)
    return found


def _others(keys: Sequence[int]) -> Others:
    return Others(named=keys[:MAX_NAMED], more=len(keys[MAX_NAMED:]))


def _pace(refresh: Refresh, run: PhaseRun) -> SafeString | str:
    return pace_picture(run, target=_target(refresh, run)) if len(run.samples) > 1 else ""


def _target(refresh: Refresh, run: PhaseRun) -> float | None:
    """The current target of a batch in seconds; None if its size does not adapt."""
    if refresh.pinned_size or not any(sample[1] for sample in run.samples):
        return None
    return refresh.view.seconds_per_batch
