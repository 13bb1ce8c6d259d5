"""Totals of the work of each view, which never fall, though the history is trimmed and folded.

Batches write what they did to their phase run. The transaction that ends a refresh adds its runs to
columns of the control, in a statement that it needs anyway. One statement reads the columns and the
runs of open refreshes, so it finds each batch in one of the two.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db.models import FilteredRelation, Q

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
    """The totals of every view that has a control, in one statement, by label.

    What has not changed since this process last read it is the same object.
    """
    still_open = FilteredRelation("refreshes", condition=Q(refreshes__state=RefreshState.OPEN))
    runs = [f"still_open__runs__{name}" for name in ("phase", *OF_RUN)]
    controls = ViewControl.objects.annotate(still_open=still_open).order_by("label")
    found, working = dict[str, ViewTotals](), set[str]()
    for label, *values in controls.values_list("label", *_COLUMNS, *runs):
        totals, (phase, *run) = values[: len(_COLUMNS)], values[len(_COLUMNS) :]
        if phase is None:
            found.setdefault(label, _known_totals(label, totals))
            continue
        if label not in working:  # one that is known must stay as it is
            working.add(label)
            found[label] = _of_columns(label, totals)
        of_phases = found[label].phases
        of_phases[Phase(phase)] = of_phases[Phase(phase)].plus(PhaseTotals(*run))
    return list(found.values())


#: By label, the columns as they were read last, and what they mean.
_KNOWN: dict[str, tuple[list[Any], ViewTotals]] = {}


def _known_totals(label: str, totals: list[Any]) -> ViewTotals:
    known = _KNOWN.get(label)
    if known is None or known[0] != totals:
        known = _KNOWN[label] = totals, _of_columns(label, totals)
    return known[1]


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
