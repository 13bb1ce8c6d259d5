"""Batches of the phases derived from a view's `source()`, and the bookkeeping of these phases."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext, suppress

from django.db import DatabaseError, transaction

from ...contract import Batch
from ...databases.keys import Key
from ...definition import ViewDefinition
from ...exceptions import InvalidView, ViewNotReady
from ...logs import log
from ...models import PhaseRun
from ...phases import Phase
from ...queryset import (
    BatchRunner,
    Plan,
    WindowProgress,
    is_missing,
    names_own_table,
    plan_of,
    refused,
    unmigrated,
)
from ...states import RefreshStrategy
from ..parking.splitting import is_careful, run_dirty
from ..tracking.dirty_keys import count_keys, dirty_keys, load_keys, save_dirty, truncate_reason
from ..transactions import alias, statement_budget, statement_timeout
from ..work.batch_parts import AttemptedBatch, DirtyPart
from ..work.costs import expected_seconds, is_expensive, keys_budget
from ..work.shard_work import Work
from .checkpoints import needs_full_refresh, set_checkpoint
from .full_refreshes import progress_of, recorded, walk
from .sums import sums_runner

__all__ = [
    "do_derived",
    "explained",
    "fits_one_batch",
    "not_migrated",
    "own_tables_missing",
]

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5  # changes of the definition during one run


def do_derived(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Run one batch of a derived phase, of about `limit` keys, and record its progress in the run.

    Raises:
        InvalidView: `source()` cannot be derived from, or keeps changing.
        DatabaseError: a statement failed.
    """
    plan = work.plan
    if run.fingerprint != plan.fingerprint or _lost_keys(work, run):
        plan = _start(work, run, plan)
    if run.dirty_after is not None:
        return _do_dirty(work, run, limit)
    of_sums = None if run.stage else sums_runner(work, run)
    if fits_one_batch(work, run, limit):
        return _do_everything(work, run, of_sums or plan.batch_runner())
    if of_sums:
        walked = of_sums.run_window(Phase(run.phase), progress_of(run), limit)
        return recorded(run, walked)
    return walk(work, run, plan, limit)


def _do_dirty(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Run one batch of dirty keys.

    The cursor is the primary key of a `DirtyKeys` row and how many of its keys are done.
    """
    dirty = dirty_keys(work, run)
    if count_keys(dirty) > limit:
        save_dirty(work)
    row, done = run.cursor or (0, 0)
    pending = [part for part in dirty if not row or (part.pk or 0) >= row]
    if pending and pending[0].pk != row:
        done = 0
    parts, room = [], done + limit
    while pending and room > 0:
        parts.append(pending.pop(0))
        room -= parts[-1].count
    load_keys(parts)
    keys = [key for part in parts for key in part.keys or ()][done : done + limit]
    others = _later_phases(work, run) if len(keys) == count_keys(dirty) else []
    is_last = room >= 0 and not pending
    rows, processed = _run_keys(work, run, keys, others, limit, is_last=is_last)
    run.keys_scanned += processed
    if processed < len(keys):
        save_dirty(work)
        return Batch(rows, _cursor_after(parts, done + processed))
    if room < 0:
        return Batch(rows, [parts[-1].pk, parts[-1].count + room])
    return Batch(rows, [pending[0].pk, 0] if pending else None)


def _cursor_after(parts: list[DirtyPart], done: int) -> list[int | None]:
    """The cursor of a batch that has done `done` keys of these parts, but not all."""
    for part in parts:
        if done < part.count:
            return [part.pk, done]
        done -= part.count
    raise AssertionError("All of these keys are done.")


def _run_keys(
    work: Work, run: PhaseRun, keys: list[Key], others: list[Phase], limit: int, *, is_last: bool
) -> tuple[int, int]:
    """Run a phase for at most `limit` keys, for little longer than a full refresh takes.

    Returns:
        How many rows were written, and how many of the keys are done.
    """
    budget, allowed = keys_budget(work, len(keys)), statement_timeout(work.definition)
    seconds = allowed if budget is None else min(budget, allowed)
    limited = statement_budget(seconds, allowed) if seconds < allowed else nullcontext()
    work.attempted = AttemptedBatch(phases=1 + len(others), dirty_keys=len(keys), seconds=seconds)
    runner = sums_runner(work, run) or work.key_runner
    with limited:
        if is_careful(work):
            rows, done = run_dirty(work, run, keys, limit, is_last=is_last)
        else:
            rows, done = runner.run_keys(Phase(run.phase), keys, others), len(keys)
    work.attempted = None
    return rows, done


def _later_phases(work: Work, run: PhaseRun) -> list[Phase]:
    """The phases that this batch runs for the same keys, if they can share an evaluation.

    If that takes a temporary table, the source must take longer to evaluate than the table does.
    """
    checkpoints = work.shard.checkpoints
    if not work.plan.dialect.has_writing_parts and not is_expensive(work, run.estimate or 0):
        return []
    return [
        phase
        for phase in _later_derived(work, run)
        if phase in checkpoints and checkpoints[phase].drain_number == run.dirty_after
    ]


def _later_derived(work: Work, run: PhaseRun) -> Iterator[Phase]:
    """The phases of the refresh that follow in this batch, if they can share an evaluation."""
    if work.one_run_only or run.batches or run.failures or is_careful(work):
        return
    assert work.definition is not None
    for other in work.leaders():
        phase = Phase(other.phase)
        if (
            other.refresh_id == run.refresh_id
            and phase.order > Phase(run.phase).order
            and work.definition.hooks[phase].is_derived
            and not (other.batches or other.failures)
        ):
            yield phase


def fits_one_batch(work: Work, run: PhaseRun, limit: int) -> bool:
    """Whether a full refresh of a phase is one batch for all keys, which may run others too.

    It is if the last one found so few keys that a walk along them would only cost time, and as long
    as nothing in this refresh has failed or walked. If two rows might have one key, only a staging
    table shows it.
    """
    if (run.refresh_id, run.phase) in work.written:
        return True
    assert work.definition is not None
    others = [other for other in work.runs if other.refresh_id == run.refresh_id]
    return (
        run.dirty_after is None
        and not run.batches
        and not work.one_run_only
        and not work.has_siblings
        and not is_careful(work)
        and work.shard.view.pinned_strategy is not RefreshStrategy.FULL_STAGED
        and work.definition.hooks[Phase(run.phase)].is_derived
        and run.estimate is not None
        and run.estimate <= limit
        and not any(other.stage or other.failures or other.batches > 1 for other in others)
        and work.checked_plan.has_unique_keys
    )


def _do_everything(work: Work, run: PhaseRun, runner: BatchRunner) -> Batch:
    """Run a phase for all keys; the first one runs those that follow too."""
    phase = Phase(run.phase)
    if (run.refresh_id, phase) not in work.written:
        others = [other for other in _later_derived(work, run) if needs_full_refresh(work, other)]
        if not others:
            alone = runner.run_whole(phase, WindowProgress()).rows
            added = alone if phase is Phase.INSERT else 0  # the next one may not fit any more
            run.keys_scanned = (run.estimate or 0) + added
            return Batch(alone, None)
        work.attempted = AttemptedBatch(phases=1 + len(others))
        keys, rows = runner.run_together([phase, *others])
        work.attempted = None
        work.written = {(run.refresh_id, each): (keys, rows[each]) for each in rows}
    keys, written = work.written.pop((run.refresh_id, phase))
    run.keys_scanned += keys
    return Batch(written, None)


def _lost_keys(work: Work, run: PhaseRun) -> bool:
    """Whether a later change required a full refresh, which deleted the run's dirty keys."""
    return run.dirty_after is not None and run.dirty_after < work.shard.full_refresh_after


def _start(work: Work, run: PhaseRun, plan: Plan) -> Plan:
    """Start a run, or restart it, and return the plan to follow.

    It restarts after its definition changed or its keys were deleted.
    """
    if _lost_keys(work, run):
        run.dirty_after, run.full_refresh_reason, run.estimate = (
            None,
            work.shard.full_refresh_reason,
            None,
        )
        sentence = "incremental refresh became a full one"
        log(logger, logging.INFO, sentence, view=work.shard.view.label, phase=run.phase)
    if run.fingerprint not in ("", plan.fingerprint) and run.batches:
        run.restarts += 1
        run.dirty_after = None
        run.checkpoint = run.checkpoint and run.checkpoint._replace(fingerprint=None)
        view = work.shard.view.label
        log(logger, logging.INFO, "definition changed", view=view, phase=run.phase)
    if run.restarts > MAX_RESTARTS:
        raise InvalidView(
            f"{work.shard.view.label}.source() changed {run.restarts} times during this refresh. "
            f"Are workers of two versions running? Restart them and refresh again. Otherwise make "
            f"source() return the same query in every process."
        )
    inserted_ranges, stage = _results_to_reuse(work, run, plan)
    run.fingerprint, run.cursor, run.keys_scanned = plan.fingerprint, None, 0
    set_checkpoint(work, run)
    if run.dirty_after is None:
        run.inserted_ranges, run.stage = inserted_ranges, stage
        if not plan.strategy.staged and not run.stage:
            plan = _checked(work, run)
        staged = plan.strategy.staged or run.stage
        if staged and work.has_siblings:
            raise InvalidView(
                f"{work.shard.view.label} has {work.hook_shard.count} shards, but must be staged "
                f"({plan.strategy.reason}): matviews.maintain leaves it one."
            )
        run.strategy = RefreshStrategy.FULL_STAGED if staged else RefreshStrategy.FULL
    else:
        run.estimate = count_keys(dirty_keys(work, run))
        run.strategy = RefreshStrategy.BY_KEYS
    run.expected_seconds = expected_seconds(
        work, [run.phase], None if run.dirty_after is None else run.estimate
    )
    return plan


def _checked(work: Work, run: PhaseRun) -> Plan:
    """The plan; a staged one if database columns are not as the models declare, or by its pin.

    A pin waits for the end of a refresh that has begun in several shards.
    """
    if work.checked_plan is not work.plan:
        run.full_refresh_reason = truncate_reason(work.checked_plan.strategy.reason)
    elif work.shard.view.pinned_strategy is RefreshStrategy.FULL_STAGED and not work.has_siblings:
        return work.plan.staged()
    return work.checked_plan


def _results_to_reuse(work: Work, run: PhaseRun, plan: Plan) -> tuple[list[object], str]:
    """The ranges that the refresh's insert phase has inserted, and the refresh's staging table."""
    inserted_ranges: list[object] = []
    stage = ""
    for other in work.runs:
        leader: PhaseRun = other.merged_into or other
        if other.refresh_id == run.refresh_id and leader.fingerprint == plan.fingerprint:
            inserted_ranges = (
                leader.inserted_ranges if leader.phase == Phase.INSERT else inserted_ranges
            )
            stage = other.stage or stage
    return inserted_ranges, stage


def not_migrated(error: Exception, definition: ViewDefinition) -> Exception:
    """The error; `ViewNotReady` if the view lacks a table or column. Call it after the rollback."""
    if not is_missing(error, alias()):
        return error
    sentence = ""
    with suppress(DatabaseError), transaction.atomic(using=alias()):
        sentence = unmigrated(definition, alias())
    if not sentence:
        return error
    explained = ViewNotReady(sentence).with_traceback(error.__traceback__)
    explained.__cause__ = error.__cause__ or error
    return explained


def own_tables_missing(error: Exception) -> bool:
    """Whether a statement failed because a table or column of matviews itself is missing."""
    return is_missing(error, alias()) and names_own_table(error)


def explained(error: Exception, definition: ViewDefinition) -> Exception:
    """The error, explained if a `source()` row broke a constraint. Call it after the rollback."""
    if not isinstance(error, DatabaseError):
        return error
    try:
        with transaction.atomic(using=alias()):
            return refused(error, plan_of(definition, alias()).source, alias())
    except (InvalidView, DatabaseError):  # source() has changed, or the database is unreachable
        return error
