"""Asking for a refresh, and what is due once somebody has asked."""

import logging
from collections.abc import Iterable

from django.db import DatabaseError, connections
from django.db.models import Exists, OuterRef
from django.utils import timezone

from .. import signals
from ..changes import Standing
from ..conf import LARGEST_SIZE, is_count
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest, InvalidView, ViewDisabled
from ..models import Refresh, Stripe, Trigger, ViewControl
from ..phases import Phase
from ..registry import registry
from ..states import RefreshState
from .controls import not_ready
from .databases import alias, short_transaction
from .tracking import look

__all__ = ["check_phases", "request", "request_stop"]

logger = logging.getLogger(__name__)


def request(
    view: str | type,
    *,
    phases: Iterable[Phase | str] | None = None,
    trigger: Trigger = Trigger.API,
    requested_by: str = "",
    batch_size: int | None = None,
) -> Refresh:
    """Record a request to bring a view up to date. It waits for nothing and sends nothing.

    Where it is known that nothing has changed since the phases last succeeded, the refresh is recorded as
    one that has succeeded already: without a phase run, and at the cost of three statements.

    Whoever asks must send messages *after* the commit (`engine.settle` makes them): a worker
    that read the requests before the commit does not know of this one.

    Args:
        view: the view's class or label.
        phases: which phases; all that the view has by default.
        trigger: what asks.
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
    if batch_size is not None and not is_count(batch_size):
        raise InvalidRequest(
            f"A batch size must be a whole number from 1 to {LARGEST_SIZE}, not {batch_size!r}."
        )
    refresh = Refresh(
        phases=[phase.value for phase in wanted],
        state=RefreshState.OPEN,
        trigger=trigger,
        requested_by=requested_by[:255],
        requested_at=timezone.now(),
        batch_size=batch_size,
    )
    stands, fresh = _look(definition, wanted)
    if stands and fresh:
        _record_as_done(refresh, stands.view_id, wanted)
    else:
        refresh.view_id = stands.view_id if stands else _enabled_control(definition.label)
        refresh.save(force_insert=True)
    logger.info("refresh requested view=%s refresh=%s", definition.label, refresh.pk)
    signals.refresh_requested.send_robust(sender=definition.model, refresh=refresh)
    if fresh:
        logger.info(
            "refresh finished, nothing had changed view=%s refresh=%s", definition.label, refresh.pk
        )
        signals.refresh_finished.send_robust(sender=definition.model, refresh=refresh)
    return refresh


def _look(definition: ViewDefinition, phases: tuple[Phase, ...]) -> tuple[Standing | None, bool]:
    """How the view stands, if it is enabled and that is known, and whether its phases have nothing to do.

    Not within a transaction: that may not see yet, or any more, what others have committed.
    """
    if connections[alias()].in_atomic_block:
        return None, False
    try:
        stands, fresh = look(definition, phases)
    except (InvalidView, DatabaseError):  # the refresh fails, and tells why
        return None, False
    return (stands, fresh) if stands and stands.enabled else (None, False)


def _record_as_done(refresh: Refresh, view_id: int, phases: tuple[Phase, ...]) -> None:
    refresh.view_id, refresh.state = view_id, RefreshState.SUCCEEDED
    refresh.started_at = refresh.finished_at = now = timezone.now()
    with short_transaction():
        refresh.save(force_insert=True)
        control = ViewControl.objects.filter(pk=view_id)
        control.update(**{phase.success_field: now for phase in phases})


def request_stop(refresh_id: int) -> bool:
    """Record that a refresh is to stop between two batches; what these have committed stays.

    Whoever asks settles the view afterwards: that stops it at once where nobody is at work.

    Returns:
        False if it has ended already, or there is none.
    """
    still_open = Refresh.objects.filter(pk=refresh_id, state=RefreshState.OPEN)
    return still_open.update(stop_requested=True) > 0


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
        names = ", ".join(sorted(map(str, unknown)))
        has = ", ".join(definition.options.phases)
        raise InvalidRequest(f"{definition.label} has no phase {names}; it has {has}.")
    if not asked:
        raise InvalidRequest(f"Name at least one phase of {definition.label}.")
    return tuple(phase for phase in Phase if phase in asked)


def _enabled_control(label: str) -> int:
    """The primary key of a view's control.

    Raises:
        ViewNotReady, ViewDisabled.
    """
    has_stripes = Exists(Stripe.objects.filter(view=OuterRef("pk")))
    control = ViewControl.objects.filter(label=label).annotate(has_stripes=has_stripes).first()
    if control is None or not control.has_stripes:
        raise not_ready(label)
    if not control.enabled:
        raise ViewDisabled(
            f"{label} is disabled: enable it first, in the admin or by its ViewControl."
        )
    return control.pk
