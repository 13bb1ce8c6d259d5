"""Requesting refreshes and stops."""

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import Exists, OuterRef, QuerySet, Subquery, Sum

from ... import signals
from ...changes import ChangeStatus
from ...databases.compiled import insert_rows, update_rows
from ...definition import ViewDefinition
from ...exceptions import InvalidRequest, InvalidView, ViewDisabled
from ...limits import BATCH_SIZE
from ...logs import log
from ...models import Origin, PhaseRun, Refresh, ViewControl, ViewShard
from ...phases import Phase
from ...redact import bounded, brief
from ...registry import registry
from ...states import RefreshState
from ..batches.checkpoints import change_status_of
from ..locking import join_unlocked
from ..totals import ended
from ..transactions import alias, now, short_transaction
from .controls import not_ready

__all__ = ["check_phases", "count_requests", "is_taken", "request", "request_stop"]

MAX_NAME_LENGTH = 255  # characters of the requester, or of a phase in an error
MAX_PHASES_NAMED = 5  # unknown phases in an error
CLOCK_TOLERANCE = timedelta(seconds=1)

logger = logging.getLogger(__name__)


def request(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    origin: Origin = Origin.API,
    requested_by: str = "",
    batch_size: int | None = None,
    force: bool = False,
    upstream_refreshes: Iterable[Refresh] = (),
    waits_for_upstream: bool = False,
) -> Refresh:
    """Record a request to bring a view up to date. It waits for nothing and sends nothing.

    It joins an open refresh for the same phases if no batch has begun that, which counts the
    request and is returned. In a transaction of the caller it joins none, because a running batch
    could miss the caller's changes; `engine.close_finished` merges such requests later. If it is
    known that nothing has changed since the phases last succeeded, and the view has not failed
    since, it is recorded as succeeded at once, in three statements (five on MariaDB and MySQL).

    The caller must call `engine.close_finished` and send its messages *after* the commit: a worker
    that read the requests before the commit does not see this one.

    Args:
        view: the view's class or label.
        phases: the phases; by default all that the view has.
        origin: what requests the refresh.
        requested_by: who requests it, for the history.
        batch_size: rows per batch; None leaves it to the view.
        force: whether it begins even while the view waits after a failure or is suspended.
        upstream_refreshes: refreshes of views that it reads, which it follows.
        waits_for_upstream: whether it begins only when these have ended or cannot continue.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: the view does not have one of the phases, or the batch size is invalid.
        ViewDisabled, ViewNotReady: an operator has disabled it, or it has no bookkeeping rows.
    """
    definition = registry.usable(view)
    requested = check_phases(definition, phases)
    _check_batch_size(batch_size)
    followed = list(upstream_refreshes)
    refresh = Refresh(
        phases=[phase.value for phase in requested], state=RefreshState.OPEN, origin=origin,
        requested_by=bounded(requested_by)[:MAX_NAME_LENGTH], requested_at=now(),
        batch_size=batch_size, forced=force, upstream_refreshes=[each.pk for each in followed],
        waits_for_upstream=waits_for_upstream and any(not each.finished_at for each in followed),
    )  # fmt: skip
    refresh, finished = _record(refresh, definition, requested)
    _publish(refresh, definition, finished=finished)
    return refresh


def _check_batch_size(batch_size: object) -> None:
    if batch_size is not None and batch_size not in BATCH_SIZE:
        raise InvalidRequest(f"A batch size must be {BATCH_SIZE}, not {brief(batch_size)}.")


def _publish(refresh: Refresh, definition: ViewDefinition, *, finished: bool) -> None:
    """Log a request and signal it; likewise the refresh's end, if it had nothing to do."""
    joined = refresh.requests > 1  # as each tick does while a failing or paused view waits
    log(
        logger, logging.DEBUG if joined else logging.INFO, "refresh requested",
        view=definition.label, refresh=refresh.pk, requests=refresh.requests,
    )  # fmt: skip
    signals.refresh_requested.send_robust(sender=definition.model, refresh=refresh)
    if finished:
        sentence = "refresh finished, nothing had changed"
        log(logger, logging.INFO, sentence, view=definition.label, refresh=refresh.pk)
        signals.refresh_finished.send_robust(sender=definition.model, refresh=refresh)


def _record(
    refresh: Refresh, definition: ViewDefinition, phases: tuple[Phase, ...]
) -> tuple[Refresh, bool]:
    """The refresh that counts a request, and whether it had nothing to do."""
    status, fresh = _known_status(definition, phases)
    if status and fresh and not refresh.waits_for_upstream:
        _record_as_done(refresh, status.view_id, phases)
        return refresh, True
    return _record_as_open(refresh, definition.label, status), False


def _known_status(
    definition: ViewDefinition, phases: tuple[Phase, ...]
) -> tuple[ChangeStatus | None, bool]:
    """The view's change status, and whether its phases are known to have no work.

    (None, False) if that is unknown: always inside a transaction, whose snapshot may be old, and
    for a disabled view. A view that has failed has work: its next refresh shows if it works again.
    """
    if _in_transaction():
        return None, False
    try:
        status, fresh = change_status_of(definition, phases)
    except (InvalidView, DatabaseError):  # the refresh will fail and report why
        return None, False
    if status is None or not status.enabled:
        return None, False
    return status, fresh and not status.failures


def _in_transaction() -> bool:
    return not connections[alias()].get_autocommit()


def _record_as_open(refresh: Refresh, label: str, status: ChangeStatus | None) -> Refresh:
    """Join an open refresh if possible, else save the new one; the one that counts the request."""
    if status and not status.refreshing:
        refresh.view_id, refresh.claims_at_request = status.view_id, status.claims
    else:
        control = _enabled_control(label, refresh)
        refresh.view_id, refresh.claims_at_request = control.pk, control.claims
        if control.waiting and join_unlocked(control.waiting):
            return Refresh.objects.get(pk=control.waiting)
    insert_rows([refresh], using=alias())
    return refresh


def _record_as_done(refresh: Refresh, view_id: int, phases: tuple[Phase, ...]) -> None:
    refresh.view_id, refresh.state = view_id, RefreshState.SUCCEEDED
    refresh.started_at = refresh.finished_at = done = now()
    with short_transaction():
        insert_rows([refresh], using=alias())
        # `now` counts on from the last reading of the database's clock, and may be ahead of it.
        as_of = refresh.requested_at - CLOCK_TOLERANCE
        times = {
            **{phase.success_field: done for phase in phases},
            **{phase.as_of_field: as_of for phase in phases},
        }
        update_rows(ViewControl, {"id": view_id}, times, ended(refresh.state), using=alias())


def request_stop(refresh_id: int) -> bool:
    """Record that a refresh must stop before its next batch; committed batches stay.

    All requests that joined it or were merged into it before it began stop with it. The caller
    calls `close_finished_in_view` afterwards, which stops it at once if no batch is running. A
    refresh that was itself merged into another ends at once, and no other refresh with it.

    Returns:
        False if it has ended already or does not exist.
    """
    refreshes = Refresh.objects.filter(pk=refresh_id)
    with short_transaction(durable=False):
        # In this order, because a refresh that is to stop is no longer merged.
        if refreshes.filter(state=RefreshState.OPEN).update(stop_requested=True):
            return True
        merged = refreshes.filter(state=RefreshState.MERGED)
        end = {"state": RefreshState.STOPPED, "finished_at": now()}
        return merged.update(stop_requested=True, **end) > 0


def count_requests(refresh: Refresh) -> int:
    """How many requests a refresh serves: those that joined it or refreshes merged into it."""
    merged = Refresh.objects.filter(merged_into=refresh).aggregate(total=Sum("requests"))
    return refresh.requests + (merged["total"] or 0)


def is_taken(refresh: Refresh) -> bool:
    """Whether a worker has claimed a batch of the view since the request, or one is running."""
    shards = list(ViewShard.objects.filter(view=refresh.view_id))
    claims = sum(shard.claims for shard in shards)
    return claims != refresh.claims_at_request or any(shard.is_claimed for shard in shards)


def check_phases(
    definition: ViewDefinition, phases: Iterable[Phase | str] | None
) -> tuple[Phase, ...]:
    """The requested phases, in the order in which they run.

    Raises:
        InvalidRequest: one is unknown, or not a phase of the view, or there is none.
    """
    if phases is None:
        return definition.options.phases
    is_collection = isinstance(phases, Iterable) and not isinstance(phases, str)
    requested: list[object] = list(phases) if is_collection else [phases]
    if unknown := [name for name in requested if name not in definition.options.phases]:
        names = ", ".join(sorted(map(_named, unknown[:MAX_PHASES_NAMED])))
        has = ", ".join(definition.options.phases)
        raise InvalidRequest(f"{definition.label} has no phase {names}; it has {has}.")
    if not requested:
        raise InvalidRequest(f"Name at least one phase of {definition.label}.")
    return tuple(phase for phase in Phase if phase in requested)


def _named(phase: object) -> str:
    return bounded(phase, MAX_NAME_LENGTH) if isinstance(phase, str) else brief(phase)


def _enabled_control(label: str, refresh: Refresh) -> Any:
    """A control, annotated with its shards' `claims` and `waiting`, the key of a refresh to join.

    Raises:
        ViewNotReady, ViewDisabled.
    """
    joins_none = refresh.waits_for_upstream or _in_transaction()
    joinable = Refresh.objects.none() if joins_none else _joinable(refresh)
    control: Any = (
        ViewControl.objects.filter(label=label)
        .annotate(claims=Subquery(_claims("pk")), waiting=Subquery(joinable.values("pk")[:1]))
        .first()
    )
    if control is None or control.claims is None:
        raise not_ready(label)
    if not control.enabled:
        raise ViewDisabled(
            f"{label} is disabled: enable it first, in the admin or through its ViewControl."
        )
    return control


def _claims(view: str) -> QuerySet[Any, Any]:
    shards = ViewShard.objects.filter(view=OuterRef(view)).order_by()
    return shards.values("view").values_list(Sum("claims"))


def _joinable(refresh: Refresh) -> QuerySet[Refresh]:
    """The refreshes of a view that request the same and that no claimed batch may begin.

    The batch that begins one is claimed after this query and reads the source after its claim. So
    it sees what was committed before the request, however much later the request is counted.
    """
    begun = PhaseRun.objects.filter(refresh=OuterRef("pk"))
    return Refresh.objects.filter(
        ~Exists(begun), view=OuterRef("pk"), state=RefreshState.OPEN, stop_requested=False,
        phases=refresh.phases, batch_size=refresh.batch_size, forced=refresh.forced,
        waits_for_upstream=False, claims_at_request=Subquery(_claims("view")[:1]),
    ).order_by("pk")  # fmt: skip
