"""What is known to be unchanged: views whose tables have logged no change since they succeeded.

*Take first, compute after*: the queue of a view is emptied before anything is computed from the
source, in the same transaction. What commits later is in the queue the next time.
"""

import logging
from collections.abc import Collection, Iterable
from typing import Any

from .. import changes
from ..changes import ChangesLogged, ChangeStatus
from ..definition import ViewDefinition
from ..models import PhaseRun, ViewShard
from ..phases import Phase
from ..queryset import plan_of
from .dirty_keys import (
    add_dirty,
    all_dirty,
    delete_dirty,
    dirty_keys,
    processed_by_all,
    save_dirty,
    short,
    staged_runs,
)
from .pending import add_drain, drop_processed
from .transactions import alias
from .work import Work

__all__ = [
    "Checkpoint",
    "change_status_of",
    "claim_changes",
    "fix_checkpoint",
    "save_changes",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)


# As in `ViewShard.checkpoints`; None where changes are not tracked at all.
Checkpoint = list[Any] | None


def claim_changes(work: Work, run: PhaseRun) -> bool:
    """Whether a derived phase has anything to do since it last succeeded. Takes the view's queue.

    Raises:
        ChangesLogged: the log is to be moved before this can be told.
        InvalidView: `source()` cannot be derived from.
    """
    if work.checkpoint is None:
        work.checkpoint = _claim(work)
    run.checkpoint, run.full_refresh_reason = work.checkpoint
    run.full_refresh_reason = run.full_refresh_reason or _whole(work, run)
    run.dirty_after = None if run.full_refresh_reason else work.shard.checkpoints[run.phase][0]
    if run.dirty_after is None or dirty_keys(work, run):
        return True
    save_checkpoint(work, run)
    return False


def _claim(work: Work) -> tuple[Checkpoint, str]:
    """What a pass that begins in this batch will cover, and why it has to be a full one, if that is known."""
    tracking, shard = changes.tracking_of(work.plan), work.shard
    if tracking.reason:
        changes.drain_queue(shard.view_id)  # each pass is a full one, whatever somebody has marked
        if shard.checkpoints or shard.pending:  # of a time when changes were tracked
            shard.checkpoints, shard.pending, work.shard_changed = {}, [], True
        return None, short(tracking.reason)
    if work.logged:
        raise ChangesLogged(tracking.tables.keys(), work.logged)
    if taken := changes.drain_queue(shard.view_id):
        all_dirty(work)
        shard.drain_number += 1
        work.shard_changed = True
        add_drain(shard, min(each.logged_at for each in taken), work.runs)
        add_dirty(work, taken)
    if lacking := changes.untracked_tables(shard.view_id, tracking, alias()):
        changes.mark_missing_triggers(alias())
        no_triggers = f"no triggers log all changes of {', '.join(sorted(lacking))}"
        return [shard.drain_number, None], short(work.plan.mismatch() or no_triggers)
    return [shard.drain_number, work.plan.exact_fingerprint], ""


def _whole(work: Work, run: PhaseRun) -> str:
    """Why a phase has to change_status_of at all keys, "" if the dirty ones are all that it has to do."""
    shard = work.shard
    if run.phase not in shard.checkpoints:
        return "it has not succeeded since changes are tracked"
    number, moment = shard.checkpoints[run.phase]
    if number < shard.full_refresh_after:
        return shard.full_refresh_reason
    if moment != work.plan.exact_fingerprint or number < 0:
        return "source() is another query than when it last succeeded, or has other dates"
    return ""


def save_changes(work: Work) -> None:
    """Save what a batch has found out about changes, in its transaction, and forget what is done."""
    shard = work.shard
    done = processed_by_all(work)
    delete_dirty(each for each in work.dirty or () if each.drain_number <= done)
    if work.dirty:
        work.dirty = [each for each in work.dirty if each.drain_number > done]
        save_dirty(work)
    if work.shard_changed:
        changed = {name: getattr(shard, name) for name in _OF_CHANGES}
        ViewShard.objects.filter(pk=shard.pk).update(**changed)


_OF_CHANGES = (
    "drain_number", "full_refresh_after", "full_refresh_reason", "pending", "checkpoints",
)  # fmt: skip


def fix_checkpoint(work: Work, run: PhaseRun) -> None:
    """Limit what a run that begins will cover, and forget what it is about to make untrue.

    A full pass builds on what other runs of its refresh have found, and covers no more than they do.
    """
    shard, moment = work.shard, work.plan.exact_fingerprint
    if run.dirty_after is None and run.checkpoint:
        leaders = [
            other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
        ]
        run.checkpoint = _least(
            each.checkpoint
            for each in leaders
            if each is run or each.fingerprint == run.fingerprint
        )
    # Rows of another moment may go with this run, even if it does not come to its end.
    covered = {
        phase: [number, known if known == moment else None]
        for phase, (number, known) in shard.checkpoints.items()
    }
    if covered != shard.checkpoints:
        shard.checkpoints = covered
        work.shard_changed = True


def _least(several: Iterable[Checkpoint]) -> Checkpoint:
    numbers, moments = zip(*(covers or (-1, None) for covers in several), strict=True)
    return [min(numbers), moments[0] if len(set(moments)) == 1 else None]


def save_checkpoint(work: Work, run: PhaseRun) -> None:
    """Note what a run that has succeeded covers; in the transaction of its last batch.

    That is no more than a staging table holds of which rows may yet be written: it may be older. What is
    known of phases that the view no longer has would hold up the others for ever.
    """
    shard, definition = work.shard, work.definition
    if run.checkpoint is None or definition is None:
        return
    all_dirty(work)  # to be forgotten, as far as they are done
    number, moment = run.checkpoint
    staged = (each.checkpoint[0] if each.checkpoint else -1 for each in staged_runs(work))
    covers = [min([number, *staged]), moment if moment == work.plan.exact_fingerprint else None]
    covered = {**shard.checkpoints, run.phase: covers}
    phases = definition.options.phases
    shard.checkpoints = {phase: covered[phase] for phase in phases if phase in covered}
    drop_processed(shard, phases)
    work.shard_changed = True


def change_status_of(
    definition: ViewDefinition, phases: Collection[Phase]
) -> tuple[ChangeStatus | None, bool]:
    """How a view's changes stand, if that is known, and whether it tells that phases have nothing to do.

    One statement, which does not change_status_of at the source.

    Raises:
        InvalidView: `source()` cannot be derived from.
    """
    if not set(phases) <= definition.derived:
        return None, False
    plan = plan_of(definition, alias())
    tracking = changes.tracking_of(plan)
    stands = None if tracking.reason else changes.change_status(definition.label, tracking, alias())
    if stands is None:
        return None, False
    covered = (
        stands.checkpoints.get(each) == [stands.drain_number, plan.exact_fingerprint]
        for each in phases
    )
    return stands, stands.complete and all(covered)
