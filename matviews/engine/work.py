"""The pending work of one shard: its open refreshes, their phase runs, and which run is next."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from django.db import connections

from ..contract import Shard
from ..databases.keys import Key
from ..definition import HookKind, ViewDefinition
from ..json_fields import Checkpoint
from ..models import PhaseRun, Refresh, ViewShard
from ..phases import Phase
from ..queryset import Plan, Walker, plan_of
from ..states import RunState
from .messages import Message
from .transactions import alias, now

__all__ = ["MAX_REFRESHES_BEGUN", "Dirty", "Work"]

# Open refreshes for the same phases that may have begun. Later ones wait, so that they can be merged.
MAX_REFRESHES_BEGUN = 4


@dataclass(kw_only=True, eq=False)
class Dirty:
    """A part of the keys that were dirty at one time, as in `DirtyKeys`.

    Attributes:
        drain_number, count: as there.
        keys: the keys, where they are at hand.
        pk: the primary key there, once they are saved.
    """

    drain_number: int
    count: int
    keys: list[Key] | None = None
    pk: int | None = None


@dataclass(kw_only=True)
class Work:
    """The open refreshes of a shard and their phase runs, oldest first.

    Attributes:
        shard: the shard, with its view's control.
        hook_shard: what its hooks are given.
        definition: the view in the code, None when it is no longer there.
        refreshes: the open refreshes of the view, at most `MAX_REFRESHES_READ`.
        truncated: whether there may be more than were read.
        works_for_others: primary keys of those into which others were merged before they began.
        claims: how often batches of the view have been claimed.
        runs: their phase runs in this shard; those not yet saved have no primary key.
        touched: the runs that this batch has changed.
        logged: the primary key of the newest entry in the log of the triggers; 0 if there is none, or
            what counts of it has been moved.
        checkpoint: what a pass that begins in this batch covers, and why it covers nothing, once its queue
            was taken.
        dirty: the dirty keys of the shard, once they are known; those not yet saved have no primary key.
        shard_changed: whether what the shard says of changes is to be saved.
    """

    shard: ViewShard
    hook_shard: Shard
    definition: ViewDefinition | None
    refreshes: list[Refresh]
    truncated: bool = False
    works_for_others: frozenset[int] = frozenset()
    claims: int = 0
    runs: list[PhaseRun] = field(default_factory=list)
    touched: list[PhaseRun] = field(default_factory=list)
    logged: int = 0
    checkpoint: tuple[Checkpoint | None, str] | None = None
    dirty: list[Dirty] | None = None
    shard_changed: bool = False

    @cached_property
    def plan(self) -> Plan:
        """How the view is derived from its `source()`, as that is now.

        Raises:
            InvalidView: it cannot be derived from.
        """
        assert self.definition is not None
        return plan_of(self.definition, alias())

    @cached_property
    def walker(self) -> Walker:
        """What does batches of dirty keys."""
        return self.plan.walker_of_keys()

    def create_runs(self, known: Collection[int] | None = None) -> None:
        """Make the phase runs of refreshes that this shard has not seen yet, unsaved.

        Of those in `known` only, if that is given.

        A run is merged into an active run of its phase where that one has not computed anything
        yet, or asks `needs_*` again before it ends: either covers all that the request could see.
        """
        seen = {run.refresh_id for run in self.runs}
        waiting = self._beyond_the_most_begun()
        covering = {
            phase: next((run for run in self.leaders(phase) if self._covers(run)), None)
            for phase in Phase
        }
        for refresh in self.refreshes:
            if refresh.pk in seen or (known is not None and refresh.pk not in known):
                continue
            if refresh.pk not in waiting or refresh.stop_requested:
                for phase in map(Phase, refresh.phases):
                    run = PhaseRun(refresh=refresh, shard=self.shard, phase=phase)
                    run.merged_into = covering[phase]
                    covering[phase] = covering[phase] or run
                    self.runs.append(run)

    def _beyond_the_most_begun(self) -> set[int]:
        """The refreshes that wait until one of those before them has ended, whatever shard that is in."""
        beyond: set[int] = set()
        before = Counter[tuple[str, ...]]()
        for refresh in self.refreshes:
            phases = tuple(refresh.phases)
            if before[phases] >= MAX_REFRESHES_BEGUN:
                beyond.add(refresh.pk)
            before[phases] += 1
        return beyond

    def may_begin(self, refresh: Refresh) -> bool:
        """Whether the batch that is claimed may begin a refresh.

        Not if that was requested after the claim: until the next one, requests join it, and nobody may have
        read the source for it meanwhile.
        """
        return refresh.claims_seen != self.claims

    def mergeable(self) -> list[list[int]]:
        """Primary keys of the refreshes that ask for the same, and have not begun in this shard.

        Nothing to do where all of them work for others already: those are not merged any more.
        """
        begun = {run.refresh_id for run in self.runs}
        alike: dict[Any, list[int]] = defaultdict(list)
        for refresh in self.refreshes:
            if refresh.pk not in begun and not refresh.stop_requested:
                alike[*refresh.phases, refresh.batch_size].append(refresh.pk)
        return [
            keys
            for keys in alike.values()
            if len(keys) > 1 and not self.works_for_others.issuperset(keys)
        ]

    def _covers(self, run: PhaseRun) -> bool:
        if run.batches == 0:
            return not self._builds_on_others(run)
        if run.cursor is not None:  # also when an older version of the code sees it
            return False
        hooks = self.definition.hooks.get(Phase(run.phase)) if self.definition else None
        return hooks is not None and hooks.kind is HookKind.LIMIT

    def _builds_on_others(self, run: PhaseRun) -> bool:
        """Whether it will leave out what other runs of its refresh have read of the source.

        That may be older than the request that is to be covered.
        """
        derived = self.definition is not None and run.phase in self.definition.derived
        return derived and any(
            (other.merged_into or other).batches
            for other in self.runs
            if other.refresh_id == run.refresh_id
        )

    def leaders(self, phase: Phase | None = None) -> Iterator[PhaseRun]:
        """The active runs that do the work themselves."""
        for run in self.runs:
            if run.active and run.merged_into is None and phase in (None, run.phase):
                yield run

    def followers(self, leader: PhaseRun) -> Iterator[PhaseRun]:
        """The active runs that end when `leader` does."""
        return (run for run in self.runs if run.active and run.merged_into is leader)

    def next_run(self, phase: Phase | None = None) -> PhaseRun | None:
        """The run whose turn it is, of `phase` if one of that is ready.

        Within a refresh a phase waits for the one before it, until that has caught up with its
        source; refreshes take turns batch by batch. Of the runs of one phase the oldest goes first.
        """
        oldest = [next(self.leaders(each), None) for each in Phase]
        by_refresh = self._active_by_refresh()
        ready = [
            run
            for run in oldest
            if run and any(_comes_next(each, by_refresh) for each in (run, *self.followers(run)))
        ]
        mine = [run for run in ready if run.phase == phase]
        return min(mine or ready, key=_turn, default=None)

    def _active_by_refresh(self) -> dict[int, list[PhaseRun]]:
        active: dict[int, list[PhaseRun]] = defaultdict(list)
        for run in self.runs:
            if run.active:
                active[run.refresh_id].append(run)
        return active

    def end(self, run: PhaseRun, state: RunState, *, error: str = "", trace: str = "") -> None:
        """Give a run, and those merged into it, their last state."""
        moment = now()
        for ended in (*self.followers(run), run):
            ended.move_to(state)
            ended.error, ended.traceback, ended.finished_at = error, trace, moment
            ended.started_at = run.started_at or moment
        self.touch(run)

    @property
    def to_stop(self) -> bool:
        """Whether a person wants a refresh stopped that has work here, or has not come here yet."""
        ended = self.ended_refreshes()
        return any(each.stop_requested and each not in ended for each in self.refreshes)

    def stop(self) -> bool:
        """End the runs of the refreshes that are to be stopped; whether there were any.

        To be called after `create_runs`. Others that were merged into one of these have a right to the
        whole of it: the oldest goes on as a run of its own, from the start, and the rest are merged
        into that if it covers them.
        """
        stopped = [run for run in self.runs if run.active and run.refresh.stop_requested]
        for run in stopped:
            run.merged_into = None
        for run in stopped:
            self._hand_over(run)
            self.end(run, RunState.STOPPED)
        return bool(stopped)

    def _hand_over(self, run: PhaseRun) -> None:
        followers = list(self.followers(run))
        for each in followers:
            each.merged_into = None
        for each in followers:
            if each is not followers[0] and self._covers(followers[0]):
                each.merged_into = followers[0]
            self.touch(each)

    def touch(self, run: PhaseRun) -> None:
        """Note that a run has changed, for `save`."""
        if not any(other is run for other in self.touched):
            self.touched.append(run)

    def save(self) -> None:
        """Write the runs that are new, and those that a batch has changed."""
        new = [run for run in self.runs if run.pk is None]
        changed = [run for run in self.touched if run.pk is not None]
        _insert([run for run in new if run.merged_into is None])
        _insert([run for run in new if run.merged_into is not None])
        for run in changed:
            run.save(force_update=True)
            if not run.active and (
                self.truncated or any(other.merged_into is run for other in self.runs)
            ):
                _end_followers(run)

    def next_message(self) -> Message | None:
        """The message for the batch whose turn it is; None when nothing is due, or paused."""
        run = None if self.shard.view.held else self.next_run()
        if run is None:
            return None
        return Message(Phase(run.phase), self.shard.pk, self.shard.token)

    def ended_refreshes(self) -> list[Refresh]:
        """The open refreshes with nothing left to do in this shard."""
        active = {run.refresh_id for run in self.runs if run.active}
        ended = {run.refresh_id for run in self.runs if run.pk is not None} - active
        return [refresh for refresh in self.refreshes if refresh.pk in ended]


def _comes_next(run: PhaseRun, active: Mapping[int, list[PhaseRun]]) -> bool:
    """Whether no earlier phase of the run's refresh is still in its way."""
    order = Phase(run.phase).order
    return not any(
        Phase(other.phase).order < order and not (other.merged_into or other).caught_up
        for other in active[run.refresh_id]
    )


def _insert(runs: list[PhaseRun]) -> None:
    """Insert rows so that their primary keys are known, which MySQL does only one by one."""
    if connections[alias()].features.can_return_rows_from_bulk_insert:
        PhaseRun.objects.bulk_create(runs)
        return
    for run in runs:
        run.save(force_insert=True)


def _end_followers(leader: PhaseRun) -> None:
    names = ("state", "error", "traceback", "started_at", "finished_at")
    followers = PhaseRun.objects.filter(merged_into=leader).exclude(state=leader.state)
    followers.update(**{name: getattr(leader, name) for name in names})


def _turn(run: PhaseRun) -> tuple[Any, ...]:
    """The one that has waited longest comes first."""
    return run.ran_at or run.refresh.requested_at, Phase(run.phase).order, run.refresh_id
