"""The time before which every committed change is in the rows of a phase."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from ...models import PhaseRun
from ...phases import Phase
from ...states import RunState
from ..work.shard_work import Work

__all__ = ["begin", "times_of"]


def begin(work: Work, run: PhaseRun) -> None:
    """Record as of when the rows of a run that begins in this batch will be.

    A run may build on what other runs of its refresh have read, and a staging table in use may
    bring its older rows back.
    """
    if run.as_of is None:
        others = [
            other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
        ]
        staged = [other.as_of for other in work.runs if other.stage and other is not run]
        read = [other.as_of for other in others if other.as_of]
        run.as_of = _earliest([work.loaded_at, *staged, *read])


def times_of(runs: Sequence[PhaseRun]) -> dict[str, datetime]:
    """The times as of which the rows of phases are that succeeded in every shard, by control field.

    Phases for which that is unknown are left out.
    """
    times: dict[str, datetime] = {}
    for phase in Phase:
        own = [run for run in runs if run.phase == phase]
        as_of = _earliest((run.merged_into or run).as_of for run in own)
        if as_of and all(run.state == RunState.SUCCEEDED for run in own):
            times[phase.as_of_field] = as_of
    return times


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    """The earliest of some times; None if one of them is unknown."""
    found = list(times)
    known = [time for time in found if time]
    return min(known, default=None) if len(known) == len(found) else None
