"""How much of their work phase runs have done: the one notion of progress."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..models import PhaseRun
from ..words import counted

__all__ = ["Extent", "extent_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """How far one or more phase runs are.

    Attributes:
        unit: what is counted: "row", or "key" where phases are derived from `source()`, which
            mostly look and seldom write.
        done: rows written or keys checked.
        total: how many of them there will be in the end; None if nobody has estimated that, or the
            estimate was too low.
        rows: rows written.
        rate: of what is counted, per second of work; 0.0 before the first.
    """

    unit: str
    done: int
    total: int | None
    rows: int
    rate: float

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None if that is unknown."""
        return self.done / self.total if self.total else None

    @property
    def words(self) -> str:
        """How far the work is, for a person."""
        written = f", {counted(self.rows, 'row')} written" if self.unit == "key" else ""
        if self.total:
            return f"{self.done:,} of about {self.total:,} {self.unit}s{written}"
        checked = " checked" if self.unit == "key" else ""
        return f"{counted(self.done, self.unit)}{checked}{written}"


def extent_of(runs: Iterable[PhaseRun]) -> Extent:
    """How far some runs are together, each the one that does the work."""
    runs = list(runs)
    totals = [_total(run) for run in runs]
    known = [total for total in totals if total is not None]
    return Extent(
        unit="key" if any(run.fingerprint for run in runs) else "row",
        done=sum(run.done for run in runs),
        total=sum(known) if len(known) == len(totals) else None,
        rows=sum(run.rows for run in runs),
        rate=sum(run.done / run.seconds for run in runs if run.active and run.seconds),
    )


def _total(run: PhaseRun) -> int | None:
    if not run.active:
        return run.done
    return None if run.estimate is None or run.estimate < run.done else run.estimate
