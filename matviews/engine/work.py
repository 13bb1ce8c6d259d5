"""What there is to do in one shard: its open refreshes, their phase runs, and which is next.

Everything is read in one query, inside the shard's batch (then it is exact) or outside (then it is
a good guess, which the token holds against the truth).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import groupby, islice
from typing import Any

from django.db import connections
from django.db.models import (
    Count,
    Exists,
    F,
    FilteredRelation,
    Model,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
)
from django.db.models.functions import Coalesce

from ..contract import Shard
from ..databases.compiled import GIVEN, LARGEST, CompiledSelect
from ..databases.keys import Key
from ..definition import HookKind, ViewDefinition
from ..json_fields import Checkpoint
from ..models import Change, PhaseRun, Refresh, ViewControl, ViewShard
from ..phases import Phase
from ..queryset import Plan, Walker, plan_of
from ..states import RefreshState, RunState
from .messages import Message
from .transactions import alias, now

__all__ = ["Dirty", "Work", "load_work", "load_works"]

MAX_REFRESHES_READ = (
    100  # open refreshes of a view, the oldest; the others wait until these have ended
)
MAX_REFRESHES_BEGUN = (
    4  # open refreshes for the same phases that have begun; those after them wait, and are merged
)


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


def load_work(shard_id: int) -> Work | None:
    """Read what a shard has to do, in one query; None when no refresh is open."""
    return next(_works(_work_query(alias(), "view__shards").run(shard_id)), None)


def load_works(view_id: int) -> list[Work]:
    """Read what each shard of a view has to do, in one query; empty when no refresh is open."""
    return list(_works(_work_query(alias(), "view").run(view_id)))


@lru_cache(maxsize=16)
def _work_query(using: str, by: str) -> CompiledSelect:
    """What `load_work` and `load_works` read; `by` is what the given number is the key of."""
    columns = [prefix + name for model, prefix in _PARTS for name in _fields(model)]
    totals = ViewShard.objects.filter(view=OuterRef("view")).order_by().values("view")
    newest = Change.objects.using(using).order_by("-pk").values("pk")[:1]
    open_ones = Refresh.objects.using(using).filter(**{by: GIVEN}, state=RefreshState.OPEN)
    end = open_ones.order_by("pk").values("pk")[MAX_REFRESHES_READ : MAX_REFRESHES_READ + 1]
    merged = Refresh.objects.using(using).filter(
        merged_into=OuterRef("pk"), state=RefreshState.MERGED
    )
    rows = (
        Refresh.objects.using(using)
        .filter(
            **{by: GIVEN},
            view__shards__isnull=False,
            state=RefreshState.OPEN,
            pk__lt=Coalesce(Subquery(end), Value(LARGEST)),
        )
        .annotate(
            here=FilteredRelation("runs", condition=Q(runs__shard=F("view__shards"))),
            total=Subquery(totals.values(total=Count("pk"))),
            claims_now=Subquery(totals.values(total=Sum("claims"))),
            works_for_others=Exists(merged),
            logged=Subquery(newest),
        )
        .order_by("view__shards__number", "pk", "here__pk")
    )
    return CompiledSelect(rows.values_list(*columns, *_FACTS))


@cache
def _fields(model: type[Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


_FACTS = ("total", "logged", "claims_now", "works_for_others")
_PARTS: list[tuple[type[Model], str]] = [
    (Refresh, ""),
    (ViewControl, "view__"),
    (ViewShard, "view__shards__"),
    (PhaseRun, "here__"),
]


def _instances(row: Sequence[Any]) -> list[Any]:
    """The four instances of a row, and the facts."""
    values = iter(row)
    instances: list[Any] = []
    for model, _prefix in _PARTS:
        names = _fields(model)
        instances.append(model.from_db(alias(), names, list(islice(values, len(names)))))
    return [*instances, *islice(values, len(_FACTS))]


def _works(rows: Iterable[Sequence[Any]]) -> Iterator[Work]:
    """The work of each shard that the rows, in order of their shards, are about."""
    parts = map(_instances, rows)
    for _shard, of_shard in groupby(parts, key=lambda instances: instances[2].pk):
        yield _build(list(of_shard))


def _build(rows: list[list[Any]]) -> Work:
    _refresh, control, shard, _run, total, logged, claims, _for_others = rows[0]
    shard.view = control
    refreshes: dict[int, Refresh] = {}
    runs: dict[int, PhaseRun] = {}
    works_for_others: set[int] = set()
    for again, _control, _shard, run, *_facts, for_others in rows:
        refresh = refreshes.setdefault(again.pk, again)
        refresh.view = control
        if for_others:
            works_for_others.add(refresh.pk)
        if run.pk is not None:
            run.refresh, run.shard = refresh, shard
            runs[run.pk] = run
    for run in runs.values():
        if run.merged_into_id in runs:
            run.merged_into = runs[run.merged_into_id]
    return Work(
        shard=shard,
        hook_shard=Shard(shard.number, total),
        definition=control.definition,
        refreshes=list(refreshes.values()),
        truncated=len(refreshes) >= MAX_REFRESHES_READ,
        works_for_others=frozenset(works_for_others),
        claims=claims,
        runs=list(runs.values()),
        logged=logged or 0,
    )
