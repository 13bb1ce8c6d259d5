"""Dirty keys: kept from the drain of a change until every phase has processed them."""

from collections.abc import Collection, Iterable

from django.db.models import Exists, OuterRef, Q

from ... import changes
from ...changes import QueuedChange
from ...databases import catalog_of
from ...databases.keys import Key, from_json, in_order, to_json
from ...models import DirtyKeys, PhaseRun, Refresh, ViewShard
from ...queryset import Plan, keys_within
from ...states import RefreshState, RefreshStrategy
from ..locking import lock_available
from ..transactions import alias, short_transaction
from ..work.batch_parts import AttemptedBatch, DirtyPart
from ..work.costs import (
    MAX_KEYS,
    expected_seconds,
    is_full_cheaper,
    max_worthwhile_keys,
    record_timeout,
)
from ..work.shard_work import Work
from .key_ranges import range_of
from .pending_drains import processed
from .resolve import resolve

__all__ = [
    "FULL_REFRESH_FRACTION",
    "FULL_REFRESH_MIN_KEYS",
    "KEYS_PER_ROW",
    "MAX_REASON_LENGTH",
    "add_dirty",
    "all_dirty",
    "count_keys",
    "delete_dirty",
    "dirty_keys",
    "give_up_keys",
    "load_keys",
    "processed_by_all",
    "require_full_refresh",
    "save_dirty",
    "staged_runs",
    "sweep_dirty_keys",
    "truncate_reason",
]


# On PostgreSQL, a tenth of 100,000 keys takes nearly as long as a full refresh (`make bench`).
FULL_REFRESH_FRACTION = 0.1

# Up to this many dirty keys, a refresh stays incremental, however small the view is.
FULL_REFRESH_MIN_KEYS = 1_000

KEYS_PER_ROW = 1_000  # keys in a row of `DirtyKeys` or of the change queue

MAX_REASON_LENGTH = 255  # characters of the reason for a full refresh


def truncate_reason(reason: str) -> str:
    """A reason for a full refresh, cut to the length of its column."""
    return reason if len(reason) <= MAX_REASON_LENGTH else f"{reason[: MAX_REASON_LENGTH - 3]}..."


def add_dirty(work: Work, queued: Collection[QueuedChange]) -> None:
    """Add the keys that changes affect; require a full refresh if they are unknown or too many."""
    shard, dirty = work.shard, all_dirty(work)
    keys, reason = _keys_of_shard(work, queued, count_keys(dirty))
    if keys is None:
        shard.full_refresh_after, shard.full_refresh_reason = (
            shard.drain_number,
            truncate_reason(reason),
        )
        delete_dirty(dirty)
        work.dirty = []
        return
    dirty[:] = _without(work, dirty, keys)
    added = in_order(keys)
    for start in range(0, len(added), KEYS_PER_ROW):
        part = added[start : start + KEYS_PER_ROW]
        dirty.append(DirtyPart(drain_number=shard.drain_number, count=len(part), keys=part))


def _keys_of_shard(
    work: Work, queued: Collection[QueuedChange], present: int
) -> tuple[set[Key] | None, str]:
    """The keys of the shard that changes affect; None if they are unknown or too many, and why.

    Only those that are found can be compared with the shard's range, so of several shards as many
    are looked up as the limits of all allow.
    """
    plan, limit = work.plan, max_worthwhile_keys(work)
    stages = {run.stage for run in staged_runs(work) if run.fingerprint == plan.fingerprint}
    if limit is None:
        few = _assumed_limit(plan, queued)
    else:
        few = min(MAX_KEYS, limit * work.hook_shard.count)
    keys, reason, too_many = resolve(plan, queued, few - present, stages)
    if too_many and limit is None and (more := _max_dirty(plan)) > few:
        keys, reason, too_many = resolve(plan, queued, more - present, stages)
    if keys is not None:
        keys = keys_within(plan, keys, range_of(work))
        too_many = limit is not None and present + len(keys) > limit
    if too_many and limit is not None:
        return None, _why_not_by_keys(work, limit) or reason
    return keys, reason


def _assumed_limit(plan: Plan, queued: Collection[QueuedChange]) -> int:
    """The number of keys up to which they are looked up first, where their cost is unknown.

    Many changed rows seldom lead to few keys, and looking them up twice costs more than counting
    the view's.
    """
    changed = sum(len(change.links) for change in queued if isinstance(change.links, list))
    return FULL_REFRESH_MIN_KEYS if changed <= FULL_REFRESH_MIN_KEYS else _max_dirty(plan)


def _without(work: Work, dirty: list[DirtyPart], keys: set[Key]) -> list[DirtyPart]:
    """The parts of earlier drains without keys that are dirty again: the new drain has them.

    So the keys of a view whose later phase keeps failing are stored once. Whatever needs an earlier
    drain needs the new one too; only a run that has begun goes through the parts as they are. What
    is left of a part moves to the end, because it becomes a new row.
    """
    if not dirty or any(run.active and run.batches for run in work.runs):
        return dirty
    load_keys(dirty)
    kept, changed = list[DirtyPart](), list[DirtyPart]()
    for part in dirty:
        rest = [key for key in part.keys or () if key not in keys]
        if len(rest) == part.count:
            kept.append(part)
            continue
        delete_dirty([part])
        if rest:
            changed.append(DirtyPart(drain_number=part.drain_number, count=len(rest), keys=rest))
    return kept + changed


def _why_not_by_keys(work: Work, limit: int) -> str:
    """Why more dirty keys than the limit cause a full refresh; "" if that is all."""
    if work.shard.view.pinned_strategy:
        return "" if limit else "the view is pinned to full refreshes"
    assert work.definition is not None
    expected = expected_seconds(work, work.definition.derived, limit + 1)
    by_keys, full = map(expected.get, (RefreshStrategy.BY_KEYS, RefreshStrategy.FULL))
    more = f"more than {limit:,} " * bool(limit)
    figures = f" ({by_keys:.2g} s, not {full:.2g} s)" if by_keys and full else ""
    return f"{more}dirty keys would take longer than a full refresh{figures}"


def staged_runs(work: Work) -> list[PhaseRun]:
    """The running full refreshes whose rows are as old as their staging table."""
    return [run for run in work.runs if run.stage]


def _max_dirty(plan: Plan) -> int:
    """The number of dirty keys beyond which a full refresh should be cheaper."""
    model = plan.source.model
    rows = catalog_of(alias()).estimated_rows().get(model._meta.db_table, 0)
    if rows <= 0:  # PostgreSQL knows nothing of a table before its first ANALYZE
        rows = model._base_manager.using(alias()).count()
    return max(FULL_REFRESH_MIN_KEYS, int(FULL_REFRESH_FRACTION * rows))


def require_full_refresh(work: Work, run: PhaseRun, reason: str) -> None:
    """Make the next run a full refresh, because an incremental one would fail again."""
    if run.phase in work.shard.checkpoints:
        number = work.shard.drain_number + 1
        ViewShard.objects.filter(pk=work.shard.pk).update(
            drain_number=number,
            full_refresh_after=number,
            full_refresh_reason=truncate_reason(reason),
            costs=work.shard.costs,
        )


def give_up_keys(work: Work, run: PhaseRun, attempted: AttemptedBatch, *, is_last: bool) -> bool:
    """Make the next run a full refresh after dirty keys timed out, if that is cheaper.

    Also if `is_last`, after smaller batches timed out too: what a full one takes may be unknown.
    """
    seconds, keys = attempted.seconds, attempted.dirty_keys
    pinned = work.shard.view.pinned_strategy
    if not (is_full_cheaper(work, seconds) or (is_last and not pinned)):
        return False
    record_timeout(work, run, seconds, keys)
    require_full_refresh(work, run, f"{keys:,} dirty keys took longer than {seconds:.1f} s")
    return True


def dirty_keys(work: Work, run: PhaseRun) -> list[DirtyPart]:
    """The dirty keys that a run has to process, in the order of `all_dirty`."""
    assert run.checkpoint is not None
    assert run.dirty_after is not None
    return [
        part
        for part in all_dirty(work)
        if run.dirty_after < part.drain_number <= run.checkpoint.drain_number
    ]


def count_keys(dirty: Iterable[DirtyPart]) -> int:
    """The number of keys in these parts."""
    return sum(part.count for part in dirty)


def all_dirty(work: Work) -> list[DirtyPart]:
    """The dirty keys of the shard, read once per batch; `load_keys` reads the keys themselves.

    In the order of their rows, by which runs go through them; those without a row come last.
    """
    done = processed_by_all(work) if work.dirty is None else 0
    if work.dirty is None and done == work.shard.drain_number:
        work.dirty = []  # the last phase that processed them has deleted them
    if work.dirty is None:
        # Those up to `done` are deleted, which need not mean that passing them costs nothing.
        rows = DirtyKeys.objects.filter(shard=work.shard, drain_number__gt=done).order_by("pk")
        names = ("pk", "drain_number", "count")
        work.dirty = [
            DirtyPart(**dict(zip(names, row, strict=True))) for row in rows.values_list(*names)
        ]
    return work.dirty


def load_keys(dirty: Iterable[DirtyPart]) -> None:
    """Read the keys of these parts where they are not loaded yet."""
    unloaded = {part.pk: part for part in dirty if part.pk and part.keys is None}
    if not unloaded:
        return
    rows = DirtyKeys.objects.filter(pk__in=unloaded)
    for pk, keys in rows.values_list("pk", "keys"):
        unloaded[pk].keys = list(map(from_json, keys))


def save_dirty(work: Work) -> None:
    """Insert the dirty keys that have no row yet."""
    shard = work.shard
    for part in work.dirty or ():
        if part.pk is None:
            keys = list(map(to_json, part.keys or ()))
            part.pk = DirtyKeys.objects.create(
                shard=shard, drain_number=part.drain_number, keys=keys, count=part.count
            ).pk


def processed_by_all(work: Work) -> int:
    """The number of the last drain whose keys no phase needs any more.

    Every phase that has ever succeeded has processed it, and every run of an open refresh includes
    it. Such a run may be of a phase that has never succeeded: its checkpoint is capped by the
    earlier phases of its refresh, and it needs the keys of every later drain.
    """
    reached: list[int] = [run.checkpoint.drain_number for run in work.runs if run.checkpoint]
    return min([processed(work.shard, work.shard.checkpoints), *reached])


def delete_dirty(dirty: Iterable[DirtyPart]) -> None:
    """Delete dirty keys by primary key: a scanning DELETE would wait for rows of other shards."""
    changes.delete_rows(DirtyKeys, [part.pk for part in dirty if part.pk is not None])


def sweep_dirty_keys() -> None:
    """Delete the keys that every phase has processed, in shards without an open refresh.

    A batch keeps those that an earlier, still open refresh may need; nobody else deletes them.
    """
    still_open = Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN)
    left = DirtyKeys.objects.filter(shard=OuterRef("pk"))
    idle = ViewShard.objects.filter(Exists(left), ~Exists(still_open)).order_by()
    for pk in idle.values_list("pk", flat=True):
        with short_transaction():
            for shard in lock_available(Q(pk=pk)):
                done = processed(shard, shard.checkpoints)
                keys = DirtyKeys.objects.filter(shard=shard, drain_number__lte=done)
                changes.delete_rows(DirtyKeys, list(keys.values_list("pk", flat=True)))
