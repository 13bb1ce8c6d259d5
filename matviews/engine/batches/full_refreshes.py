"""Batches of full refreshes that read the source: in windows, by keys, or through a stage."""

import logging
from dataclasses import replace

from ...contract import Batch
from ...databases import StagingRefused
from ...logs import log
from ...models import PhaseRun
from ...phases import Phase
from ...queryset import Plan, WindowProgress, fill_stage, stage_name
from ...states import RefreshStrategy
from ..parking.parked_keys import has_unfit, load_parked, unpark
from ..parking.splitting import can_split, is_careful, try_due, walk_keys
from ..tracking.key_ranges import range_of
from ..transactions import alias
from ..work.shard_work import Work

__all__ = ["progress_of", "recorded", "walk"]

logger = logging.getLogger(__name__)


def walk(work: Work, run: PhaseRun, plan: Plan, limit: int) -> Batch:
    """Run one batch of a full refresh from the source.

    Windows leave the parked keys out, if a statement can name them all. Otherwise, and where a
    batch has just failed for its data, it is the other keys that are listed.
    """
    if plan.strategy.staged and not run.stage and not _goes_unstaged(work, run, plan):
        _stage(work, run, plan)
    unstaged = plan.strategy.staged and run.strategy == RefreshStrategy.FULL
    by_keys, phase = can_split(plan, run.stage), Phase(run.phase)
    without = load_parked(work, phase) if by_keys else {}
    if by_keys and (work.splitting or unstaged or len(without) > plan.dialect.max_keys):
        return walk_keys(work, run, limit)
    if plan.strategy.staged and not run.stage:
        walked = plan.batch_runner().run_whole(phase, progress_of(run))
    else:
        runner = plan.batch_runner(run.stage, without, range_of(work))
        walked = runner.run_window(phase, progress_of(run), limit)
    batch = recorded(run, walked)
    if is_careful(work) and batch.cursor is None:
        if by_keys:
            return replace(batch, rows=try_due(work, run, limit, batch.rows))
        unpark(work, load_parked(work, phase).values())  # it has left out none
    return batch


def progress_of(run: PhaseRun) -> WindowProgress:
    """How far a run has come."""
    inserted_ranges = tuple((low, high) for low, high in run.inserted_ranges)
    return WindowProgress(cursor=run.cursor, inserted_ranges=inserted_ranges)


def recorded(run: PhaseRun, walked: WindowProgress) -> Batch:
    """The batch of a window, whose progress is recorded in the run."""
    run.inserted_ranges = list(walked.inserted_ranges)
    run.keys_scanned += walked.keys_scanned
    return Batch(walked.rows, walked.cursor)


def _goes_unstaged(work: Work, run: PhaseRun, plan: Plan) -> bool:
    """Whether a run of a staged view goes by keys, because its staging has failed for some rows."""
    if work.splitting or (run.batches and is_careful(work)):
        run.strategy = RefreshStrategy.FULL if can_split(plan, "") else run.strategy
    return run.strategy == RefreshStrategy.FULL


def _stage(work: Work, run: PhaseRun, plan: Plan) -> None:
    """Create and fill a refresh's staging table; without the right to, the phase uses none.

    If a value does not fit the view's columns, it takes every value that can be computed.
    """
    run.stage = stage_name(run.refresh_id, alias(), raw=work.unfit or has_unfit(work))
    # The table is replaced, so runs of another definition no longer have one.
    for other in work.runs:
        of_refresh = other.refresh_id == run.refresh_id and other.stage
        if of_refresh and other.fingerprint != run.fingerprint:
            other.stage = ""
            work.touch(other)
    work.staging = True
    try:
        rows = fill_stage(run.stage, plan.source, plan.dialect)
    except StagingRefused as error:
        run.stage, work.staging = "", False
        sentence = "no staging table, so each phase runs as one statement"
        log(logger, logging.WARNING, sentence, view=work.shard.view.label, reason=error)
        return
    work.staging = False
    view = work.shard.view.label
    log(logger, logging.INFO, "source staged", view=view, stage=run.stage, rows=rows)
    if run.phase == Phase.INSERT:
        run.estimate = rows
