"""How the status of every view is found, for the command and the admin."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError
from django.db.models import OuterRef, Prefetch, QuerySet, Subquery

from .. import changes
from ..changes import Tracking
from ..databases import clock
from ..databases.clock import UtcNow
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import PhaseRun, Refresh, ViewControl
from ..phases import Phase
from ..queryset import fault_of, plan_of
from ..registry import registry
from ..states import RefreshState, ViewState
from .derived import changed_phases
from .pending import oldest_drained, utc
from .progress import Claim, Progress
from .rows import RowCount, count_rows
from .transactions import alias, now
from .view_status import ViewStatus

__all__ = ["view_statuses"]

MAX_OPEN_REFRESHES = 20  # of a view, that are listed
TARGET_INTERVALS = 2  # of the schedule: the target of a view without one of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sources:
    """What is known about the source tables of all views, by primary key of the control."""

    #: How long the oldest change has waited to be drained.
    waiting: Mapping[int, timedelta]
    #: What the views depend on.
    trackings: Mapping[int, Tracking]
    #: The tables whose changes are not logged for a view.
    unlogged: Mapping[int, set[str]]
    #: Which of these tables triggers cannot track.
    untrackable: Collection[str]

    def logs_all(self, control: ViewControl) -> bool:
        """Whether every change that matters to a view is logged."""
        return control.pk in self.trackings and not self.unlogged[control.pk]

    def missing(self, control: ViewControl) -> tuple[str, ...]:
        """The tables whose changes triggers could log for a view, but do not."""
        return tuple(sorted(self.unlogged.get(control.pk, set()) - set(self.untrackable)))


def view_statuses(labels: Iterable[str] | None = None) -> list[ViewStatus]:
    """The state of every view that the code defines or a control row remembers, by label.

    The number of statements does not depend on the number of views.

    Args:
        labels: the views to include; all by default.
    """
    requested = None if labels is None else set(labels)
    waiting = (
        changes.oldest_waiting()
    )  # first: if changes are drained meanwhile, the controls show them
    controls = {control.label: control for control in _controls(requested)}
    views = {each.label: each for each in registry if requested is None or each.label in requested}
    rows, sources = count_rows(views.values()), _sources(views, controls, waiting)
    return [
        _status(label, views.get(label), controls.get(label), rows.get(label), sources)
        for label in sorted({*controls, *views})
    ]


def _sources(
    views: Mapping[str, ViewDefinition],
    controls: Mapping[str, ViewControl],
    waiting: Mapping[int, timedelta],
) -> _Sources:
    trackings = {
        controls[label].pk: changes.known_tracking(definition, alias())
        for label, definition in views.items()
        if label in controls
    }
    trackings = {view: each for view, each in trackings.items() if not each.reason}
    unlogged = changes.unlogged_tables(trackings, alias())
    tables = set[str]().union(*unlogged.values())
    if tables:  # triggers are no help to a view whose columns differ from its models
        for label in changes.mistyped(alias()).keys() & controls.keys():
            trackings.pop(controls[label].pk, None)
            unlogged.pop(controls[label].pk, None)
    return _Sources(
        waiting=waiting,
        trackings=trackings,
        unlogged=unlogged,
        untrackable=changes.untrackable_tables(tables, alias()).keys(),
    )


def _controls(labels: set[str] | None) -> QuerySet[Any]:
    """The control rows, with what the status needs from their refreshes."""
    # A stopped refresh says nothing about the view.
    ended = Refresh.objects.filter(state__in=(RefreshState.SUCCEEDED, RefreshState.FAILED))
    last = ended.filter(view=OuterRef("pk")).order_by("-pk")
    runs = PhaseRun.objects.select_related("merged_into")
    still_open = Refresh.objects.filter(state=RefreshState.OPEN).order_by("pk")
    controls = ViewControl.objects.annotate(
        last_state=Subquery(last.values("state")[:1]),
        last_error=Subquery(last.values("error")[:1]),
        now=UtcNow(),
    ).prefetch_related(
        "shards",
        "schedules",
        Prefetch(
            "refreshes",
            still_open.prefetch_related(Prefetch("runs", runs))[:MAX_OPEN_REFRESHES],
            to_attr="open_refreshes",
        ),
    )
    return controls if labels is None else controls.filter(label__in=labels)


def _status(
    label: str,
    definition: ViewDefinition | None,
    control: Any,
    rows: RowCount | None,
    sources: _Sources,
) -> ViewStatus:
    if control is None:
        return ViewStatus(
            label=label, state=ViewState.NOT_MIGRATED, fault=ViewState.NOT_MIGRATED, rows=rows
        )
    successes = _successes(definition, control)
    last_success = None if None in successes.values() else min(filter(None, successes.values()))
    age = now() - last_success if last_success else None
    change_lag = _change_lag(control, successes, sources)
    staleness = _staleness(definition, control, age, change_lag, sources)
    target, changed = _target(definition, control), _changed(definition, control)
    not_logged = sources.missing(control)
    invalid = _fault_of_class(definition) if definition else ""
    faults = {
        ViewState.REMOVED: definition is None,
        ViewState.INVALID: bool(invalid),
        ViewState.FAILED: control.last_state == RefreshState.FAILED,
        ViewState.NOT_MIGRATED: bool(definition) and rows is None and last_success is None,
        ViewState.NOT_LOGGED: bool(not_logged),
        ViewState.CHANGED: bool(changed),
        ViewState.NEVER_BUILT: staleness is None,
        ViewState.BEHIND: bool(target and staleness and staleness > target),
    }
    return ViewStatus(
        label=label,
        state=_state(control, target, faults),
        definition_changed=changed,
        enabled=control.enabled,
        paused=control.paused,
        include_in_refresh_all=control.include_in_refresh_all,
        rows=rows,
        successes=successes,
        last_success=last_success,
        age=age,
        change_lag=change_lag,
        target=target,
        staleness=staleness,
        not_logged=not_logged,
        fault=next((fault for fault, applies in faults.items() if applies), None),
        open_refreshes=tuple(refresh.pk for refresh in control.open_refreshes),
        progress=_progress(control),
        running=_running(control),
        error=invalid or (control.last_error or "" if faults[ViewState.FAILED] else ""),
    )


def _changed(definition: ViewDefinition | None, control: Any) -> tuple[Phase, ...]:
    return tuple(changed_phases(definition, control)) if definition else ()


def _change_lag(control: Any, phases: Collection[Phase], sources: _Sources) -> timedelta | None:
    """How long ago the oldest change was logged that a phase has yet to process."""
    if not sources.logs_all(control):
        return None
    drained = (oldest_drained(shard, phases) for shard in control.shards.all())
    ages = [utc(control.now) - moment for moment in drained if moment]
    ages += [sources.waiting[control.pk]] if control.pk in sources.waiting else []
    return max(ages, default=None)


def _staleness(
    definition: ViewDefinition | None,
    control: Any,
    age: timedelta | None,
    change_lag: timedelta | None,
    sources: _Sources,
) -> timedelta | None:
    """How old the rows of a view are: as old as the oldest change that they do not include.

    If changes do not show that, or time alone changes the source, as old as the last success.
    """
    if age is None or not sources.logs_all(control) or definition is None:
        return age
    waited = change_lag or timedelta()
    return max(age, waited) if _is_past(definition, control, sources) else waited


def _is_past(definition: ViewDefinition, control: Any, sources: _Sources) -> bool:
    """Whether the dates in `source()` have changed since its phases last succeeded."""
    if not sources.trackings[control.pk].has_dates:
        return False
    try:
        now = plan_of(definition, alias()).exact_fingerprint
    except (InvalidView, DatabaseError):
        return True
    covered = [
        shard.checkpoints.get(phase)
        for shard in control.shards.all()
        for phase in definition.options.phases
    ]
    return any(each is None or each[1] != now for each in covered)


def _fault_of_class(definition: ViewDefinition) -> str:
    """Why the view cannot be refreshed, "" if it can."""
    if definition.errors:
        return " ".join(str(each.msg) for each in definition.errors)
    return fault_of(definition, alias()) if definition.derived else ""


def _state(control: Any, target: timedelta | None, faults: Mapping[ViewState, bool]) -> ViewState:
    refreshing = bool(control.open_refreshes)
    by_priority = {
        ViewState.REMOVED: faults[ViewState.REMOVED],
        ViewState.INVALID: faults[ViewState.INVALID],
        ViewState.DISABLED: not control.enabled,
        ViewState.PAUSED: control.paused,
        ViewState.REFRESHING: refreshing and _is_handled(control),
        ViewState.WAITING: refreshing,
        **faults,
        ViewState.ON_TIME: target is not None,
    }
    return next((state for state, applies in by_priority.items() if applies), ViewState.NO_TARGET)


def _target(definition: ViewDefinition | None, control: Any) -> timedelta | None:
    in_code = definition.options.freshness_target if definition else None
    own: timedelta | None = control.freshness_target or in_code
    if own:
        return own
    intervals: list[timedelta | None]
    intervals = [each.interval for each in control.schedules.all() if each.enabled]
    if not intervals or None in intervals:
        return None
    return TARGET_INTERVALS * max(filter(None, intervals))


def _progress(control: Any) -> float | None:
    """How much of the oldest refresh is done; None until every run has an estimate."""
    if not control.open_refreshes:
        return None
    refresh = control.open_refreshes[0]
    leaders = [run.merged_into or run for run in refresh.runs.all()]
    if len(leaders) < len(refresh.phases) * len(control.shards.all()):
        return None
    return Progress.of(leaders).share


def _running(control: Any) -> tuple[Claim, ...]:
    return tuple(
        Claim(shard.worker, clock.stored(shard.claimed_at, alias()))
        for shard in control.shards.all()
        if shard.is_claimed and control.open_refreshes
    )


def _is_handled(control: Any) -> bool:
    return any(
        shard.is_claimed
        # A message that had to be re-sent has not been taken by anybody so far.
        or (shard.resend_after and shard.resend_after > control.now and not shard.resends)
        for shard in control.shards.all()
    )


def _successes(
    definition: ViewDefinition | None, control: ViewControl
) -> dict[Phase, datetime | None]:
    phases = definition.options.phases if definition else tuple(Phase)
    return {phase: getattr(control, phase.success_field) for phase in phases}
