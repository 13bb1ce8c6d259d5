"""What each phase of a view did in its last runs, for the cards of the view page."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from django.utils.safestring import SafeString

from ..models import PhaseRun, ViewControl
from ..phases import Phase
from ..states import RunState
from .pictures import MOST_BARS, durations_picture, rows_picture
from .tones import tone
from .words import length, moment, written

__all__ = ["PhaseSummary", "summaries"]

WORST_FIRST = (
    RunState.FAILED, RunState.NOT_CONVERGING, RunState.STOPPED, RunState.RUNNING, RunState.PENDING,
    RunState.SUCCEEDED,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSummary:
    """One phase of a view, as its page shows it.

    Attributes:
        phase: the phase.
        last_success: when it last succeeded, in words.
        last_runs: its runs in the last refresh in which it had work of its own, one per stripe.
        durations, rows_written: pictures of these and the runs before.
    """

    phase: Phase
    last_success: SafeString
    last_runs: tuple[PhaseRun, ...]
    durations: SafeString
    rows_written: SafeString

    @property
    def state(self) -> RunState | None:
        """The worst state of the last runs; None if there was none."""
        states = {RunState(run.state) for run in self.last_runs}
        return next((state for state in WORST_FIRST if state in states), None)

    @property
    def tone(self) -> str:
        """The look of the state's badge."""
        return tone(self.state) if self.state else ""

    @property
    def refresh_id(self) -> int | None:
        """The refresh that the last runs belong to."""
        return self.last_runs[0].refresh_id if self.last_runs else None

    @property
    def ended(self) -> SafeString:
        """When the last of them ended."""
        return moment(self._end, missing="under way")

    @property
    def took(self) -> str:
        """From the start of the first to the end of the last."""
        started = [run.started_at for run in self.last_runs if run.started_at]
        return length(self._end - min(started)) if self._end and started else "-"

    @property
    def wrote(self) -> str:
        """Rows, batches and rows per second, of all stripes together."""
        return written(self.last_runs)

    @property
    def failed(self) -> list[PhaseRun]:
        """Those that have an error to show."""
        return [run for run in self.last_runs if run.error]

    @property
    def _end(self) -> datetime | None:
        ends = [run.finished_at for run in self.last_runs if run.finished_at]
        return max(ends) if len(ends) == len(self.last_runs) else None


def summaries(control: ViewControl, phases: tuple[Phase, ...]) -> list[PhaseSummary]:
    """A summary of each phase, in as many statements as there are phases."""
    stripes = max(1, control.stripe_count)
    return [_summary(control, phase, stripes) for phase in phases]


def _summary(control: ViewControl, phase: Phase, stripes: int) -> PhaseSummary:
    runs = PhaseRun.objects.filter(stripe__view=control, phase=phase, merged_into=None)
    newest = runs.select_related("stripe").defer("samples").order_by("-pk")[: MOST_BARS * stripes]
    found = sorted(newest, key=lambda run: (run.refresh_id, run.stripe.number))
    by_refresh = [tuple(group) for _pk, group in groupby(found, lambda run: run.refresh_id)]
    return PhaseSummary(
        phase=phase,
        last_success=moment(getattr(control, phase.success_field)),
        last_runs=by_refresh[-1] if by_refresh else (),
        durations=durations_picture(found),
        rows_written=rows_picture(found),
    )
