"""Checkpoints: how far the rows of each phase reflect the changes that were logged.

*Drain first, compute after*: a batch drains the view's queue before it computes anything from the
source, in the same transaction. The next drain finds whatever commits later.
"""

from collections.abc import Collection, Iterable

from ... import changes
from ...changes import ChangesLogged, ChangeStatus, QueuedChange
from ...databases.compiled import update_rows
from ...databases.keys import from_json
from ...definition import ViewDefinition
from ...json_fields import UNTRACKED, Checkpoint
from ...models import PhaseRun, ViewShard
from ...phases import Phase
from ...queryset import plan_of
from ..parking.parked_keys import due_changes, make_due, max_parked
from ..tracking.dirty_keys import (
    add_dirty,
    all_dirty,
    delete_dirty,
    dirty_keys,
    processed_by_all,
    save_dirty,
    staged_runs,
    truncate_reason,
)
from ..tracking.key_ranges import has_other_order, must_be_alone, must_be_cut
from ..tracking.pending_drains import add_drain, drop_processed
from ..transactions import alias
from ..work.long_runs import is_long
from ..work.shard_work import Work
from .sums import distrust_sums, recompute_groups

__all__ = [
    "KeysUncut",
    "assign_changes",
    "change_status_of",
    "leave_turns",
    "needs_full_refresh",
    "save_changes",
    "save_checkpoint",
    "set_checkpoint",
]

_SAVED_FIELDS = (
    "drain_number", "full_refresh_after", "full_refresh_reason", "pending_drains",
    "checkpoints", "costs", "parked_count", "turn_queue", "turn_deadline",
)  # fmt: skip


class KeysUncut(Exception):
    """The keys of the view are to be split among its shards before a full refresh begins.

    `required`: whether no batch can run in the shards that there are.
    """

    def __init__(self, *, required: bool) -> None:
        super().__init__(required)
        self.required = required


def assign_changes(work: Work, run: PhaseRun) -> bool:
    """Drain the view's queue, once per batch, and settle which changes a starting run will process.

    Returns:
        Whether the run has work; if not, its checkpoint is saved.

    Raises:
        ChangesLogged: the log must be moved first.
        KeysUncut: the keys are to be split among the view's shards first.
        InvalidView: `source()` cannot be derived from.
    """
    if has_other_order(work) and not work.was_cut:
        raise KeysUncut(required=True)
    if work.checkpoint is None:
        work.checkpoint = _drain(work)
    run.checkpoint, run.full_refresh_reason = work.checkpoint
    run.full_refresh_reason = run.full_refresh_reason or _reason_of_full_refresh(work, run.phase)
    incremental = not run.full_refresh_reason
    if not (incremental or work.was_cut) and must_be_cut(work):
        raise KeysUncut(required=must_be_alone(work))
    run.dirty_after = work.shard.checkpoints[run.phase].drain_number if incremental else None
    if run.dirty_after is None or dirty_keys(work, run):
        return True
    save_checkpoint(work, run)
    return False


def _drain(work: Work) -> tuple[Checkpoint | None, str]:
    """The checkpoint of runs that start in this batch, and why they must be full, if known.

    The checkpoint is None where changes are not tracked.
    """
    tracking, shard = changes.tracking_of(work.plan), work.shard
    if tracking.reason:
        make_due(work, _drained(work, ()))  # every refresh is full anyway
        if shard.checkpoints or shard.pending_drains:  # left from when changes were tracked
            shard.checkpoints, shard.pending_drains, work.shard_changed = {}, [], True
        return None, truncate_reason(tracking.reason)
    if work.logged:
        raise ChangesLogged(tracking.tables.keys(), shard.view_id if work.has_siblings else None)
    drained = _drained(work, tracking.tables.keys())
    _recompute_marked(work, [change for change in drained if not change.table])
    if queued := [*drained, *due_changes(work)]:
        all_dirty(work)
        shard.drain_number += 1
        work.shard_changed = True
        add_drain(shard, min(change.logged_at for change in queued), work.runs)
        add_dirty(work, queued)
    if missing := changes.untracked_tables(shard.view_id, tracking, alias()):
        changes.mark_missing_triggers(alias())
        no_triggers = f"no triggers log all changes of {', '.join(sorted(missing))}"
        return Checkpoint(shard.drain_number, None), truncate_reason(
            work.plan.mismatch() or no_triggers
        )
    return Checkpoint(shard.drain_number, work.plan.exact_fingerprint), ""


def _drained(work: Work, tables: Collection[str]) -> list[QueuedChange]:
    """What a drain takes: from the view's queue, or from the shard's own if there are others.

    Raises:
        ChangesLogged: the view's queue must be distributed first.
    """
    shard = work.shard
    if not work.has_siblings:
        return changes.drain_queue(shard.view_id)
    if not work.moved and changes.has_queued(shard.view_id):
        raise ChangesLogged(tables, shard.view_id)
    return changes.drain_shard(shard.pk)


def _recompute_marked(work: Work, marked: Collection[QueuedChange]) -> None:
    """Recompute the sums of an additive view for keys that were marked by hand.

    No value log says that their rows may be wrong.
    """
    if not (marked and work.plan.additive) or work.has_siblings:
        return
    if all(isinstance(change.links, list) for change in marked):
        keys = {from_json(key) for change in marked for key in change.links or ()}
        recompute_groups(work.plan, work.shard, keys)
    else:
        distrust_sums(work.shard.view_id)


def needs_full_refresh(work: Work, phase: Phase) -> bool:
    """Whether a run of a phase that begins in this batch will be a full refresh. Drain before."""
    assert work.checkpoint is not None
    return bool(work.checkpoint[1] or _reason_of_full_refresh(work, phase))


def _reason_of_full_refresh(work: Work, phase: str) -> str:
    """Why a run of a phase must be a full refresh, "" if it can be incremental."""
    shard = work.shard
    if phase not in shard.checkpoints:
        return "it has not succeeded since tracking began"
    number, fingerprint = shard.checkpoints[phase]
    if number < shard.full_refresh_after:
        return shard.full_refresh_reason
    if fingerprint != work.plan.exact_fingerprint or number < 0:
        return "source() changed since the last success, or its dates did"
    return ""


def save_changes(work: Work) -> None:
    """Save the batch's dirty keys and its shard's change fields; delete the processed keys."""
    shard = work.shard
    done = processed_by_all(work)
    delete_dirty(part for part in work.dirty or () if part.drain_number <= done)
    if work.dirty:
        work.dirty = [part for part in work.dirty if part.drain_number > done]
        save_dirty(work)
    if work.shard_changed:
        changed = {name: getattr(shard, name) for name in _SAVED_FIELDS}
        update_rows(ViewShard, {"id": shard.pk}, changed, using=alias())


def leave_turns(work: Work) -> None:
    """Stop taking turns if little work is left; `save_changes` writes it."""
    shard = work.shard
    if shard.turn_queue is not None and not is_long(work.next_run(), work.definition, shard):
        shard.turn_queue, shard.turn_deadline, work.shard_changed = None, None, True


def set_checkpoint(work: Work, run: PhaseRun) -> None:
    """Set the checkpoint of a starting run; invalidate checkpoints of rows that it may overwrite.

    A full refresh builds on what other runs of its refresh have read, so its checkpoint is no later
    than theirs.
    """
    shard, fingerprint = work.shard, work.plan.exact_fingerprint
    if run.dirty_after is None and run.checkpoint:
        leaders = [
            other.merged_into or other for other in work.runs if other.refresh_id == run.refresh_id
        ]
        run.checkpoint = _earliest(
            leader.checkpoint
            for leader in leaders
            if leader is run or leader.fingerprint == run.fingerprint
        )
    # This run may overwrite rows of another definition, even if it does not finish. The drain
    # numbers stay: they say which changes each phase has processed, whatever its definition was.
    checkpoints = {
        phase: old if old.fingerprint == fingerprint else old._replace(fingerprint=None)
        for phase, old in shard.checkpoints.items()
    }
    if checkpoints != shard.checkpoints:
        shard.checkpoints = checkpoints
        work.shard_changed = True


def _earliest(checkpoints: Iterable[Checkpoint | None]) -> Checkpoint:
    """The checkpoint that the rows of all of these runs have reached."""
    numbers, fingerprints = zip(*(each or UNTRACKED for each in checkpoints), strict=True)
    return Checkpoint(min(numbers), fingerprints[0] if len(set(fingerprints)) == 1 else None)


def save_checkpoint(work: Work, run: PhaseRun) -> None:
    """Record the checkpoint of a run that succeeded, in the transaction of its last batch.

    Capped by any staging table still in use, which may hold older rows. Checkpoints of phases that
    the view no longer has are dropped: they would keep every drain from ever counting as processed.
    """
    shard, definition = work.shard, work.definition
    if run.checkpoint is None or definition is None:
        return
    all_dirty(work)  # loads the keys, so that `save_changes` deletes those that are processed
    number, fingerprint = run.checkpoint
    staged = [(other.checkpoint or UNTRACKED).drain_number for other in staged_runs(work)]
    reached = Checkpoint(
        min([number, *staged]), fingerprint if fingerprint == work.plan.exact_fingerprint else None
    )
    checkpoints = {**shard.checkpoints, run.phase: reached}
    phases = definition.options.phases
    shard.checkpoints = {phase: checkpoints[phase] for phase in phases if phase in checkpoints}
    drop_processed(shard, phases)
    work.shard_changed = True


def change_status_of(
    definition: ViewDefinition, phases: Collection[Phase]
) -> tuple[ChangeStatus | None, bool]:
    """A view's change status, None if unknown, and whether its phases are known to have no work.

    It takes one statement, which does not read the source.

    Raises:
        InvalidView: `source()` cannot be derived from.
    """
    if not set(phases) <= definition.derived:
        return None, False
    plan = plan_of(definition, alias())
    tracking = changes.tracking_of(plan)
    status = None if tracking.reason else changes.change_status(definition.label, tracking, alias())
    if status is None:
        return None, False
    current = Checkpoint(status.drain_number, plan.exact_fingerprint)
    to_try = status.due or (status.parked and not max_parked(definition))
    return status, status.complete and not to_try and all(
        status.checkpoints.get(phase) == current for phase in phases
    )
