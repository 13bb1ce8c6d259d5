"""The end of a refresh: closed in a transaction that sees it has nothing left to do, told after the commit."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.utils import timezone

from .. import signals
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..registry import registry
from ..states import RefreshState, RunState, check_transition
from .derived import drop_stages, note_fingerprints
from .messages import Closed
from .work import Work

__all__ = ["close_ended", "tell"]

logger = logging.getLogger(__name__)

PART = 1_000  # refreshes that are closed by one statement


def close_ended(work: Work) -> tuple[Closed, ...]:
    """Close the refreshes that have nothing left to do, in this stripe and the others. In a transaction.

    Each is closed once, however many processes see its end. Call `tell` after the commit.
    """
    ended, closed = _ended(work), []
    for at in range(0, len(ended), PART):
        closed += _close(ended[at : at + PART])
    return tuple(closed)


def tell(closed: Iterable[Closed]) -> None:
    """Drop the staging tables of closed refreshes, and tell the log and the signals of their end."""
    for each in closed:
        refresh, label = each.refresh, each.refresh.view.label
        drop_stages(each.runs)
        logger.log(
            logging.ERROR if refresh.state == RefreshState.FAILED else logging.INFO,
            "refresh finished view=%s refresh=%s state=%s rows=%s error=%s",
            label, refresh.pk, refresh.state, sum(run.rows for run in each.runs), refresh.error,
        )  # fmt: skip
        sender = registry.find(label).model if label in registry else None
        signals.refresh_finished.send_robust(sender=sender, refresh=refresh)


def _ended(work: Work) -> list[Closed]:
    """The refreshes that have ended here, and in the other stripes as far as these have committed."""
    ended, runs = work.ended_refreshes(), work.runs
    if ended and work.share.count > 1:
        runs = list(PhaseRun.objects.filter(refresh__in=ended).select_related("merged_into"))
    of_refresh: dict[int, list[PhaseRun]] = defaultdict(list)
    for run in runs:
        of_refresh[run.refresh_id].append(run)
    everywhere = (Closed(each, tuple(of_refresh[each.pk])) for each in ended)
    return [
        each
        for each in everywhere
        if len(each.runs) == len(each.refresh.phases) * work.share.count
        and not any(run.active for run in each.runs)
    ]


def _still_open(ended: list[Closed]) -> list[Closed]:
    """Those that nobody else has closed, nor can before the present transaction ends."""
    still_open = Refresh.objects.filter(
        pk__in=[each.refresh.pk for each in ended], state=RefreshState.OPEN
    )
    still_open.update(state=RefreshState.OPEN)
    left = set(still_open.values_list("pk", flat=True))
    return [each for each in ended if each.refresh.pk in left]


def _close(ended: list[Closed]) -> list[Closed]:
    """Close some; those that were merged into one of them end as it does, by one statement."""
    if len(ended) > 1:
        ended = _still_open(ended)
    alike: dict[tuple[Any, ...], list[Closed]] = defaultdict(list)
    now = timezone.now()
    for each in ended:
        _fill_in(each, now)
        alike[tuple(getattr(each.refresh, name) for name in _OF_THE_END)].append(each)
    closed = [each for values, some in alike.items() if _save(some, values) for each in some]
    if closed:
        _note_success(closed)
    return closed


def _fill_in(ended: Closed, now: datetime) -> None:
    refresh, runs = ended
    failed = [run for run in runs if run.state in (RunState.FAILED, RunState.NOT_CONVERGING)]
    stopped = any(run.state == RunState.STOPPED for run in runs)
    state = RefreshState.STOPPED if stopped else RefreshState.SUCCEEDED
    state = RefreshState.FAILED if failed else state
    check_transition(RefreshState(refresh.state), state)
    refresh.state = state
    refresh.error = "\n".join(dict.fromkeys(f"{run.phase}: {run.error}" for run in failed))
    refresh.started_at = min((run.started_at for run in runs if run.started_at), default=None)
    refresh.finished_at = now
    leaders = {run.merged_into.refresh_id if run.merged_into else None for run in runs}
    if None not in leaders:
        refresh.merged_into_id = max(leader for leader in leaders if leader)


_OF_THE_END = ("state", "error", "started_at", "finished_at", "merged_into_id")


def _save(alike: list[Closed], values: tuple[Any, ...]) -> bool:
    """Save one and the same end of refreshes; False if another has."""
    still_open = Refresh.objects.filter(
        pk__in=[each.refresh.pk for each in alike], state=RefreshState.OPEN
    )
    return still_open.update(**dict(zip(_OF_THE_END, values, strict=True))) > 0


def _note_success(closed: list[Closed]) -> None:
    """Keep when each phase has succeeded in every stripe, and with which definition."""
    control, times = closed[0].refresh.view, dict[str, datetime]()
    for _refresh, runs in closed:
        unfinished = {run.phase for run in runs if run.state != RunState.SUCCEEDED}
        for run in runs:
            if run.phase not in unfinished and run.finished_at:
                field = Phase(run.phase).success_field
                times[field] = max(run.finished_at, times.get(field, run.finished_at))
    if times:
        ViewControl.objects.filter(pk=control.pk).update(**times)
    for _refresh, runs in closed:
        note_fingerprints(control, runs)
