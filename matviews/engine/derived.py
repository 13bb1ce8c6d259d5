"""Phases that are derived from a view's `source()`: what the bookkeeping keeps for them."""

import logging
from collections.abc import Iterable
from contextlib import nullcontext, suppress

from django.db import DatabaseError, connections, transaction

from ..contract import Batch
from ..databases import StagingRefused
from ..definition import ViewDefinition
from ..exceptions import InvalidView, ViewNotReady
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..queryset import (
    Plan,
    Walk,
    drop_stage,
    fill_stage,
    fingerprint_of,
    is_missing,
    names_own_table,
    plan_of,
    refused,
    stage_name,
    stages,
    unmigrated,
)
from ..redact import in_one_line
from ..states import RefreshState, RunState
from .checkpoints import fix_checkpoint
from .dirty_keys import count_keys, dirty_keys, load_keys, save_dirty, short
from .transactions import alias, short_transaction
from .work import Work

__all__ = [
    "changed_phases",
    "do_derived",
    "drop_forgotten_stages",
    "drop_stages",
    "explained",
    "not_migrated",
    "save_fingerprints",
    "sweep_stages",
]

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5  # times that a definition may change in one run


def do_derived(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Do one batch of a derived phase, of about `limit` keys, and note in the run where it stands.

    Raises:
        InvalidView: `source()` cannot be derived from, or is another one again and again.
        DatabaseError: what the database made of it.
    """
    plan = work.plan
    if run.fingerprint != plan.fingerprint or _lost_keys(work, run):
        plan = _start(work, run, plan)
    if run.dirty_after is not None:
        return _do_dirty(work, run, limit)
    if plan.strategy.staged and not run.stage:
        _stage(work, run, plan)
    phase = Phase(run.phase)
    inserted_ranges = tuple((low, high) for low, high in run.inserted_ranges)
    walk = Walk(cursor=run.cursor, inserted_ranges=inserted_ranges)
    if plan.strategy.staged and not run.stage:
        walked = plan.walker().step_whole(phase, walk)
    else:
        walked = plan.walker(run.stage).step(phase, walk, limit)
    run.inserted_ranges = list(walked.inserted_ranges)
    run.keys_scanned += walked.keys_scanned
    return Batch(walked.rows, walked.cursor)


def _do_dirty(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Do one batch of dirty keys. The cursor is a row of them, and how many of its keys are done."""
    dirty = dirty_keys(work, run)
    if count_keys(dirty) > limit:
        save_dirty(work)
    row, done = run.cursor or (0, 0)
    dirty = [each for each in dirty if not row or (each.pk or 0) >= row]
    if dirty and dirty[0].pk != row:
        done = 0
    taken, left = [], done + limit
    while dirty and left > 0:
        taken.append(dirty.pop(0))
        left -= taken[-1].count
    load_keys(taken)
    keys = [key for each in taken for key in each.keys or ()][done : done + limit]
    rows = work.walker.step_keys(Phase(run.phase), keys)
    run.keys_scanned += len(keys)
    if left < 0:
        return Batch(rows, [taken[-1].pk, taken[-1].count + left])
    return Batch(rows, [dirty[0].pk, 0] if dirty else None)


def _lost_keys(work: Work, run: PhaseRun) -> bool:
    """Whether the dirty keys of a run were forgotten on its way: other changes concern all keys since."""
    return run.dirty_after is not None and run.dirty_after < work.shard.full_refresh_after


def _start(work: Work, run: PhaseRun, plan: Plan) -> Plan:
    """Begin a run, or begin it again: its definition or its keys have changed on the way; by which plan."""
    if _lost_keys(work, run):
        run.dirty_after, run.full_refresh_reason, run.estimate = (
            None,
            work.shard.full_refresh_reason,
            None,
        )
        logger.info("all keys are dirty view=%s phase=%s", work.shard.view.label, run.phase)
    if run.fingerprint not in ("", plan.fingerprint) and run.batches:
        run.restarts += 1
        run.dirty_after = None
        run.checkpoint = run.checkpoint and run.checkpoint._replace(fingerprint=None)
        logger.info("definition changed view=%s phase=%s", work.shard.view.label, run.phase)
    if run.restarts > MAX_RESTARTS:
        raise InvalidView(
            f"{work.shard.view.label}.source() was another one {run.restarts} times during this "
            f"refresh. If two versions of the code are at work, refresh again when one is gone; "
            f"else make it give the same query in every process."
        )
    left = _left_by_others(work, run, plan)
    run.fingerprint, run.cursor, run.keys_scanned = plan.fingerprint, None, 0
    fix_checkpoint(work, run)
    if run.dirty_after is None:
        run.inserted_ranges, run.stage = left
        if not plan.strategy.staged and not run.stage:
            plan = _checked(run, plan)
    else:
        run.estimate = count_keys(dirty_keys(work, run))
    return plan


def _checked(run: PhaseRun, plan: Plan) -> Plan:
    """The plan, or one that is staged, where the database's columns are not what the models say."""
    checked = plan.checked()
    if checked is not plan:
        run.full_refresh_reason = short(checked.strategy.reason)
    return checked


def _left_by_others(work: Work, run: PhaseRun, plan: Plan) -> tuple[list[object], str]:
    """What other runs of the refresh have filled, and their staging table if it is the refresh's."""
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


def _stage(work: Work, run: PhaseRun, plan: Plan) -> None:
    """Fill the staging table of a refresh; without the right to make one, the phase goes without."""
    run.stage = stage_name(run.refresh_id, alias())
    for other in work.runs:  # with another definition, they would not know the table any more
        if other.stage == run.stage and other.fingerprint != run.fingerprint:
            other.stage = ""
            work.touch(other)
    try:
        rows = fill_stage(run.stage, plan.source, plan.dialect)
    except StagingRefused as error:
        run.stage = ""
        logger.warning(
            "no staging table, so each phase is one statement view=%s reason=%s",
            work.shard.view.label, in_one_line(str(error)),
        )  # fmt: skip
        return
    logger.info("source staged view=%s stage=%s rows=%s", work.shard.view.label, run.stage, rows)
    if run.phase == Phase.INSERT:
        run.estimate = rows


def not_migrated(error: Exception, definition: ViewDefinition) -> Exception:
    """The error of a statement, or what a view lacks in the database if that is why; after the rollback."""
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


def lacks_own_tables(error: Exception) -> bool:
    """Whether a statement failed for a table or column of matviews itself that is not there."""
    return is_missing(error, alias()) and names_own_table(error)


def explained(error: Exception, definition: ViewDefinition) -> Exception:
    """The error of a batch or repair, in words if a row of `source()` broke a constraint; after the rollback."""
    if not isinstance(error, DatabaseError):
        return error
    try:
        with transaction.atomic(using=alias()):
            return refused(error, plan_of(definition, alias()).source, alias())
    except (InvalidView, DatabaseError):  # source() is another one by now, or the database is gone
        return error


def drop_stages(runs: Iterable[PhaseRun]) -> None:
    """Drop the staging table of a refresh that has been closed."""
    for name in {run.stage for run in runs if run.stage}:
        _drop_stage(name)


def sweep_stages() -> None:
    """Drop the staging tables of refreshes that are not open: a process was killed in between."""
    left = stages(alias())
    still_open = Refresh.objects.filter(pk__in=left, state=RefreshState.OPEN)
    for refresh in left.keys() - set(still_open.values_list("pk", flat=True)):
        logger.warning("staging table of a closed refresh swept stage=%s", left[refresh])
        _drop_stage(left[refresh])


def _drop_stage(name: str) -> None:
    """Drop a staging table within limits: somebody may be reading it, as a dump does.

    MariaDB and MySQL drop it in a session of its own, which has its limit.
    """
    own = connections[alias()].features.can_rollback_ddl
    with short_transaction() if own else nullcontext():
        drop_stage(name, alias())


def drop_forgotten_stages() -> None:
    """Drop the staging tables of refreshes that no row knows: MariaDB keeps those of tests that were rolled back."""
    left = stages(alias())
    known = set(Refresh.objects.filter(pk__in=left).values_list("pk", flat=True))
    for refresh in left.keys() - known:
        drop_stage(left[refresh], alias(), unread=True)


def changed_phases(definition: ViewDefinition, control: ViewControl) -> list[Phase]:
    """The phases that have last succeeded with another definition than that of the code."""
    known = {
        phase: control.fingerprints.get(phase) for phase in Phase if phase in definition.derived
    }
    if not any(known.values()):
        return []
    now = fingerprint_of(definition, alias())
    return [phase for phase, before in known.items() if before and now and before != now]


def save_fingerprints(control: ViewControl, runs: Iterable[PhaseRun]) -> None:
    """Keep the definition that each derived phase has succeeded with; in a transaction."""
    worked = [(run, (run.merged_into or run).fingerprint) for run in runs]
    unfinished = {run.phase for run, _fingerprint in worked if run.state != RunState.SUCCEEDED}
    new = {r.phase: text for r, text in worked if text and r.phase not in unfinished}
    if new.items() - control.fingerprints.items():
        fresh = ViewControl.objects.select_for_update().get(pk=control.pk)
        fresh.fingerprints |= new
        fresh.save(update_fields=["fingerprints"])
        control.fingerprints = fresh.fingerprints
