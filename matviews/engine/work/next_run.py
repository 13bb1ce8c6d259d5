"""Which phase run of a shard is next.

Refreshes take turns batch by batch. Within a refresh, a phase waits until the one before it has
caught up with its source. Of the runs of one phase the oldest goes first.

A run that has not begun waits while another refresh has a staging table: that refresh would
overwrite the run's rows with older ones, or delete them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ...models import PhaseRun
from ...phases import Phase

__all__ = ["next_run"]


def next_run(runs: Sequence[PhaseRun], phase: Phase | None = None) -> PhaseRun | None:
    """The run whose turn it is, of `phase` if a run of that phase is ready.

    Args:
        runs: those of the open refreshes, oldest first.
        phase: the phase to prefer.
    """
    active: dict[int, list[PhaseRun]] = defaultdict(list)
    for run in runs:
        if run.active:
            active[run.refresh_id].append(run)
    staged = {run.refresh_id for run in runs if run.stage} & active.keys()
    leaders = [
        _Leader(run, [each for each in runs if each.active and each.merged_into is run], active)
        for run in runs
        if run.active and run.merged_into is None
    ]
    free = [leader for leader in leaders if not staged or leader.may_go_beside(staged)]
    oldest = [next((each for each in free if each.run.phase == one), None) for one in Phase]
    ready = [leader.run for leader in oldest if leader and leader.is_ready]
    preferred = [run for run in ready if run.phase == phase]
    return min(preferred or ready, key=_turn, default=None)


class _Leader:
    """A run that is not merged into another.

    Args:
        run: the run.
        followers: the active runs that end when it does.
        active: the active runs by refresh.
    """

    def __init__(
        self, run: PhaseRun, followers: list[PhaseRun], active: Mapping[int, list[PhaseRun]]
    ) -> None:
        self.run = run
        self._served, self._active = [run, *followers], active

    @property
    def is_ready(self) -> bool:
        """Whether all earlier phases of a refresh that it serves have ended or caught up."""
        return any(_comes_next(each, self._active) for each in self._served)

    def may_go_beside(self, staged: set[int]) -> bool:
        """Whether it serves a refresh that has a staging table, or has already begun."""
        serves = any(each.refresh_id in staged for each in self._served)
        return serves or (self.run.batches > 0 and self.is_ready)


def _comes_next(run: PhaseRun, active: Mapping[int, list[PhaseRun]]) -> bool:
    """Whether all earlier phases of the run's refresh have ended or caught up."""
    order = Phase(run.phase).order
    return not any(
        Phase(other.phase).order < order and not (other.merged_into or other).caught_up
        for other in active[run.refresh_id]
    )


def _turn(run: PhaseRun) -> tuple[Any, ...]:
    """The sort key of a run: the run that has waited longest comes first."""
    return run.last_batch_at or run.refresh.requested_at, Phase(run.phase).order, run.refresh_id
