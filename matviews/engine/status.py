"""The state of every view at a glance, for the command line and the admin."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import OuterRef, Prefetch, QuerySet, Subquery
from django.utils import timezone

from ..definition import ViewDefinition
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..registry import registry
from ..states import RefreshState, ViewState
from .derived import changed_phases
from .extent import extent_of
from .rows import RowCount, count_rows
from .tracking import oldest_changes

__all__ = ["Announcement", "ViewStatus", "view_statuses"]

INTERVALS_MISSED = 2  # of its schedule, after which a view without a target of its own is behind


class Announcement(NamedTuple):
    """Who is at work in a stripe, as `host:pid`, and since when."""

    worker: str
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewStatus:
    """How a view stands.

    Attributes:
        label: the view.
        state: in a word; of what applies, the first in the order of `_state`.
        changed: the phases whose rows are those of another definition than the code's.
        enabled: whether it is refreshed at all.
        paused: whether its work is held.
        include_in_batch: whether a refresh of all views includes it.
        rows: rows of its table, None if there is no table; large ones are estimated.
        successes: when each of its phases last succeeded, None where one never did.
        last_success: when the phase that is longest ago last succeeded, None if one never did.
        lag: time since then.
        oldest_change: how old the oldest change of its source is that is logged and not yet applied;
            None if none waits, or its changes are not tracked.
        target: how large the lag may be: as the control or the code says, else twice the longest
            interval of its schedules; None if nothing says it.
        open_refreshes: primary keys of the refreshes under way, oldest first.
        progress: how much of the oldest of these is done, from 0 to 1; None if that is unknown.
        running: who is at work in it now.
        error: of the last refresh, if that failed.
    """

    label: str
    state: ViewState
    changed: tuple[Phase, ...] = ()
    enabled: bool = True
    paused: bool = False
    include_in_batch: bool = True
    rows: RowCount | None = None
    successes: Mapping[Phase, datetime | None] = field(default_factory=dict)
    last_success: datetime | None = None
    lag: timedelta | None = None
    oldest_change: timedelta | None = None
    target: timedelta | None = None
    open_refreshes: tuple[int, ...] = ()
    progress: float | None = None
    running: tuple[Announcement, ...] = ()
    error: str = ""


def view_statuses(labels: Iterable[str] | None = None) -> list[ViewStatus]:
    """The state of every view that the code defines or a control row remembers, by label.

    The number of statements does not depend on the number of views.

    Args:
        labels: the views to tell of; all by default.
    """
    wanted = None if labels is None else set(labels)
    controls = {control.label: control for control in _controls(wanted)}
    views = {each.label: each for each in registry if wanted is None or each.label in wanted}
    rows, changes = count_rows(views.values()), oldest_changes()
    return [
        _status(label, views.get(label), controls.get(label), rows.get(label), changes)
        for label in sorted({*controls, *views})
    ]


def _controls(labels: set[str] | None) -> QuerySet[Any]:
    """The control rows, with what the status needs to know of their refreshes."""
    # What was stopped says nothing of the view.
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    last = ended.filter(view=OuterRef("pk")).order_by("-pk")
    runs = PhaseRun.objects.select_related("merged_into")
    still_open = Refresh.objects.filter(state=RefreshState.OPEN).order_by("pk")
    controls = ViewControl.objects.annotate(
        last_state=Subquery(last.values("state")[:1]),
        last_error=Subquery(last.values("error")[:1]),
    ).prefetch_related(
        "stripes",
        "schedules",
        Prefetch(
            "refreshes",
            still_open.prefetch_related(Prefetch("runs", runs)),
            to_attr="open_refreshes",
        ),
    )
    return controls if labels is None else controls.filter(label__in=labels)


def _status(
    label: str,
    definition: ViewDefinition | None,
    control: Any,
    rows: RowCount | None,
    changes: Mapping[int, timedelta],
) -> ViewStatus:
    if control is None:
        return ViewStatus(label=label, state=ViewState.NO_ROWS, rows=rows)
    successes = _successes(definition, control)
    last_success = None if None in successes.values() else min(filter(None, successes.values()))
    lag = timezone.now() - last_success if last_success else None
    target = _target(definition, control)
    changed = changed_phases(definition, control) if definition else []
    return ViewStatus(
        label=label,
        state=_state(definition, control, lag, target, changed=bool(changed)),
        changed=tuple(changed),
        enabled=control.enabled,
        paused=control.paused,
        include_in_batch=control.include_in_batch,
        rows=rows,
        successes=successes,
        last_success=last_success,
        lag=lag,
        oldest_change=changes.get(control.pk),
        target=target,
        open_refreshes=tuple(refresh.pk for refresh in control.open_refreshes),
        progress=_progress(control),
        running=_running(control),
        error=control.last_error or "" if control.last_state == RefreshState.FAILED else "",
    )


def _state(
    definition: ViewDefinition | None,
    control: Any,
    lag: timedelta | None,
    target: timedelta | None,
    *,
    changed: bool,
) -> ViewState:
    if definition is None:
        return ViewState.NOT_IN_CODE
    refreshing = bool(control.open_refreshes)
    by_priority = {
        ViewState.INVALID: bool(definition.errors),
        ViewState.DISABLED: not control.enabled,
        ViewState.PAUSED: control.paused,
        ViewState.REFRESHING: refreshing and _in_good_hands(control),
        ViewState.WAITING: refreshing,
        ViewState.FAILED: control.last_state == RefreshState.FAILED,
        ViewState.CHANGED: changed,
        ViewState.NEVER_BUILT: lag is None,
        ViewState.BEHIND: bool(target and lag and lag > target),
        ViewState.FRESH: target is not None,
    }
    return next((state for state, applies in by_priority.items() if applies), ViewState.READY)


def _target(definition: ViewDefinition | None, control: Any) -> timedelta | None:
    in_code = definition.options.freshness_target if definition else None
    own: timedelta | None = control.freshness_target or in_code
    if own:
        return own
    intervals: list[timedelta | None]
    intervals = [each.interval for each in control.schedules.all() if each.enabled]
    if not intervals or None in intervals:
        return None
    return INTERVALS_MISSED * max(filter(None, intervals))


def _progress(control: Any) -> float | None:
    """How much the runs of the oldest refresh have done; None until each has told how much it is."""
    if not control.open_refreshes:
        return None
    refresh = control.open_refreshes[0]
    leaders = [run.merged_into or run for run in refresh.runs.all()]
    if len(leaders) < len(refresh.phases) * len(control.stripes.all()):
        return None
    return extent_of(leaders).share


def _running(control: Any) -> tuple[Announcement, ...]:
    return tuple(
        Announcement(stripe.worker, stripe.announced_at)
        for stripe in control.stripes.all()
        if stripe.announced and control.open_refreshes
    )


def _in_good_hands(control: Any) -> bool:
    now = timezone.now()
    return any(
        stripe.announced or (stripe.watch_after and stripe.watch_after > now)
        for stripe in control.stripes.all()
    )


def _successes(
    definition: ViewDefinition | None, control: ViewControl
) -> dict[Phase, datetime | None]:
    phases = definition.options.phases if definition else tuple(Phase)
    return {phase: getattr(control, phase.success_field) for phase in phases}
