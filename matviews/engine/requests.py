"""Asking for a refresh, and what is due once somebody has asked."""

import logging
from collections.abc import Iterable
from typing import Any

from django.db import DatabaseError, connections
from django.db.models import Exists, OuterRef, QuerySet, Subquery, Sum

from .. import signals
from ..changes import ChangeStatus
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest, InvalidView, ViewDisabled
from ..limits import BATCH_SIZE
from ..models import Origin, PhaseRun, Refresh, ViewControl, ViewShard
from ..phases import Phase
from ..redact import bounded, brief
from ..registry import registry
from ..states import RefreshState
from .checkpoints import change_status_of
from .controls import not_ready
from .locking import join_unlocked
from .transactions import alias, now, short_transaction

__all__ = ["check_phases", "count_requests", "request", "request_stop"]

LONGEST_NAME = 255  # characters of who asks
MOST_NAMED = 5  # unknown phases

logger = logging.getLogger(__name__)


def request(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    origin: Origin = Origin.API,
    requested_by: str = "",
    batch_size: int | None = None,
) -> Refresh:
    """Record a request to bring a view up to date. It waits for nothing and sends nothing.

    A refresh for the same phases that no batch has begun is joined: it counts the request and is returned.
    Not within a transaction of the caller's, whose changes it might miss; such requests are merged when
    `engine.close_finished` comes across them. Where it is known that nothing has changed since the phases last
    succeeded, the refresh is recorded as one that has succeeded already: without a phase run, and at the
    cost of three statements (five on MariaDB and MySQL, where two set limits and set them back).

    Whoever asks must send messages *after* the commit (`engine.close_finished` makes them): a worker
    that read the requests before the commit does not know of this one.

    Args:
        view: the view's class or label.
        phases: which phases; all that the view has by default.
        origin: what asks.
        requested_by: who asks, for the record.
        batch_size: rows per batch of this refresh; None leaves it to the view.

    Raises:
        UnknownView, InvalidView: there is no such view, or it has errors.
        InvalidRequest: a phase that the view lacks, or a batch size that cannot be.
        ViewDisabled: an operator has switched the view off.
        ViewNotReady: the view has no bookkeeping rows.
    """
    definition = registry.usable(view)
    wanted = check_phases(definition, phases)
    if batch_size is not None and batch_size not in BATCH_SIZE:
        raise InvalidRequest(f"A batch size must be {BATCH_SIZE}, not {brief(batch_size)}.")
    refresh = Refresh(
        phases=[phase.value for phase in wanted],
        state=RefreshState.OPEN,
        origin=origin,
        requested_by=bounded(requested_by)[:LONGEST_NAME],
        requested_at=now(),
        batch_size=batch_size,
    )
    stands, fresh = _look(definition, wanted)
    if stands and fresh:
        _record_as_done(refresh, stands.view_id, wanted)
    else:
        refresh = _record(refresh, definition.label, stands)
    logger.info(
        "refresh requested view=%s refresh=%s requests=%s",
        definition.label, refresh.pk, refresh.requests,
    )  # fmt: skip
    signals.refresh_requested.send_robust(sender=definition.model, refresh=refresh)
    if fresh:
        logger.info(
            "refresh finished, nothing had changed view=%s refresh=%s", definition.label, refresh.pk
        )
        signals.refresh_finished.send_robust(sender=definition.model, refresh=refresh)
    return refresh


def _look(
    definition: ViewDefinition, phases: tuple[Phase, ...]
) -> tuple[ChangeStatus | None, bool]:
    """How the view stands, if it is enabled and that is known, and whether its phases have nothing to do.

    Not within a transaction: that may not see yet, or any more, what others have committed.
    """
    if _in_transaction():
        return None, False
    try:
        stands, fresh = change_status_of(definition, phases)
    except (InvalidView, DatabaseError):  # the refresh fails, and tells why
        return None, False
    return (stands, fresh) if stands and stands.enabled else (None, False)


def _in_transaction() -> bool:
    return not connections[alias()].get_autocommit()


def _record(refresh: Refresh, label: str, stands: ChangeStatus | None) -> Refresh:
    """Save a request, or have it join a refresh; the one or the other."""
    if stands and not stands.refreshing:
        refresh.view_id, refresh.claims_seen = stands.view_id, stands.claims
    else:
        control = _enabled_control(label, refresh)
        refresh.view_id, refresh.claims_seen = control.pk, control.claims
        if control.waiting and join_unlocked(control.waiting):
            return Refresh.objects.get(pk=control.waiting)
    refresh.save(force_insert=True)
    return refresh


def _record_as_done(refresh: Refresh, view_id: int, phases: tuple[Phase, ...]) -> None:
    refresh.view_id, refresh.state = view_id, RefreshState.SUCCEEDED
    refresh.started_at = refresh.finished_at = done = now()
    with short_transaction():
        refresh.save(force_insert=True)
        control = ViewControl.objects.filter(pk=view_id)
        control.update(**{phase.success_field: done for phase in phases})


def request_stop(refresh_id: int) -> bool:
    """Record that a refresh is to stop between two batches; what these have committed stays.

    With it stop all requests that joined it or were merged into it before it began. Whoever asks settles the
    view afterwards: that stops it at once where nobody is at work. One that was merged itself ends here, alone.

    Returns:
        False if it has ended already, or there is none.
    """
    refreshes = Refresh.objects.filter(pk=refresh_id)
    with short_transaction(durable=False):
        # In this order: what is to stop is not merged any more.
        if refreshes.filter(state=RefreshState.OPEN).update(stop_requested=True):
            return True
        merged = refreshes.filter(state=RefreshState.MERGED)
        end = {"state": RefreshState.STOPPED, "finished_at": now()}
        return merged.update(stop_requested=True, **end) > 0


def count_requests(refresh: Refresh) -> int:
    """How many requests a refresh works for: those that joined it, and those of refreshes merged into it."""
    merged = Refresh.objects.filter(merged_into=refresh).aggregate(total=Sum("requests"))
    return refresh.requests + (merged["total"] or 0)


def check_phases(
    definition: ViewDefinition, phases: Iterable[Phase | str] | None
) -> tuple[Phase, ...]:
    """The phases asked for, in their order.

    Raises:
        InvalidRequest: one is unknown, or not a phase of the view, or there is none.
    """
    if phases is None:
        return definition.options.phases
    several = isinstance(phases, Iterable) and not isinstance(phases, str)
    asked: list[object] = list(phases) if several else [phases]
    if unknown := [name for name in asked if name not in definition.options.phases]:
        names = ", ".join(sorted(map(_named, unknown[:MOST_NAMED])))
        has = ", ".join(definition.options.phases)
        raise InvalidRequest(f"{definition.label} has no phase {names}; it has {has}.")
    if not asked:
        raise InvalidRequest(f"Name at least one phase of {definition.label}.")
    return tuple(phase for phase in Phase if phase in asked)


def _named(phase: object) -> str:
    return bounded(phase, LONGEST_NAME) if isinstance(phase, str) else brief(phase)


def _enabled_control(label: str, refresh: Refresh) -> Any:
    """A view's control, the sum of its shards' `claims`, and the primary key of the refresh to be joined, if any.

    Raises:
        ViewNotReady, ViewDisabled.
    """
    joinable = Refresh.objects.none() if _in_transaction() else _joinable(refresh)
    control: Any = (
        ViewControl.objects.filter(label=label)
        .annotate(claims=Subquery(_claims("pk")), waiting=Subquery(joinable.values("pk")[:1]))
        .first()
    )
    if control is None or control.claims is None:
        raise not_ready(label)
    if not control.enabled:
        raise ViewDisabled(
            f"{label} is disabled: enable it first, in the admin or by its ViewControl."
        )
    return control


def _claims(view: str) -> QuerySet[Any, Any]:
    shards = ViewShard.objects.filter(view=OuterRef(view)).order_by()
    return shards.values("view").values_list(Sum("claims"))


def _joinable(refresh: Refresh) -> QuerySet[Refresh]:
    """The refreshes of a view that ask for the same and that no batch can have begun by now.

    Whichever batch begins one is claimed after the moment of this query, and reads the source after that. So it sees
    what was committed before the request; and that is true whenever the request is then counted in.
    """
    begun = PhaseRun.objects.filter(refresh=OuterRef("pk"))
    return Refresh.objects.filter(
        ~Exists(begun), view=OuterRef("pk"), state=RefreshState.OPEN, stop_requested=False,
        phases=refresh.phases, batch_size=refresh.batch_size, claims_seen=Subquery(_claims("view")),
    ).order_by("pk")  # fmt: skip
