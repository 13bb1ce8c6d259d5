"""The pending work of one shard: its open refreshes, their phase runs, and which run is next."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from ...contract import Shard
from ...databases.compiled import insert_rows
from ...definition import HookKind, ViewDefinition
from ...json_fields import Checkpoint
from ...models import ParkedKey, PhaseRun, Refresh, ViewShard
from ...phases import Phase
from ...queryset import BatchRunner, Plan, plan_of
from ...states import RunState
from ..messages import Message
from ..transactions import alias, now, utc_now
from . import next_run
from .batch_parts import AttemptedBatch, DirtyPart
from .long_runs import is_long

__all__ = ["MAX_REFRESHES_BEGUN", "Work"]

# Open refreshes for the same phases that may have begun. Later ones wait, to be merged.
MAX_REFRESHES_BEGUN = 4


@dataclass(kw_only=True)
class Work:
    """The open refreshes of a shard and their phase runs, oldest first.

    A run *covers* a request if it will process every change that was committed before the request.
    Later runs are merged into it and end with it.
    """

    #: The shard, with its view's control.
    shard: ViewShard
    #: The argument for hooks that declare `shard`.
    hook_shard: Shard
    #: The view in the code; None if the code no longer defines it.
    definition: ViewDefinition | None
    #: The open refreshes of the view, at most `MAX_REFRESHES_READ`.
    refreshes: list[Refresh]
    #: Whether there may be more open refreshes than were read.
    truncated: bool = False
    #: Primary keys of the refreshes into which others were merged before they began.
    merge_targets: frozenset[int] = frozenset()
    #: How often batches of the view have been claimed.
    claims: int = 0
    #: Whether other shards take turns in its queue and may go on, see `fair_queueing`.
    crowded: bool = False
    #: Whether there are open refreshes that wait for others, of whatever view.
    others_wait: bool = False
    #: Whether the view waits after a failure, or is suspended, and no open refresh is forced.
    waits: bool = False
    #: When a batch first loaded it, by the database's own clock.
    loaded_at: datetime | None = None
    #: The phase runs of the refreshes in this shard; those not yet inserted have no primary key.
    runs: list[PhaseRun] = field(default_factory=list)
    #: The runs that this batch has changed.
    touched: list[PhaseRun] = field(default_factory=list)
    #: Whether the change log has entries that this batch must include and that are to be moved, if
    #: it was looked at.
    logged: bool = False
    #: Whether the batch has had the view's keys split again, or tried to.
    was_cut: bool = False
    #: Whether they are split again, so that nobody has sent messages to the other shards.
    is_new: bool = False
    #: Whether all changes that the batch must include have been moved to the queues.
    moved: bool = False
    #: The checkpoint of runs that start in this batch, and why they must be full refreshes; None
    #: before the drain.
    checkpoint: tuple[Checkpoint | None, str] | None = None
    #: The dirty keys of the shard; None before they are read.
    dirty: list[DirtyPart] | None = None
    #: Whether the batch runs one phase only, because a batch of several has failed.
    one_run_only: bool = False
    #: The batch that is running, if it may fail in a way of its own.
    attempted: AttemptedBatch | None = None
    #: What a statement of this batch has already done for later phases, by refresh and phase: how
    #: many keys it processed and how many rows it wrote.
    written: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    #: What reads the sums of an additive view, by the refresh that is full, 0 for dirty keys; None
    #: if its rows are computed from the source.
    sums: dict[int, BatchRunner | None] = field(default_factory=dict)
    #: Whether the batch has failed for its data and is done by keys now.
    splitting: bool = False
    #: Whether it has failed because a value may not have fit its staging table.
    unfit: bool = False
    #: Whether a staging table is being filled; after an error, whether that failed.
    staging: bool = False
    #: Whether the batch has failed because too many keys did.
    too_many_failed: bool = False
    #: The parked keys of the shard; None before they are read.
    parked: list[ParkedKey] | None = None
    #: Whether the change fields of the shard have to be saved.
    shard_changed: bool = False

    @cached_property
    def plan(self) -> Plan:
        """The plan that derives the view from its current `source()`.

        Raises:
            InvalidView: `source()` cannot be derived from.
        """
        assert self.definition is not None
        return plan_of(self.definition, alias())

    @cached_property
    def checked_plan(self) -> Plan:
        """The plan, or a staged one if the models contradict the database."""
        return self.plan.checked()

    @cached_property
    def key_runner(self) -> BatchRunner:
        """What runs batches of dirty keys."""
        return self.plan.key_batch_runner()

    @property
    def has_siblings(self) -> bool:
        """Whether the view has other shards."""
        return self.hook_shard.count > 1

    def create_runs(self, known: Collection[int] | None = None) -> None:
        """Create, without saving, the phase runs of refreshes that have none in this shard yet.

        If `known` is given, only for the refreshes in it. A run is merged into an active run of its
        phase that covers its refresh.
        """
        seen = {run.refresh_id for run in self.runs}
        waiting = self._waiting_refreshes()
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

    def _waiting_refreshes(self) -> set[int]:
        """The refreshes that wait for an earlier one with the same phases to end in all shards."""
        waiting: set[int] = set()
        earlier = Counter[tuple[str, ...]]()
        for refresh in self.refreshes:
            phases = tuple(refresh.phases)
            if earlier[phases] >= MAX_REFRESHES_BEGUN:
                waiting.add(refresh.pk)
            earlier[phases] += 1
        return waiting

    def may_begin(self, refresh: Refresh) -> bool:
        """Whether the claimed batch may begin a refresh.

        It may not begin one that was requested after the claim. Until the next claim, further
        requests join that refresh, so its source must not be read yet.
        """
        return refresh.claims_at_request != self.claims

    def mergeable(self) -> list[list[int]]:
        """Groups of equal refreshes, by primary key, that have not begun in this shard.

        A group is left out if others were merged into all of its refreshes, which are never merged
        themselves.
        """
        begun = {run.refresh_id for run in self.runs}
        alike: dict[Any, list[int]] = defaultdict(list)
        for refresh in self.refreshes:
            if refresh.pk not in begun and not refresh.stop_requested:
                alike[*refresh.phases, refresh.batch_size, refresh.forced].append(refresh.pk)
        return [
            keys
            for keys in alike.values()
            if len(keys) > 1 and not self.merge_targets.issuperset(keys)
        ]

    def _covers(self, run: PhaseRun) -> bool:
        """Whether a run covers a request that is made now.

        It does if it has computed nothing yet and does not build on what its refresh has read, or
        if it calls `needs_*` again before it ends. A run with a cursor does not: the cursor may
        already have passed a key that has changed.
        """
        if run.batches == 0:
            return not self._builds_on_others(run)
        if run.cursor is not None:  # whatever kind of hook this version of the code has
            return False
        hooks = self.definition.hooks.get(Phase(run.phase)) if self.definition else None
        return hooks is not None and hooks.kind is HookKind.LIMIT

    def _builds_on_others(self, run: PhaseRun) -> bool:
        """Whether a run skips work because other runs of its refresh have read the source.

        They may have done so before a request.
        """
        derived = self.definition is not None and run.phase in self.definition.derived
        return derived and any(
            (other.merged_into or other).batches
            for other in self.runs
            if other.refresh_id == run.refresh_id
        )

    def leaders(self, phase: Phase | None = None) -> Iterator[PhaseRun]:
        """The active runs that are not merged into another."""
        for run in self.runs:
            if run.active and run.merged_into is None and phase in (None, run.phase):
                yield run

    def followers(self, leader: PhaseRun) -> Iterator[PhaseRun]:
        """The active runs that end when `leader` does."""
        return (run for run in self.runs if run.active and run.merged_into is leader)

    def next_run(self, phase: Phase | None = None) -> PhaseRun | None:
        """The run whose turn it is, of `phase` if a run of that phase is ready."""
        return next_run.next_run(self.runs, phase)

    @property
    def blocked(self) -> bool:
        """Whether no batch may start: for an operator, failures or quiet hours."""
        return self.shard.view.held or self.waits or self.quiet_until is not None

    @property
    def quiet_until(self) -> datetime | None:
        """When the view's quiet hours end; None outside of them, or if a refresh is forced."""
        hours = self.shard.view.quiet_hours
        if hours is None or any(each.forced and not each.stop_requested for each in self.refreshes):
            return None
        return hours.until(utc_now())

    def end(self, run: PhaseRun, state: RunState, *, error: str = "", trace: str = "") -> None:
        """Set the final state of a run and of the runs that are merged into it."""
        finished_at = now()
        for ended in (*self.followers(run), run):
            ended.move_to(state)
            ended.error, ended.traceback, ended.finished_at = error, trace, finished_at
            ended.started_at = run.started_at or finished_at
        self.touch(run)

    @property
    def to_stop(self) -> bool:
        """Whether a refresh that is to stop has work in this shard, or has not begun here."""
        ended = self.ended_refreshes()
        return any(refresh.stop_requested and refresh not in ended for refresh in self.refreshes)

    def stop(self) -> bool:
        """End the runs of the refreshes that are to stop; whether there were any.

        Call it after `create_runs`. Of the runs that were merged into a stopped one, the oldest
        continues as a run of its own, from the start, and the rest are merged into that if it
        covers them.
        """
        stopped = [run for run in self.runs if run.active and run.refresh.stop_requested]
        for run in stopped:
            run.merged_into = None
        for run in stopped:
            self._promote_follower(run)
            self.end(run, RunState.STOPPED)
        return bool(stopped)

    def _promote_follower(self, run: PhaseRun) -> None:
        followers = list(self.followers(run))
        for follower in followers:
            follower.merged_into = None
        for follower in followers:
            if follower is not followers[0] and self._covers(followers[0]):
                follower.merged_into = followers[0]
            self.touch(follower)

    def touch(self, run: PhaseRun) -> None:
        """Mark a run as changed, so that `save` writes it."""
        if not any(other is run for other in self.touched):
            self.touched.append(run)

    def save(self) -> None:
        """Insert the new runs, and update those that the batch has changed."""
        new = [run for run in self.runs if run.pk is None]
        changed = [run for run in self.touched if run.pk is not None]
        insert_rows([run for run in new if run.merged_into is None], using=alias())
        merged = [run for run in new if run.merged_into is not None]
        for run in merged:
            run.merged_into = run.merged_into  # which has its primary key only now
        insert_rows(merged, using=alias())
        for run in changed:
            run.save(force_update=True)
            if not run.active and (
                self.truncated or any(other.merged_into is run for other in self.runs)
            ):
                _end_followers(run)

    def next_message(self) -> Message | None:
        """The message for the batch whose turn it is.

        None if none is due or the view is paused, disabled or waiting after a failure.
        """
        run = None if self.blocked else self.next_run()
        if run is None:
            return None
        return Message(
            Phase(run.phase),
            self.shard.pk,
            self.shard.token,
            queue=self.shard.view.queue_name,
            is_long=is_long(run, self.definition, self.shard),
            in_turns=self.shard.turn_queue is not None,
            is_crowded=self.crowded,
        )

    @property
    def turns_in(self) -> str | None:
        """The queue in which other shards take turns with this one; None if none does."""
        return (self.shard.view.queue_name or "") if self.crowded else None

    def ended_refreshes(self) -> list[Refresh]:
        """The open refreshes whose runs in this shard have all ended."""
        active = {run.refresh_id for run in self.runs if run.active}
        ended = {run.refresh_id for run in self.runs if run.pk is not None} - active
        return [refresh for refresh in self.refreshes if refresh.pk in ended]


def _end_followers(leader: PhaseRun) -> None:
    names = ("state", "error", "traceback", "started_at", "finished_at")
    followers = PhaseRun.objects.filter(merged_into=leader).exclude(state=leader.state)
    followers.update(**{name: getattr(leader, name) for name in names})
