"""The ranges of keys of a view's shards, and the change of their number.

One transaction changes the number. It locks all shards of the view while no run of an open refresh
has begun, so no batch is running, and none has read a range. Afterwards no shard has a checkpoint:
every phase begins with a full refresh of its new range, and each key is in one of these. So the
dirty keys, parked keys and queues of the old ranges are not needed any more, and a key that moves
to another shard is processed there, whatever the old one has done.
"""

import logging
import time
from collections.abc import Collection
from enum import Enum
from typing import Any

from django.db import DatabaseError, OperationalError, transaction
from django.db.models import Q

from ... import changes
from ...databases import errors_of
from ...databases.keys import Range, to_json
from ...exceptions import InvalidView
from ...json_fields import UNTRACKED
from ...logs import log
from ...models import DirtyKeys, ParkedKey, PhaseRun, ViewControl, ViewShard
from ...phases import Phase
from ...queryset import Plan, Ranges, cut_ranges, key_order, known_rows, one_shard_reason, plan_of
from ...redact import error_text
from ...states import RefreshState, RefreshStrategy
from ..locking import lock_available
from ..transactions import alias, short_transaction
from ..work.shard_work import Work

__all__ = [
    "Split", "forget_keys", "has_other_order", "must_be_alone", "must_be_cut", "range_of",
    "split_for_batch", "split_keys",
]  # fmt: skip

logger = logging.getLogger(__name__)

BUSY_RETRY_DELAYS = (0.01, 0.04, 0.1)  # seconds
GROWTH = 2  # factor of rows, before the first build, beyond which keys are split again
ONE = Ranges([(None, None)], 0)  # for a view with one shard
REASON = "its keys were split among its shards again"


def must_be_cut(work: Work) -> bool:
    """Whether ranges should be cut before a full refresh begins: their number is to change.

    Or the view has to be staged now, in one shard; or it was never built, and its source has grown
    since they were cut.
    """
    definition, control, shard = work.definition, work.shard.view, work.shard
    if definition is None or not definition.has_key_ranges:
        return False
    if control.shard_count <= 1 and not work.has_siblings:
        return False
    if any(run.batches for run in work.runs):
        return False
    if work.hook_shard.count != control.shard_count or has_other_order(work):
        return True
    if must_be_alone(work):
        return True
    return not _is_built(shard) and known_rows(work.plan) > GROWTH * _rows_of(shard)


def must_be_alone(work: Work) -> bool:
    """Whether a full refresh needs one shard, to be staged or to fill sums, but there are more."""
    if not work.has_siblings:
        return False
    return work.checked_plan.strategy.staged or _needs_one_shard(work.shard.view, work.plan)


def _needs_one_shard(control: ViewControl, plan: Plan) -> bool:
    """Whether a view is pinned to staging, or additive, whatever its keys allow."""
    pinned = control.pinned_strategy is RefreshStrategy.FULL_STAGED
    return pinned or (control.is_additive and plan.additive is not None)


def _rows_of(shard: ViewShard) -> int:
    """How many rows there were when its range was cut."""
    return int(shard.key_range[3]) if shard.key_range else 0


def has_other_order(work: Work) -> bool:
    """Whether keys are compared otherwise since they were split, so that no batch may run.

    Or they were not split, as while hooks had several shards.
    """
    is_split = work.has_siblings or work.shard.key_range is not None
    return is_split and work.shard.key_order != key_order(work.plan)


def range_of(work: Work) -> Range:
    """The range of the shard's keys.

    Raises:
        InvalidView: keys are compared otherwise since they were split among the shards.
    """
    if has_other_order(work):
        raise InvalidView(
            f"The keys of {work.shard.view.label} have not been split among its shards, or the "
            f"type or collation of its key has changed since. The next refresh splits them."
        )
    return work.shard.keys_within


def _is_built(shard: ViewShard) -> bool:
    return any(checkpoint.drain_number >= 0 for checkpoint in shard.checkpoints.values())


class Split(Enum):
    """What became of an attempt to split the keys of a view."""

    DONE = "the ranges were replaced"
    KEPT = "nothing was changed: the ranges are right, or a refresh has begun"
    BUSY = "a transaction has locked one of the shards"


def split_for_batch(shard_id: int) -> Split:
    """Split the keys of a shard's view before its batch, which has rolled back.

    Two shards that begin at the same time both try it, so it waits for a moment. `KEPT` if the
    shard was deleted.
    """
    result, shard = Split.KEPT, ViewShard.objects.filter(pk=shard_id)
    if found := shard.select_related("view").first():
        for delay in (*BUSY_RETRY_DELAYS, 0):
            result = split_keys(found.view, rebuilds=True)
            if result is not Split.BUSY:
                break
            time.sleep(delay)
    return result


def split_keys(control: ViewControl, *, rebuilds: bool = False) -> Split:
    """Give a view the number of shards that its control requires, each with a range of keys.

    It has one as long as its source has few rows, or if its keys cannot be split; if that takes too
    long, it keeps the ranges that it has, as long as keys are still compared as they were for them.
    It has to wait while a batch runs, or a refresh has begun.

    Args:
        control: that of a view whose definition `has_key_ranges`.
        rebuilds: whether to cut the same number of ranges again, if no shard was ever built.
    """
    try:
        cut, order = _wanted(control, rebuilds=rebuilds)
    except (InvalidView, DatabaseError) as error:  # a refresh will report it, too
        _warn(control, error)
        return Split.KEPT
    if cut is None:
        return Split.KEPT
    try:
        with short_transaction():
            result = _replace(control, cut, order, rebuilds=rebuilds)
    except OperationalError as error:
        if not errors_of(alias()).is_locked(error):
            raise
        return Split.BUSY  # on SQLite, where a writer locks all
    if result is Split.DONE:
        count = len(cut.ranges)
        log(logger, logging.INFO, "keys were split again", view=control.label, shards=count)
    return result


def _warn(control: ViewControl, error: Exception) -> None:
    text = error_text(error)
    log(logger, logging.WARNING, "keys could not be split", view=control.label, error=text)


def _wanted(control: ViewControl, *, rebuilds: bool) -> tuple[Ranges | None, list[str]]:
    """The ranges that a view should have, None if those that it has; and the order of its keys."""
    shards = list(control.shards.order_by("number"))
    one = ONE if len(shards) != 1 else None
    if _has_begun(control):
        return None, []
    if control.shard_count <= 1 or control.definition is None:
        return one, []
    with transaction.atomic(using=alias()):
        plan = plan_of(control.definition, alias())
        if _needs_one_shard(control, plan) or one_shard_reason(plan):
            return one, []
        order = key_order(plan)
    if not _is_due(shards, control.shard_count, order, rebuilds=rebuilds):
        return None, order
    try:
        with short_transaction(durable=False):
            cut = cut_ranges(plan, control.shard_count)
    except DatabaseError as error:
        if len(shards) == 1 or all(shard.key_order == order for shard in shards):
            raise
        _warn(control, error)
        cut = ONE  # no batch may run in those that there are
    return cut if _is_due(shards, len(cut.ranges), order, rebuilds=rebuilds) else None, order


def _has_begun(control: ViewControl) -> bool:
    """Whether a refresh is open that has begun in some shard."""
    runs = PhaseRun.objects.filter(refresh__view=control, refresh__state=RefreshState.OPEN)
    return runs.order_by().exists()


def _is_due(shards: Collection[ViewShard], count: int, order: list[str], *, rebuilds: bool) -> bool:
    """Whether the shards of a view differ from those that it should have."""
    if len(shards) != count or count == 1:
        return len(shards) != count
    if any(shard.key_order != order for shard in shards):
        return True
    return rebuilds and not any(map(_is_built, shards))


def _replace(control: ViewControl, cut: Ranges, order: list[str], *, rebuilds: bool) -> Split:
    """Replace a view's shards, if none is busy. Must be called first in a transaction."""
    shards = sorted(lock_available(Q(view=control)), key=lambda shard: shard.number)
    ranges = cut.ranges
    if len(shards) < control.shards.count():
        return Split.BUSY
    if _has_begun(control) or not _is_due(shards, len(ranges), order, rebuilds=rebuilds):
        return Split.KEPT
    forget_keys(shards, gone=shards[len(ranges) :])
    known = {shard.number: shard for shard in shards[: len(ranges)]}
    for number, (low, high) in enumerate(ranges):
        shard = known.get(number) or ViewShard(view=control, number=number)
        ends = [low and to_json(low), high and to_json(high)]
        _begin(shard, [*ends, order, cut.rows] if len(ranges) > 1 else None)
    return Split.DONE


def forget_keys(shards: Collection[ViewShard], gone: Collection[ViewShard]) -> None:
    """Delete some of a view's shards, and have all phases begin with full refreshes in the others.

    Without these, nobody would process what was dirty or queued in the deleted shards. Call it
    while all shards of the view are locked.
    """
    keys, pks = [shard.pk for shard in shards], [shard.pk for shard in gone]
    changes.delete_shard_queues(keys)
    for model in (DirtyKeys, ParkedKey):
        rows = model.objects.filter(shard__in=keys).order_by()
        changes.delete_rows(model, list(rows.values_list("pk", flat=True)))
    left = [shard for shard in shards if shard not in gone]
    # The sum of the claims must never decrease: by it, requests know whether a refresh has begun.
    for first in left[:1]:
        first.claims += sum(shard.claims for shard in gone)
    ViewShard.objects.filter(pk__in=pks).delete()
    for shard in left:
        _begin(shard, None)


def _begin(shard: ViewShard, key_range: list[Any] | None) -> None:
    """Give a shard a range, whose phases all begin with a full refresh."""
    definition = shard.view.definition
    shard.key_range = key_range
    derived = definition.derived if definition else ()
    shard.checkpoints = {phase: UNTRACKED for phase in Phase if phase in derived}
    shard.full_refresh_after, shard.full_refresh_reason = shard.drain_number, REASON
    shard.pending_drains, shard.costs, shard.parked_count = [], {}, 0
    if shard.pk is None:
        shard.save(force_insert=True)
        return
    names = (
        "claims", "key_range", "checkpoints", "full_refresh_after", "full_refresh_reason",
        "pending_drains", "costs", "parked_count",
    )  # fmt: skip
    shard.save(update_fields=names)
