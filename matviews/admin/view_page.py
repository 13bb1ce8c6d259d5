"""What a view's page shows above its form."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from django.db.models import F, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils.safestring import SafeString

from .. import engine
from ..engine import Progress
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..states import RefreshState, RunState, ViewState
from ..tasks import schedules
from ..tasks.followed_views import remarks_on
from .badges import badge
from .history_section import history_context
from .live import oldest_open, phase_states, refresh_progress
from .parked_section import parked_context
from .phrases import duration, requesters, work_done
from .pictures import MAX_BARS, durations_picture, rows_picture
from .presentation import next_lines, pausing_text, row_count, state_text, time_ago, upstream_text
from .situation import situation_context
from .source_section import source_context
from .verification_section import verification_context

__all__ = ["page_context"]

MAX_LISTED = 20  # of the refreshes of a view


def page_context(control: ViewControl) -> dict[str, Any]:
    """The state of a view and what it did, for its template."""
    # Read first: if a refresh ends in the meantime, the page polls once more and corrects itself.
    oldest = oldest_open(control)
    progress = engine.progress_of(oldest) if oldest else []
    live, states = refresh_progress(oldest, progress), phase_states(progress)
    (status,) = engine.view_statuses([control.label])
    phases, definition = control.options.phases, control.definition
    newest = Refresh.objects.filter(view=control).order_by("-pk")
    return {
        "status": status,
        "badge": badge(status.state, state_text(status)),
        "now": situation_context(status, oldest, progress),
        "planned": next_lines(schedules.timetable([control.label])),
        "pausing": pausing_text(status),
        "upstream": upstream_text(status),
        "verbose_name": definition.model._meta.verbose_name if definition else "",
        "rows": row_count(status.rows),
        "age": "" if status.age is None else duration(status.age),
        "change_lag": "" if status.change_lag is None else duration(status.change_lag),
        "target": duration(status.target) if status.target else "",
        "phases": phases,
        "may_request": control.enabled and definition is not None and not definition.errors,
        "summaries": [
            _summary(control, phase, phase in status.definition_changed, states.get(phase))
            for phase in phases
        ],
        "source": source_context(control, definition),
        "verification": verification_context(control, status),
        "may_verify": definition is not None and not definition.errors,
        "changed_badge": badge(ViewState.CHANGED),
        "live": {**live, "works": live["works"] or status.verifying is not None},
        "open_refreshes": [(refresh, requesters(refresh)) for refresh in _open_refreshes(newest)],
        "history": history_context(newest[:MAX_LISTED]),
        "parked": parked_context(control, definition),
        "remarks": list(remarks_on(control)),
        "maintenance_problem": schedules.maintenance_problem(),
    }


def _open_refreshes(newest: QuerySet[Refresh]) -> list[Any]:
    """The open refreshes, oldest first, each with the number of requests that it includes."""
    merged = Refresh.objects.filter(merged_into=OuterRef("pk")).order_by().values("merged_into")
    more = Coalesce(Subquery(merged.values(total=Sum("requests"))), 0)
    still_open = newest.filter(state=RefreshState.OPEN).annotate(includes=F("requests") + more)
    return list(still_open[:MAX_LISTED])[::-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSummary:
    """One phase of a view, as its page shows it."""

    phase: Phase
    #: How long ago the phase last succeeded.
    last_success: SafeString
    #: Whether its definition has changed since its rows were built.
    changed: bool
    #: Its state in the open refresh, None if that does not include it.
    state: RunState | None
    #: Its runs in the last refresh in which it did the work itself, one per shard.
    last_runs: tuple[PhaseRun, ...]
    #: A picture of how long these and earlier runs took.
    durations: SafeString
    #: A picture of how many rows they wrote.
    rows_written: SafeString

    @property
    def badge(self) -> SafeString | str:
        """Its state in the open refresh, or else the worst of the last runs; "" without any."""
        worst = self.state or RunState.worst(run.state for run in self.last_runs)
        return badge(worst) if worst else ""

    @property
    def refresh_id(self) -> int | None:
        """The refresh that the last runs belong to."""
        return self.last_runs[0].refresh_id if self.last_runs else None

    @property
    def ended(self) -> SafeString | None:
        """How long ago the last run ended; None while one is running."""
        return time_ago(self._end) if self._end else None

    @property
    def took(self) -> str:
        """The time from the start of the first run to the end of the last."""
        started = [run.started_at for run in self.last_runs if run.started_at]
        return duration(self._end - min(started)) if self._end and started else "-"

    @property
    def wrote(self) -> str:
        """Rows, batches and rate, all shards together."""
        return work_done(Progress.of(self.last_runs))

    @property
    def failed(self) -> list[PhaseRun]:
        """The runs that have an error."""
        return [run for run in self.last_runs if run.error]

    @property
    def _end(self) -> datetime | None:
        ends = [run.finished_at for run in self.last_runs if run.finished_at]
        return max(ends) if len(ends) == len(self.last_runs) else None


def _summary(
    control: ViewControl, phase: Phase, changed: bool, state: RunState | None
) -> PhaseSummary:
    shards = max(1, control.shard_count)
    runs = PhaseRun.objects.filter(shard__view=control, phase=phase, merged_into=None)
    newest = runs.select_related("shard").defer("samples").order_by("-pk")[: MAX_BARS * shards]
    found = sorted(newest, key=lambda run: (run.refresh_id, run.shard.number))
    by_refresh = [tuple(group) for _pk, group in groupby(found, lambda run: run.refresh_id)]
    return PhaseSummary(
        phase=phase,
        last_success=time_ago(getattr(control, phase.success_field)),
        changed=changed,
        state=state,
        last_runs=by_refresh[-1] if by_refresh else (),
        durations=durations_picture(found),
        rows_written=rows_picture(found),
    )
