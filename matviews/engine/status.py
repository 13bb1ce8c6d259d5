"""The state of every view at a glance, for the command line and the admin."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef, QuerySet, Subquery
from django.utils import timezone

from ..definition import ViewDefinition
from ..models import Refresh, ViewControl
from ..phases import Phase
from ..registry import registry
from ..states import RefreshState
from .databases import alias

__all__ = ["Announcement", "ViewStatus", "view_statuses"]


class Announcement(NamedTuple):
    """Who is at work in a stripe, as `host:pid`, and since when."""

    worker: str
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewStatus:
    """How a view stands.

    Attributes:
        label: the view.
        state: "ready", "never built", "behind", "refreshing", "waiting" (a refresh is open, but
            nobody has been at it for a lease), "failed", "disabled", "invalid", "not in the code",
            or "no rows yet" (`migrate` has not run since the view was added).
        enabled: whether it is refreshed at all.
        include_in_batch: whether a refresh of all views includes it.
        rows: rows of its table, None if that cannot be read.
        last_success: when the phase that is longest ago last succeeded, None if one never did.
        lag: time since then.
        running: who is at work in it now.
        error: of the last refresh, if that failed.
    """

    label: str
    state: str
    enabled: bool = True
    include_in_batch: bool = True
    rows: int | None = None
    last_success: datetime | None = None
    lag: timedelta | None = None
    running: tuple[Announcement, ...] = ()
    error: str = ""


def view_statuses() -> list[ViewStatus]:
    """The state of every view that the code defines or a control row remembers, by label."""
    controls = {control.label: control for control in _controls()}
    views = {definition.label: definition for definition in registry}
    labels = sorted({*controls, *views})
    return [_status(label, views.get(label), controls.get(label)) for label in labels]


def _controls() -> QuerySet[Any]:
    """The control rows, with what the status needs to know of their refreshes."""
    refreshes = Refresh.objects.filter(view=OuterRef("pk"))
    ended = refreshes.exclude(state=RefreshState.OPEN).order_by("-pk")
    return ViewControl.objects.annotate(
        refreshing=Exists(refreshes.filter(state=RefreshState.OPEN)),
        last_state=Subquery(ended.values("state")[:1]),
        last_error=Subquery(ended.values("error")[:1]),
    ).prefetch_related("stripes")


def _status(label: str, definition: ViewDefinition | None, control: Any) -> ViewStatus:
    rows = _count(definition) if definition else None
    if control is None:
        return ViewStatus(label=label, state="no rows yet", rows=rows)
    last_success = _last_success(definition, control)
    lag = timezone.now() - last_success if last_success else None
    return ViewStatus(
        label=label,
        state=_state(definition, control, lag),
        enabled=control.enabled,
        include_in_batch=control.include_in_batch,
        rows=rows,
        last_success=last_success,
        lag=lag,
        running=_running(control),
        error=control.last_error or "" if control.last_state == RefreshState.FAILED else "",
    )


def _state(definition: ViewDefinition | None, control: Any, lag: timedelta | None) -> str:
    if definition is None:
        return "not in the code"
    target = control.freshness_target or definition.options.freshness_target
    by_priority = {
        "invalid": bool(definition.errors),
        "disabled": not control.enabled,
        "refreshing": control.refreshing and _in_good_hands(control),
        "waiting": control.refreshing,
        "failed": control.last_state == RefreshState.FAILED,
        "never built": lag is None,
        "behind": bool(target and lag and lag > target),
    }
    return next((state for state, applies in by_priority.items() if applies), "ready")


def _running(control: Any) -> tuple[Announcement, ...]:
    return tuple(
        Announcement(stripe.worker, stripe.announced_at)
        for stripe in control.stripes.all()
        if stripe.announced and control.refreshing
    )


def _in_good_hands(control: Any) -> bool:
    now = timezone.now()
    return any(
        stripe.announced or (stripe.watch_after and stripe.watch_after > now)
        for stripe in control.stripes.all()
    )


def _last_success(definition: ViewDefinition | None, control: ViewControl) -> datetime | None:
    phases = definition.options.phases if definition else tuple(Phase)
    times = [getattr(control, phase.success_field) for phase in phases]
    return None if None in times else min(times)


def _count(definition: ViewDefinition) -> int | None:
    try:
        with transaction.atomic(using=alias()):
            return definition.model._base_manager.using(alias()).count()
    except DatabaseError:
        return None
