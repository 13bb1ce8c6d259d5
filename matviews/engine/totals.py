"""Totals of the work of each view, which never fall, though the history is trimmed and folded.

Batches write what they did to their phase run. The transaction that ends a refresh adds its runs to
columns of the control, in a statement that it needs anyway. One statement reads the columns, or
only their sum, together with the runs of open refreshes, so it counts each batch exactly once.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from django.db.models import ExpressionWrapper, F, FilteredRelation, FloatField, Q, QuerySet

from ..models import PhaseRun, ViewControl
from ..phases import Phase
from ..states import RefreshState

__all__ = ["PhaseTotals", "ViewTotals", "ended", "view_totals"]


class PhaseTotals(NamedTuple):
    """What the batches of a phase did, all of them together."""

    #: Batches that committed.
    batches: int = 0
    #: Rows that they wrote.
    rows: int = 0
    #: Seconds that they took.
    seconds: float = 0.0
    #: Batches that were rolled back or killed their worker.
    failures: int = 0

    def plus(self, more: "PhaseTotals") -> "PhaseTotals":
        """Both together."""
        return PhaseTotals(
            self.batches + more.batches,
            self.rows + more.rows,
            self.seconds + more.seconds,
            self.failures + more.failures,
        )


#: The columns of a phase run, in the order of `PhaseTotals`.
OF_RUN = ("batches", "rows", "seconds", "failed_batches")
#: How refreshes end that are counted.
OUTCOMES = (RefreshState.SUCCEEDED, RefreshState.FAILED, RefreshState.STOPPED)


class ViewTotals(NamedTuple):
    """What was done for a view since its control exists."""

    label: str
    phases: dict[Phase, PhaseTotals]
    #: How many refreshes ended in each way, without those that were merged before they began.
    refreshes: dict[RefreshState, int]


def ended(state: str, runs: Iterable[PhaseRun] = ()) -> dict[str, float]:
    """What a refresh that ends adds to the columns of its view's control, by their names."""
    sums = Counter[str]()
    for run in runs:
        for name, column in zip(PhaseTotals._fields, OF_RUN, strict=True):
            sums[f"{run.phase}_{name}"] += getattr(run, column)
    sums[f"refreshes_{state}"] += 1
    return {name: more for name, more in sums.items() if more}


def view_totals() -> list[ViewTotals]:
    """The totals of every view that has a control, by label.

    It takes one statement, and one more for the columns of those that have grown since this process
    last read them. What has not changed is the same object.
    """
    found, grown = dict[str, ViewTotals](), list[str]()
    for label, mark, *run in _rows("label", "mark"):
        known = _KNOWN.get(label)
        if known and known.mark == mark:
            _add(found, known.totals, run)
        else:
            grown.append(label)
    if grown:
        for label, mark, *values in _rows("label", "mark", *_COLUMNS).filter(label__in=grown):
            columns, run = values[: len(_COLUMNS)], values[len(_COLUMNS) :]
            known = _KNOWN.get(label)
            if known is None or known.mark != mark:
                known = _KNOWN[label] = _Known(mark, _of_columns(label, columns))
            _add(found, known.totals, run)
    return [found[label] for label in sorted(found)]


def _rows(*columns: str) -> QuerySet[Any, Any]:
    """Columns of each control, and what each run of its open refreshes did, if there is any."""
    still_open = FilteredRelation("refreshes", condition=Q(refreshes__state=RefreshState.OPEN))
    # No column ever falls, so if their sum has not changed, none of them has.
    mark = ExpressionWrapper(reduce(add, map(F, _COLUMNS)), FloatField())
    runs = [f"still_open__runs__{name}" for name in ("phase", *OF_RUN)]
    controls = ViewControl.objects.annotate(still_open=still_open, mark=mark)
    return controls.order_by().values_list(*columns, *runs)


def _add(found: dict[str, ViewTotals], totals: ViewTotals, run: Sequence[Any]) -> None:
    """Add what a run did to the totals of its view; those that are known stay as they are."""
    phase, *values = run
    mine = found.get(totals.label, totals)
    if phase is not None:
        if mine is totals:
            mine = totals._replace(phases=dict(totals.phases))
        mine.phases[Phase(phase)] = mine.phases[Phase(phase)].plus(PhaseTotals(*values))
    found[totals.label] = mine


class _Known(NamedTuple):
    """The totals in a view's columns as they were read last, and the sum of these columns."""

    mark: float
    totals: ViewTotals


#: By label.
_KNOWN: dict[str, _Known] = {}


_COLUMNS = [
    *(f"{phase}_{name}" for phase in Phase for name in PhaseTotals._fields),
    *(f"refreshes_{state}" for state in OUTCOMES),
]


def _of_columns(label: str, totals: list[Any]) -> ViewTotals:
    size = len(PhaseTotals._fields)
    phases = {
        phase: PhaseTotals(*totals[number * size : (number + 1) * size])
        for number, phase in enumerate(Phase)
    }
    return ViewTotals(label, phases, dict(zip(OUTCOMES, totals[-len(OUTCOMES) :], strict=True)))
