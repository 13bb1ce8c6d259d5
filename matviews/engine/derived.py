"""Phases that are derived from a view's `source()`: what the bookkeeping keeps for them."""

import logging
from collections.abc import Iterable

from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..mixin import Batch
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..queryset import (
    Plan,
    Walk,
    drop_stage,
    fill_stage,
    fingerprint_of,
    stage_name,
    stages,
)
from ..states import RefreshState, RunState
from .databases import alias
from .tracking import begin_tracked, count_keys, dirty_keys, load_keys, save_dirty
from .work import Work

__all__ = ["changed_phases", "do_derived", "drop_stages", "note_fingerprints", "sweep_stages"]

logger = logging.getLogger(__name__)

MOST_RESTARTS = 5  # times that a definition may change in one run


def do_derived(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Do one batch of a derived phase, of about `limit` keys, and note in the run where it stands.

    Raises:
        InvalidView: `source()` cannot be derived from, or is another one again and again.
        DatabaseError: what the database made of it.
    """
    plan = work.plan
    if run.fingerprint != plan.fingerprint:
        _start(work, run, plan)
    if run.since is not None:
        return _do_dirty(work, run, limit)
    if plan.path.staged and not run.stage:
        _stage(work, run, plan)
    filled = tuple((low, high) for low, high in run.filled)
    walked = plan.walker(run.stage).step(
        Phase(run.phase), Walk(cursor=run.cursor, filled=filled), limit
    )
    run.filled = list(walked.filled)
    run.looked += walked.looked
    return Batch(walked.rows, walked.cursor)


def _do_dirty(work: Work, run: PhaseRun, limit: int) -> Batch:
    """Do one batch of dirty keys. The cursor is a row of them, and how many of its keys are done."""
    plan, dirty = work.plan, dirty_keys(work, run)
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
    load_keys(plan, taken)
    keys = [key for each in taken for key in each.keys or ()][done : done + limit]
    rows = work.walker.step_keys(Phase(run.phase), keys)
    run.looked += len(keys)
    if left < 0:
        return Batch(rows, [taken[-1].pk, taken[-1].count + left])
    return Batch(rows, [dirty[0].pk, 0] if dirty else None)


def _start(work: Work, run: PhaseRun, plan: Plan) -> None:
    """Begin a run, or begin it anew: its definition has changed on the way."""
    if run.fingerprint and run.batches:
        run.restarts += 1
        run.covers = run.since = None
        logger.info("definition changed view=%s phase=%s", work.stripe.view.label, run.phase)
    if run.restarts > MOST_RESTARTS:
        raise InvalidView(
            f"{work.stripe.view.label}.source() was another one {run.restarts} times during this "
            f"refresh. If two versions of the code are at work, refresh again when one is gone; "
            f"else make it give the same query in every process."
        )
    left = _left_by_others(work, run, plan)
    run.fingerprint, run.cursor, run.looked = plan.fingerprint, None, 0
    begin_tracked(work, run)
    if run.since is None:
        run.filled, run.stage = left
    else:
        run.estimate = count_keys(dirty_keys(work, run))


def _left_by_others(work: Work, run: PhaseRun, plan: Plan) -> tuple[list[object], str]:
    """What other runs of the refresh have filled, and their staging table if it is the refresh's."""
    filled: list[object] = []
    stage = ""
    for other in work.runs:
        leader: PhaseRun = other.merged_into or other
        if other.refresh_id == run.refresh_id and leader.fingerprint == plan.fingerprint:
            filled = leader.filled if leader.phase == Phase.INSERT else filled
            stage = other.stage or stage
    return filled, stage


def _stage(work: Work, run: PhaseRun, plan: Plan) -> None:
    run.stage = stage_name(run.refresh_id)
    for other in work.runs:  # with another definition, they would not know the table any more
        if other.stage == run.stage and other.fingerprint != run.fingerprint:
            other.stage = ""
            work.touch(other)
    rows = fill_stage(run.stage, plan.source, plan.dialect)
    logger.info("source staged view=%s stage=%s rows=%s", work.stripe.view.label, run.stage, rows)
    if run.phase == Phase.INSERT:
        run.estimate = rows


def drop_stages(runs: Iterable[PhaseRun]) -> None:
    """Drop the staging table of a refresh that has been closed."""
    for name in {run.stage for run in runs if run.stage}:
        drop_stage(name, alias())


def sweep_stages() -> None:
    """Drop the staging tables of refreshes that are not open: a process was killed in between."""
    left = stages(alias())
    still_open = Refresh.objects.filter(pk__in=left, state=RefreshState.OPEN)
    for refresh in left.keys() - set(still_open.values_list("pk", flat=True)):
        logger.warning("staging table of a closed refresh swept stage=%s", left[refresh])
        drop_stage(left[refresh], alias())


def changed_phases(definition: ViewDefinition, control: ViewControl) -> list[Phase]:
    """The phases that have last succeeded with another definition than that of the code."""
    known = {
        phase: control.fingerprints.get(phase) for phase in Phase if phase in definition.derived
    }
    if not any(known.values()):
        return []
    now = fingerprint_of(definition, alias())
    return [phase for phase, before in known.items() if before and now and before != now]


def note_fingerprints(control: ViewControl, runs: Iterable[PhaseRun]) -> None:
    """Keep the definition that each derived phase has succeeded with; in a transaction."""
    worked = [(run, (run.merged_into or run).fingerprint) for run in runs]
    unfinished = {run.phase for run, _fingerprint in worked if run.state != RunState.SUCCEEDED}
    new = {r.phase: text for r, text in worked if text and r.phase not in unfinished}
    if new.items() - control.fingerprints.items():
        fresh = ViewControl.objects.select_for_update().get(pk=control.pk)
        fresh.fingerprints |= new
        fresh.save(update_fields=["fingerprints"])
        control.fingerprints = fresh.fingerprints
