"""What follows a commit: closing the refreshes that are done, and finding the next batch.

This is not part of the batch. Otherwise the batch would keep the view's rows locked while it waits
for the rows of the refresh and of the control. Operators write to these rows too, and on MariaDB
the batch's phase runs share-lock the refresh.
"""

import logging
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db.models import Exists, F, OuterRef, Q

from ... import signals
from ...databases.compiled import PK_PLACEHOLDER, CompiledSelect, update_rows
from ...logs import log
from ...models import PhaseRun, Refresh, ViewControl, ViewShard
from ...phases import Phase
from ...redact import bounded
from ...states import RefreshState, RunState, check_transition
from ...waits import Wait, WaitCode
from ..batches.as_of import times_of
from ..batches.stages import drop_stages
from ..failures.backoff import FAILED_RUNS, Ending, publish_ending, record_ending, wait
from ..failures.definition_digest import definition_digest
from ..failures.fingerprints import save_fingerprints
from ..locking import lock_available, update_if_current, update_unlocked
from ..messages import BatchReport, Message
from ..totals import ended
from ..transactions import alias, now, short_transaction, utc_now
from ..work.loader import load_work, load_works
from ..work.prerequisites import views_of_waiting
from ..work.shard_work import Work
from .governor import throttle
from .refresh_limit import release_permit

__all__ = ["NextStep", "close_finished", "close_finished_in_view"]

MAX_ERROR_LENGTH = 100_000  # characters, for the errors of all phases in all shards

logger = logging.getLogger(__name__)


class NextStep(NamedTuple):
    """What `close_finished` closed, and the batches that are due next."""

    #: The batch that is due in the shard, if any.
    message: Message | None = None
    #: The refreshes that were closed.
    closed: tuple[Refresh, ...] = ()
    #: The batches that are due in other shards, where waiting refreshes may begin now: of the view,
    #: and of views whose refreshes have waited for those that were closed.
    other_shards: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """All batches that are due."""
        return [*filter(None, [self.message]), *self.other_shards]


def close_finished(shard_id: int, report: BatchReport | None = None) -> NextStep:
    """Close the finished refreshes of a shard, and find the batch that is due.

    Requesters and workers call it after their commit, so that one of the two sees what the other
    has committed. Calling it again does no harm. If no process does, `matviews.maintain` does so a
    lease later. A worker passes the report of its batch: what it knows need not be read again.
    """
    closed, others_wait, is_over = _close_known(report)
    if is_over:
        return NextStep(closed=tuple(closed), other_shards=_due_after(closed, others_wait))
    while work := load_work(shard_id):
        others_wait = others_wait or work.others_wait
        if _merge(work) or (work.to_stop and _stop(work.shard)):
            continue
        new = _close_ended(work)
        closed += new
        if new and work.truncated:
            continue
        of_others = work.hook_shard.count > 1 and (closed or _is_cut(report))
        other_shards = _due_elsewhere(work) if of_others else ()
        return NextStep(
            _due(work), tuple(closed), (*other_shards, *_due_after(closed, others_wait))
        )
    return NextStep(closed=tuple(closed), other_shards=_due_after(closed, others_wait))


def close_finished_in_view(view_id: int, report: BatchReport | None = None) -> list[NextStep]:
    """Like `close_finished`, for all shards of a view, which are read in one query."""
    closed, others_wait, is_over = _close_known(report)
    if is_over:
        return [NextStep(closed=tuple(closed), other_shards=_due_after(closed, others_wait))]
    while works := load_works(view_id):
        others_wait = others_wait or works[0].others_wait
        stopped = [work.to_stop and _stop(work.shard) for work in works]
        if any(stopped) or _merge(works[0]):
            continue
        new = [refresh for work in works for refresh in _close_ended(work)]
        closed += new
        if not new or (len(works) == 1 and not works[0].truncated):
            break
    messages = [_due(work) for work in works] or [None]
    first = NextStep(messages[0], tuple(closed), _due_after(closed, others_wait))
    return [first, *map(NextStep, messages[1:])]


def _is_cut(report: BatchReport | None) -> bool:
    """Whether the view's other shards are new, and have been sent no message."""
    return bool(report and report.work and report.work.is_new)


def _close_known(report: BatchReport | None) -> tuple[list[Refresh], bool, bool]:
    """Close the refreshes that a batch has ended, if it knew of no others.

    Returns these refreshes, whether open ones of any view wait for others, and whether the view is
    known to have no open one left.

    What the batch has read of them is still true: once a refresh has begun, only the batches of its
    view's one shard change its runs, nothing is merged into it, and no request joins it.
    """
    work: Work | None = report.work if report else None
    if work is None or work.hook_shard.count > 1 or work.truncated:
        return [], False, False
    if len(work.ended_refreshes()) < len(work.refreshes):
        return [], False, False
    closed, left = _close_ended(work), _open_refreshes(alias()).run(work.shard.view_id)
    others_wait = any(waits for _view, waits in left)
    return closed, others_wait, all(view != work.shard.view_id for view, _ordered in left)


@lru_cache(maxsize=8)
def _open_refreshes(using: str) -> CompiledSelect:
    """Which have an open refresh: of a view and those that wait for others; and whether any."""
    of_interest = Q(view=PK_PLACEHOLDER) | Q(waits_for_upstream=True)
    refreshes = Refresh.objects.using(using).filter(of_interest, state=RefreshState.OPEN)
    return CompiledSelect(refreshes.order_by().values_list("view", "waits_for_upstream").distinct())


def _close_ended(work: Work) -> list[Refresh]:
    closed = [refresh for refresh in work.ended_refreshes() if _close(refresh, work)]
    work.refreshes = [refresh for refresh in work.refreshes if refresh not in closed]
    return closed


def _due(work: Work) -> Message | None:
    work.create_runs()
    if not (work.shard.view.held or work.waits) and (until := work.quiet_until):
        view = work.shard.view
        reason = Wait(WaitCode.QUIET_HOURS, {"hours": str(view.quiet_hours)})
        wait(view, until - utc_now(), reason)
    return None if throttle(work) else work.next_message()


def _due_elsewhere(work: Work) -> tuple[Message, ...]:
    due = map(_due, load_works(work.shard.view_id))
    return tuple(message for message in due if message and message.shard_id != work.shard.pk)


def _due_after(closed: list[Refresh], others_wait: bool) -> tuple[Message, ...]:
    """The batches that are due in views whose refreshes have waited for some that were closed."""
    views = views_of_waiting(closed) if closed and others_wait else []
    due = [_due(work) for view in views for work in load_works(view)]
    return tuple(message for message in due if message)


def _merge(work: Work) -> bool:
    """Merge refreshes that request the same and that no batch has begun; whether there were any.

    Nothing is merged while a shard is locked or a batch is claimed: that batch may be about to
    begin one of them, and may already have determined which changes the refreshes that it has read
    must include. Its worker merges them later.
    """
    alike = work.mergeable()
    if not alike:
        return False
    with short_transaction():
        shards = lock_available(Q(view=work.shard.view_id))
        present = ViewShard.objects.filter(view=work.shard.view_id).count()
        if len(shards) < present or any(shard.is_claimed for shard in shards):
            return False
        return sum(map(_merge_alike, alike)) > 0


def _merge_alike(keys: list[int]) -> bool:
    """Merge equal refreshes, even those not read, into one of those with these primary keys.

    A refresh that others were merged into is never merged itself, because the others end with it.
    Primary keys do not follow the order of commits, so a refresh with a lower one does not take
    precedence.
    """
    begun = Exists(PhaseRun.objects.filter(refresh=OuterRef("pk")))
    is_merge_target = Exists(
        Refresh.objects.filter(merged_into=OuterRef("pk"), state=RefreshState.MERGED)
    )
    waiting = Refresh.objects.filter(~begun, state=RefreshState.OPEN, stop_requested=False)
    known = waiting.filter(pk__in=keys).annotate(is_merge_target=is_merge_target)
    known = known.order_by("-is_merge_target", "pk").select_for_update(skip_locked=True)
    if not (first := known.first()):
        return False
    alike = waiting.filter(
        ~is_merge_target, view=first.view_id, phases=first.phases, batch_size=first.batch_size,
        forced=first.forced, waits_for_upstream=False,
    )  # fmt: skip
    alike = alike.exclude(pk=first.pk)
    return update_unlocked(alike, state=RefreshState.MERGED, merged_into_id=first.pk)


def _stop(shard: ViewShard) -> bool:
    """End the refreshes that are to stop; False if a batch is running: its worker does so later."""
    with short_transaction():
        free = update_if_current(shard.pk, shard.token, token=F("token") + 1)
        if free and (work := load_work(shard.pk)):
            work.create_runs({refresh.pk for refresh in work.refreshes if refresh.stop_requested})
            work.stop()
            work.save()
    return free


def _close(refresh: Refresh, work: Work) -> bool:
    runs = [run for run in work.runs if run.refresh_id == refresh.pk]
    if work.hook_shard.count > 1:
        runs = list(PhaseRun.objects.filter(refresh=refresh).select_related("merged_into"))
        if len(runs) < len(refresh.phases) * work.hook_shard.count or any(
            run.active for run in runs
        ):
            return False
    _fill_in(refresh, runs)
    ending = _save_closed(refresh, runs, work)
    if ending is None:
        return False
    release_permit(refresh.view_id)
    drop_stages(runs)
    log(
        logger, logging.WARNING if refresh.state == RefreshState.FAILED else logging.INFO,
        "refresh finished", view=work.shard.view.label, refresh=refresh.pk,
        state=RefreshState(refresh.state), rows=sum(run.rows for run in runs), error=refresh.error,
    )  # fmt: skip
    sender = work.definition and work.definition.model
    signals.refresh_finished.send_robust(sender=sender, refresh=refresh)
    publish_ending(ending, refresh)
    return True


def _fill_in(refresh: Refresh, runs: list[PhaseRun]) -> None:
    failed = [run for run in runs if run.state in FAILED_RUNS]
    stopped = any(run.state == RunState.STOPPED for run in runs)
    state = RefreshState.STOPPED if stopped else RefreshState.SUCCEEDED
    state = RefreshState.FAILED if failed else state
    check_transition(RefreshState(refresh.state), state)
    refresh.state = state
    refresh.error = bounded(_error(failed), MAX_ERROR_LENGTH)
    refresh.started_at = min((run.started_at for run in runs if run.started_at), default=None)
    refresh.finished_at = now()
    leaders = {run.merged_into.refresh_id if run.merged_into else None for run in runs}
    if None not in leaders:
        refresh.merged_into_id = max(leader for leader in leaders if leader)


def _error(failed: list[PhaseRun]) -> str:
    """The error of each phase; phases with the same error share a line."""
    phases: dict[str, dict[str, None]] = {}
    for run in failed:
        phases.setdefault(run.error, {})[run.phase] = None
    return "\n".join(f"{', '.join(names)}: {error}" for error, names in phases.items())


def _save_closed(refresh: Refresh, runs: list[PhaseRun], work: Work) -> Ending | None:
    """Save the end of a refresh once, however many processes see it at the same time.

    The refreshes that were merged into it before it began end with it, in one statement.

    Returns:
        What the end means for the view; None if another process has saved it.
    """
    failed = refresh.state == RefreshState.FAILED
    digest = definition_digest(work.definition) if failed else ""
    success_times = _success_times(runs)
    if not _has_parked(work):
        success_times |= times_of(runs)
    fields = ("state", "error", "started_at", "finished_at", "merged_into_id")
    still_open, end = {"id": refresh.pk, "state": RefreshState.OPEN}, _values(refresh, fields)
    with short_transaction():
        if not update_rows(Refresh, still_open, end, using=alias()):
            return None
        if refresh.pk in work.merge_targets:
            merged = Refresh.objects.filter(merged_into=refresh, state=RefreshState.MERGED)
            shared = ("state", "error", "started_at", "finished_at", "stop_requested")
            merged.update(**_values(refresh, shared))
        update_rows(
            ViewControl,
            {"id": refresh.view_id},
            {"governed_since": None, **success_times},
            ended(refresh.state, runs),
            using=alias(),
        )
        save_fingerprints(refresh.view, runs)
        return record_ending(refresh, runs, work.definition, digest)


def _has_parked(work: Work) -> bool:
    """Whether a key of the view is parked, in whichever shard."""
    if work.shard.parked_count or work.hook_shard.count == 1:
        return work.shard.parked_count > 0
    return ViewShard.objects.filter(view=work.shard.view_id, parked_count__gt=0).exists()


def _values(refresh: Refresh, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(refresh, name) for name in names}


def _success_times(runs: list[PhaseRun]) -> dict[str, datetime]:
    """When each phase that succeeded in every shard did so, by field of the control."""
    unfinished = {run.phase for run in runs if run.state != RunState.SUCCEEDED}
    times: dict[str, datetime] = {}
    for run in runs:
        if run.phase not in unfinished and run.finished_at:
            field = Phase(run.phase).success_field
            times[field] = max(run.finished_at, times.get(field, run.finished_at))
    return times
