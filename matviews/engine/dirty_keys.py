"""The keys that changes concern, kept until every phase has processed them."""

from collections.abc import Collection, Iterable

from .. import changes
from ..changes import QueuedChange
from ..databases import catalog_of
from ..databases.keys import from_json, to_json
from ..models import DirtyKeys, PhaseRun, ViewShard
from ..queryset import Plan
from .marking import PART
from .pending import processed
from .resolve import resolve
from .transactions import alias
from .work import Dirty, Work

__all__ = [
    "FULL_REFRESH_FRACTION",
    "FULL_REFRESH_MIN_KEYS",
    "MAX_REASON_LENGTH",
    "add_dirty",
    "all_dirty",
    "count_keys",
    "delete_dirty",
    "dirty_keys",
    "distrust_dirty",
    "load_keys",
    "processed_by_all",
    "save_dirty",
    "short",
    "staged_runs",
]


# On PostgreSQL, a tenth of 100,000 keys takes nearly as long as a full pass (`make bench`).
FULL_REFRESH_FRACTION = 0.1

FULL_REFRESH_MIN_KEYS = 1_000  # keys that are never too many

MAX_REASON_LENGTH = 255  # characters


def short(reason: str) -> str:
    """A reason, at most as long as it may be."""
    return reason if len(reason) <= MAX_REASON_LENGTH else f"{reason[: MAX_REASON_LENGTH - 3]}..."


def add_dirty(work: Work, taken: Collection[QueuedChange]) -> None:
    """Keep the keys that changes concern for the phases, unless they may be any, or are too many."""
    shard, plan, kept = work.shard, work.plan, all_dirty(work)
    waiting = count_keys(kept)
    stages = {run.stage for run in staged_runs(work) if run.fingerprint == plan.fingerprint}
    keys, reason, many = resolve(plan, taken, FULL_REFRESH_MIN_KEYS - waiting, stages)
    if many:
        keys, reason, many = resolve(plan, taken, _most_dirty(plan) - waiting, stages)
    if keys is None:
        shard.full_refresh_after, shard.full_refresh_reason = shard.drain_number, short(reason)
        delete_dirty(kept)
        work.dirty = []
        return
    found = list(keys)
    for at in range(0, len(found), PART):
        part = found[at : at + PART]
        kept.append(Dirty(drain_number=shard.drain_number, count=len(part), keys=part))


def staged_runs(work: Work) -> list[PhaseRun]:
    """The runs of full passes under way whose rows are as old as their staging table."""
    return [run for run in work.runs if run.stage]


def _most_dirty(plan: Plan) -> int:
    """The number of keys beyond which a full pass is cheaper."""
    model = plan.source.model
    catalog = catalog_of(alias())
    rows = catalog.estimated_rows().get(model._meta.db_table, -1)
    if rows < 0 and not catalog.has_estimates:
        rows = model._base_manager.using(alias()).count()
    return max(FULL_REFRESH_MIN_KEYS, int(FULL_REFRESH_FRACTION * rows))


def distrust_dirty(work: Work, run: PhaseRun) -> None:
    """After an error of data over dirty keys: the next run looks at all keys, or it would fail like this one.

    As where a column has got another type, which cannot have the logged values.
    """
    if run.phase in work.shard.checkpoints:
        number = work.shard.drain_number + 1
        reason = "the database could not read a dirty key, or compute its row"
        ViewShard.objects.filter(pk=work.shard.pk).update(
            drain_number=number, full_refresh_after=number, full_refresh_reason=reason
        )


def dirty_keys(work: Work, run: PhaseRun) -> list[Dirty]:
    """The dirty keys that a run has to do, in the order of their primary keys."""
    assert run.checkpoint is not None
    assert run.dirty_after is not None
    return [
        each
        for each in all_dirty(work)
        if run.dirty_after < each.drain_number <= run.checkpoint.drain_number
    ]


def count_keys(dirty: Iterable[Dirty]) -> int:
    """How many keys some parts of the dirty ones are."""
    return sum(each.count for each in dirty)


def all_dirty(work: Work) -> list[Dirty]:
    if work.dirty is None and processed_by_all(work) == work.shard.drain_number:
        work.dirty = []  # each was forgotten with the last phase that had it to do
    if work.dirty is None:
        rows = DirtyKeys.objects.filter(shard=work.shard).order_by("pk")
        names = ("pk", "drain_number", "count")
        work.dirty = [
            Dirty(**dict(zip(names, row, strict=True))) for row in rows.values_list(*names)
        ]
    return work.dirty


def load_keys(dirty: Iterable[Dirty]) -> None:
    """Have the keys of some parts at hand."""
    lacking = {each.pk: each for each in dirty if each.pk and each.keys is None}
    if not lacking:
        return
    rows = DirtyKeys.objects.filter(pk__in=lacking)
    for pk, keys in rows.values_list("pk", "keys"):
        lacking[pk].keys = list(map(from_json, keys))


def save_dirty(work: Work) -> None:
    """Save the dirty keys that are not yet."""
    shard = work.shard
    for each in work.dirty or ():
        if each.pk is None:
            keys = list(map(to_json, each.keys or ()))
            each.pk = DirtyKeys.objects.create(
                shard=shard, drain_number=each.drain_number, keys=keys, count=each.count
            ).pk


def processed_by_all(work: Work) -> int:
    """The number up to which each phase that has ever succeeded has done what it had to do.

    At most the least that a run of an open refresh covers. A phase that has never succeeded covers only what
    the phases before it in its refresh do, and needs the keys of every later change.
    """
    covers: list[int] = [run.checkpoint.drain_number for run in work.runs if run.checkpoint]
    return min([processed(work.shard, work.shard.checkpoints), *covers])


def delete_dirty(dirty: Iterable[Dirty]) -> None:
    """Delete dirty keys. A DELETE that looks for them would come across, and wait for, those of others."""
    changes.delete_rows(DirtyKeys, [each.pk for each in dirty if each.pk is not None])
