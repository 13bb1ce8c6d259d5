"""The last refreshes of a view on its page: their strategy, their time, and what they wrote."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from .. import engine
from ..models import PhaseRun, Refresh
from ..phases import Phase
from ..presentation import format_duration, localized
from ..states import RefreshState, RefreshStrategy, RunState
from .badges import badge
from .phrases import count_rows, number, requesters
from .timeline import Timing, bar, timing

__all__ = ["history_context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshShown:
    """A refresh in the list."""

    refresh: Refresh
    #: Where its time went.
    timing: Timing
    #: The same as a picture, on the scale of the longest in the list.
    bar: SafeString
    #: What each phase did, one sentence each.
    phases: Sequence[str]

    @property
    def badge(self) -> SafeString:
        """Its state."""
        return badge(self.refresh.state)

    @property
    def requesters(self) -> str:
        """What and who requested it."""
        return requesters(self.refresh)


def history_context(refreshes: Iterable[Refresh]) -> dict[str, Any]:
    """The refreshes, and the longest time of one, as text."""
    refreshes, now = list(refreshes), engine.now()
    runs = _runs(refreshes)
    spent = [timing(refresh, runs[refresh.pk], now) for refresh in refreshes]
    longest = max((each.total for each in spent), default=0.0)
    return {
        "longest": localized(format_duration(longest)),
        "refreshes": [
            RefreshShown(
                refresh=refresh,
                timing=each,
                bar=bar(each.spans, longest),
                phases=_phases(refresh, runs[refresh.pk]),
            )
            for refresh, each in zip(refreshes, spent, strict=True)
        ],
    }


def _runs(refreshes: Sequence[Refresh]) -> dict[int, list[PhaseRun]]:
    """The runs that did the work of each refresh."""
    runs = PhaseRun.objects.filter(refresh__in=[refresh.pk for refresh in refreshes])
    unused = ("samples", "pace", "traceback", "error", "inserted_ranges", "cursor")
    found = defaultdict(list)
    for run in runs.defer(*unused).order_by("pk"):
        found[run.refresh_id].append(run)
    return found


def _phases(refresh: Refresh, runs: Sequence[PhaseRun]) -> list[str]:
    """What each phase did; one sentence for a refresh that did nothing itself."""
    if refresh.merged_into_id:
        return [_("merged into refresh %(refresh)s") % {"refresh": refresh.merged_into_id}]
    if not runs and refresh.state == RefreshState.SUCCEEDED:
        return [_("nothing had changed")]
    by_phase: dict[str, list[PhaseRun]] = defaultdict(list)
    for run in runs:
        by_phase[run.phase].append(run)
    return [f"{phase}: {_did(by_phase[phase])}" for phase in Phase if by_phase[phase]]


def _did(shards: Sequence[PhaseRun]) -> str:
    """What one phase did, all its shards together."""
    if any(run.merged_into_id for run in shards):
        return _("done by another refresh")
    strategies = {run.strategy for run in shards if run.strategy}
    words = [str(RefreshStrategy(each).label) for each in sorted(strategies)]
    worst = RunState.worst(run.state for run in shards)
    if worst in (RunState.FAILED, RunState.NOT_CONVERGING, RunState.STOPPED, RunState.PENDING):
        words.append(str(worst.label))
    words.append(count_rows(sum(run.rows for run in shards)))
    if parked := sum(run.parked for run in shards):
        words.append(_("%(count)s parked") % {"count": number(parked)})
    return ", ".join(words)
