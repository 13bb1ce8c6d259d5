"""How far refreshes are: in numbers, and phase by phase, whichever process works on them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from django.db.models import QuerySet

from ... import changes
from ...databases import clock
from ...models import PhaseRun, Refresh, ViewShard
from ...phases import Phase
from ...states import RefreshState, RunState
from ..batches.claim import worker_name
from ..transactions import alias

__all__ = ["Claim", "Progress", "RunProgress", "progress_of"]

MIN_TO_MOVE = 10_000  # entries of the log; fewer are moved within a second
ACTIVE = [state for state in RunState if state.active]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far one or more phase runs are."""

    #: What is counted: "row", or "key" for phases derived from `source()`, which check many keys
    #: and write few rows.
    unit: str
    #: Rows written or keys checked.
    done: int
    #: How many there will be in the end; None without an estimate, or if it was too low.
    total: int | None
    #: Rows written.
    rows: int
    #: Batches committed.
    batches: int
    #: Rows written or keys checked per second of work, by the runs that are still active or, if
    #: none is, by all; 0.0 before the first batch.
    rate: float

    @classmethod
    def of(cls, runs: Iterable[PhaseRun]) -> "Progress":
        """The progress of some runs together, each the one that does the work."""
        runs = list(runs)
        totals = [_total(run) for run in runs]
        known = [total for total in totals if total is not None]
        working = [run for run in runs if run.active] or runs
        return cls(
            unit="key" if any(run.fingerprint for run in runs) else "row",
            done=sum(run.done for run in runs),
            total=sum(known) if len(known) == len(totals) else None,
            rows=sum(run.rows for run in runs),
            batches=sum(run.batches for run in runs),
            rate=sum(run.done / run.seconds for run in working if run.seconds),
        )

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None if that is unknown."""
        return self.done / self.total if self.total else None


def _total(run: PhaseRun) -> int | None:
    if not run.active:
        return run.done
    return None if run.estimate is None or run.estimate < run.done else run.estimate


class Claim(NamedTuple):
    """Which worker runs a batch in a shard, as `host:pid`, and since when."""

    worker: str
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """How far one phase of a refresh is in one shard, and what it waits for."""

    phase: Phase
    #: The number of the shard; None if the view has only one.
    shard: int | None = None
    #: The run that does the work: the refresh's own, the one that it was merged into, or one of an
    #: older refresh that must end before the refresh's own begins.
    run: PhaseRun
    #: The primary key of the refresh that `run` belongs to; None if it is the refresh's own.
    other: int | None = None
    #: Whether the refresh's own work begins only after `run`.
    ahead: bool = False
    #: Whether `run` is running or next.
    current: bool = False
    #: The process that has claimed a batch of the shard; set for one phase only.
    claim: Claim | None = None
    #: Whether no process runs a batch of it, for one that only waits for others.
    unclaimed: bool = False
    #: Whether this process could not record how its last batch ended.
    lost: bool = False
    #: Entries of the change log that are moved before `run` begins, if that takes a while.
    to_move: int = 0


def progress_of(refresh: Refresh) -> list[RunProgress]:
    """How far each phase of a refresh is in each shard, ordered by phase and shard."""
    runs = {(run.shard_id, run.phase): run for run in refresh.runs.select_related("merged_into")}
    if refresh.merged_into and not runs:
        return [
            replace(each, other=each.other or refresh.merged_into_id)
            for each in progress_of(refresh.merged_into)
        ]
    older = {(run.shard_id, run.phase): run for run in _older_leaders(refresh)}
    shards = list(ViewShard.objects.filter(view=refresh.view_id).order_by("number"))
    found: list[RunProgress] = []
    for shard in shards:
        number = shard.number if len(shards) > 1 else None
        here = [
            _of_run(phase, number, runs.get((shard.pk, phase)), older.get((shard.pk, phase)))
            for phase in map(Phase, refresh.phases)
        ]
        found += _with_turn(here, shard)
    return sorted(found, key=lambda each: (each.phase.order, each.shard or 0))


def _older_leaders(refresh: Refresh) -> QuerySet[PhaseRun]:
    """The runs of older refreshes that do work of their own, the oldest last."""
    runs = PhaseRun.objects.filter(refresh__view=refresh.view_id, refresh__lt=refresh.pk)
    open_runs = runs.filter(refresh__state=RefreshState.OPEN, state__in=ACTIVE)
    return open_runs.filter(merged_into=None).order_by("-pk")


def _of_run(
    phase: Phase, shard: int | None, run: PhaseRun | None, older: PhaseRun | None
) -> RunProgress:
    if run and run.merged_into:
        leader, ahead = run.merged_into, False
    elif older and (run is None or run.active):
        leader, ahead = older, True
    else:
        return RunProgress(phase=phase, shard=shard, run=run or PhaseRun(phase=phase))
    return RunProgress(phase=phase, shard=shard, run=leader, other=leader.refresh_id, ahead=ahead)


def _with_turn(phases: list[RunProgress], shard: ViewShard) -> Iterator[RunProgress]:
    """Mark the phase whose turn it is, and the worker that it waits for."""
    turn = next((each for each in phases if each.run.active), None)
    mine = shard.worker == worker_name()
    claimed_at = (
        clock.stored(shard.claimed_at, alias()) if shard.is_claimed and shard.claimed_at else None
    )
    for each in phases:
        if each is turn:
            yield replace(
                each,
                current=True,
                claim=Claim(shard.worker, claimed_at) if claimed_at and not mine else None,
                lost=bool(claimed_at) and mine,
                to_move=_to_move(each.run, shard),
            )
        else:
            yield each


def _to_move(run: PhaseRun, shard: ViewShard) -> int:
    if run.batches or run.started_at:
        return 0
    logged = changes.count_logged(shard.view_id)
    return logged if logged >= MIN_TO_MOVE else 0
