"""Doing a phase's work by keys where some rows fail, and parking the keys at fault.

A statement fails as a whole if one row cannot be computed or written. So the keys of a batch that
failed for its data are tried in halves, down to single keys, each in a savepoint of the batch. What
fails alone is parked, the rest is written.
"""

from collections.abc import Sequence

from ...contract import Batch
from ...databases import errors_of
from ...databases.keys import Key, Range, to_json
from ...definition import ViewDefinition
from ...models import PhaseRun
from ...phases import Phase
from ...queryset import BatchRunner, Plan, WindowProgress
from ..tracking.key_ranges import range_of
from ..transactions import alias
from ..work.shard_work import Work
from .bisection import PROBES, SAMPLE_KEYS, Bisection
from .parked_keys import (
    due_for_retry,
    find_parked,
    load_parked,
    max_parked,
    may_be_data_error,
    try_soon,
)

__all__ = [
    "can_split",
    "is_careful",
    "is_unfit",
    "may_split",
    "parking_obstacle",
    "run_dirty",
    "splitting_obstacle",
    "try_due",
    "walk_keys",
]


def is_careful(work: Work) -> bool:
    """Whether keys may have to be left out: a batch has just failed for its data, or some are."""
    return work.splitting or work.shard.parked_count > 0


def splitting_obstacle(plan: Plan) -> str:
    """Why a row that cannot be computed fails its whole phase; "" if its key can be parked.

    One that is computed, and only cannot be written, is parked all the same.
    """
    return plan.strategy.incremental_obstacle if plan.strategy.staged else ""


def parking_obstacle(definition: ViewDefinition, plan: Plan) -> str:
    """Why one bad row fails a phase as a whole; "" if its key can be parked."""
    if not max_parked(definition):
        return "max_parked_keys is 0"
    return splitting_obstacle(plan)


def can_split(plan: Plan, stage: str) -> bool:
    """Whether the batches of a full refresh can go by keys."""
    if splitting_obstacle(plan) and not stage:
        return False
    return bool(_runner(plan, stage).statements.exact)


def may_split(work: Work, tried: tuple[int, str], error: Exception) -> bool:
    """Whether a batch that failed may succeed by keys.

    Args:
        work: the work of the batch, which was rolled back.
        tried: refresh and phase of the run that failed.
        error: the error.
    """
    definition = work.definition
    if definition is None or tried[1] not in definition.derived:
        return False
    if not max_parked(definition) or not may_be_data_error(work, error):
        return False
    return not splitting_obstacle(work.plan) or not work.staging or is_unfit(work, error)


def is_unfit(work: Work, error: Exception) -> bool:
    """Whether a value may not have fit the staging table that was being filled."""
    errors = errors_of(alias())
    return work.staging and errors.does_not_fit(errors.code(error))


def _runner(plan: Plan, stage: str, within: Range = (None, None)) -> BatchRunner:
    return plan.batch_runner(stage) if stage else plan.key_batch_runner(within)


def try_due(work: Work, run: PhaseRun, limit: int, rows: int) -> int:
    """At the end of a full refresh in windows, try those of the parked keys that are due.

    Args:
        work: the work of the shard.
        run: the phase run.
        limit: of how many keys a statement may be.
        rows: how many rows the batch has written.

    Returns:
        How many rows the batch has written in all.
    """
    runner = _runner(work.checked_plan, run.stage)
    limit = min(limit, work.checked_plan.dialect.max_keys)
    bisection, due = Bisection(work, Phase(run.phase), runner, limit), due_for_retry(work, run)
    try_soon(work, run.phase, due[bisection.run(due) :])
    rows += bisection.finish(run)
    return rows + _retry_others(work, run, runner, limit, rows)


def walk_keys(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Run one batch of a full refresh, of the next `limit` keys, without the parked ones.

    The last batch tries those again that are due.

    Raises:
        DatabaseError: a statement failed, and not for its data, or too many keys did.
        NotAdvancing: the next keys do not come after these.
    """
    plan, phase = work.checked_plan, Phase(run.phase)
    runner = _runner(plan, run.stage, range_of(work))
    inserted_ranges = tuple((low, high) for low, high in run.inserted_ranges)
    progress = WindowProgress(cursor=run.cursor, inserted_ranges=inserted_ranges)
    limit = min(limit, plan.dialect.max_keys)
    keys, cursor = runner.next_keys(phase, progress, limit)
    left_out = find_parked(work, phase, keys, runner.statements)
    bisection = Bisection(work, phase, runner, limit)
    wanted = [key for key in keys if key not in left_out]
    everything = run.cursor is None and cursor is None and not inserted_ranges
    done = bisection.run(wanted, probed=len(wanted) >= (PROBES if everything else SAMPLE_KEYS))
    if done < len(wanted):
        cursor = to_json(wanted[done - 1])
    elif cursor is None:
        due = due_for_retry(work, run)
        try_soon(work, phase, due[bisection.run(due) :])
    rows = bisection.finish(run)
    run.keys_scanned += len(keys) - (len(wanted) - done)
    if cursor is None:
        rows += _retry_others(work, run, runner, limit, rows)
    return Batch(rows, cursor)


def run_dirty(
    work: Work, run: PhaseRun, keys: Sequence[Key], limit: int, *, is_last: bool
) -> tuple[int, int]:
    """Run a phase for dirty keys; parked ones are tried again.

    Args:
        work: the work of the shard.
        run: the phase run.
        keys: the keys.
        limit: of how many keys a statement may be.
        is_last: whether the run has no others.

    Returns:
        How many rows were written, and with how many keys, from the first, the batch is done.

    Raises:
        DatabaseError: as `walk_keys`; or a key is none that the view's columns can hold.
    """
    bisection = Bisection(work, Phase(run.phase), work.key_runner, limit)
    done = bisection.run(keys)
    bisection.check_keys()
    rows = bisection.finish(run)
    if is_last and done == len(keys):
        rows += _retry_others(work, run, work.key_runner, limit, rows)
    return rows, done


def _retry_others(work: Work, run: PhaseRun, runner: BatchRunner, limit: int, rows: int) -> int:
    """At the end of a refresh that wrote, try keys again that failed in it because of other rows.

    If that gets some through, the next refresh tries the rest.
    """
    runs = [other for other in work.runs if other.refresh_id == run.refresh_id]
    if not _is_last_phase(work, run) or not (rows or any(other.rows for other in runs)):
        return 0
    written = 0
    for phase in (Phase.UPDATE, Phase.INSERT):
        bisection = Bisection(work, phase, runner, limit)
        again = [
            key
            for key, row in load_parked(work, phase).items()
            if row.involves_others and row.last_seen >= run.refresh.requested_at
        ]
        bisection.run_again(again)
        written += bisection.unpark_succeeded()
        if bisection.passed:
            try_soon(work, phase, set(again).difference(bisection.passed))
    return written


def _is_last_phase(work: Work, run: PhaseRun) -> bool:
    """Whether no derived phase of the refresh follows."""
    assert work.definition is not None
    phases = [Phase(phase) for phase in run.refresh.phases if phase in work.definition.derived]
    return all(phase.order <= Phase(run.phase).order for phase in phases)
