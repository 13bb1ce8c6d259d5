"""What follows a commit: close the refreshes that are done, and tell which batch is due.

Not within the batch: it would hold the view's rows while it waits for the rows of the refresh and of the control,
which people write to as well, and on MariaDB its phase runs have locked the refresh for reading by then.
"""

import logging
from datetime import datetime
from typing import NamedTuple

from django.db.models import F
from django.utils import timezone

from .. import signals
from ..models import PhaseRun, Refresh, Stripe, ViewControl
from ..phases import Phase
from ..states import RefreshState, RunState, check_transition
from .databases import claim, short_transaction
from .derived import drop_stages, note_fingerprints
from .messages import Message
from .work import Work, load_work, load_works

__all__ = ["Settlement", "settle", "settle_view"]

logger = logging.getLogger(__name__)


class Settlement(NamedTuple):
    """What `settle` found: the batch that is due, if any, and the refreshes that it closed."""

    message: Message | None = None
    closed: tuple[Refresh, ...] = ()


def settle(stripe_id: int) -> Settlement:
    """Close what is done in a stripe and tell which batch is due.

    To be called after a commit, by whoever asked for a refresh or worked on one: between the two,
    one sees what the other has committed. Calling it again does no harm; where it is not called,
    `watch` does it a lease later.
    """
    work = load_work(stripe_id)
    return _settle(work) if work else Settlement()


def settle_view(view_id: int) -> list[Settlement]:
    """`settle` for each stripe of a view, having read them all in one query."""
    return [_settle(work) for work in load_works(view_id)]


def _settle(work: Work) -> Settlement:
    if work.to_stop and _stop(work.stripe):
        return settle(work.stripe.pk)
    closed = tuple(refresh for refresh in work.ended_refreshes() if _close(refresh, work))
    work.admit()
    return Settlement(work.next_message(), closed)


def _stop(stripe: Stripe) -> bool:
    """End what is to be stopped; False if somebody is at work, who settles afterwards."""
    with short_transaction():
        free = claim(stripe.pk, stripe.token, token=F("token") + 1)
        if free and (work := load_work(stripe.pk)):
            work.admit()
            work.stop()
            work.save()
    return free


def _close(refresh: Refresh, work: Work) -> bool:
    runs = [run for run in work.runs if run.refresh_id == refresh.pk]
    if work.share.count > 1:
        runs = list(PhaseRun.objects.filter(refresh=refresh).select_related("merged_into"))
        if len(runs) < len(refresh.phases) * work.share.count or any(run.active for run in runs):
            return False
    _fill_in(refresh, runs)
    if not _save_closed(refresh, runs):
        return False
    drop_stages(runs)
    logger.log(
        logging.ERROR if refresh.state == RefreshState.FAILED else logging.INFO,
        "refresh finished view=%s refresh=%s state=%s rows=%s error=%s",
        work.stripe.view.label, refresh.pk, refresh.state, sum(run.rows for run in runs),
        refresh.error,
    )  # fmt: skip
    sender = work.definition and work.definition.model
    signals.refresh_finished.send_robust(sender=sender, refresh=refresh)
    return True


def _fill_in(refresh: Refresh, runs: list[PhaseRun]) -> None:
    failed = [run for run in runs if run.state in (RunState.FAILED, RunState.NOT_CONVERGING)]
    stopped = any(run.state == RunState.STOPPED for run in runs)
    state = RefreshState.STOPPED if stopped else RefreshState.SUCCEEDED
    state = RefreshState.FAILED if failed else state
    check_transition(RefreshState(refresh.state), state)
    refresh.state = state
    refresh.error = "\n".join(dict.fromkeys(f"{run.phase}: {run.error}" for run in failed))
    refresh.started_at = min((run.started_at for run in runs if run.started_at), default=None)
    refresh.finished_at = timezone.now()
    leaders = {run.merged_into.refresh_id if run.merged_into else None for run in runs}
    if None not in leaders:
        refresh.merged_into_id = max(leader for leader in leaders if leader)


def _save_closed(refresh: Refresh, runs: list[PhaseRun]) -> bool:
    """Save the end of a refresh once, however many processes see it at the same moment."""
    success_times = _success_times(runs)
    fields = ("state", "error", "started_at", "finished_at", "merged_into_id")
    with short_transaction():
        open_refresh = Refresh.objects.filter(pk=refresh.pk, state=RefreshState.OPEN)
        if not open_refresh.update(**{name: getattr(refresh, name) for name in fields}):
            return False
        if success_times:
            ViewControl.objects.filter(pk=refresh.view_id).update(**success_times)
        note_fingerprints(refresh.view, runs)
    return True


def _success_times(runs: list[PhaseRun]) -> dict[str, datetime]:
    """When each phase that succeeded in every stripe had done so, by field of the control."""
    unfinished = {run.phase for run in runs if run.state != RunState.SUCCEEDED}
    times: dict[str, datetime] = {}
    for run in runs:
        if run.phase not in unfinished and run.finished_at:
            field = Phase(run.phase).success_field
            times[field] = max(run.finished_at, times.get(field, run.finished_at))
    return times
