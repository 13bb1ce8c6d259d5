"""The state of every view at a glance, for the command line and the admin."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
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

__all__ = ["ViewStatus", "view_statuses"]

MOST_LISTED = 20  # open refreshes of a view
INTERVALS_MISSED = 2  # of its schedule, after which a view without a target of its own is behind


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewStatus:
    """How a view stands.

    Attributes:
        label: the view.
        state: in a word; of what applies, the first in the order of `_state`.
        changed: the phases whose rows are those of another definition than the code's.
        enabled: whether it is refreshed at all.
        paused: whether its work is held.
        include_in_refresh_all: whether a refresh of all views includes it.
        rows: rows of its table, None if there is no table; large ones are estimated.
        successes: when each of its phases last succeeded, None where one never did.
        last_success: when the phase that is longest ago last succeeded, None if one never did.
        age: time since then.
        change_lag: how long ago the oldest change of its source was logged that some phase has yet
            to process; None if there is none, or changes are not tracked, or not all of them are logged.
        target: how old its rows may be: as the control or the code says, else twice the longest
            interval of its schedules; None if nothing says it.
        staleness: what the target is compared with: the age of the oldest change, or of the last success
            where changes do not tell; None if it was never built.
        not_logged: source tables whose changes should be logged, and are not, since triggers are missing,
            switched off, made by somebody else, or of another version.
        fault: why it is not on time, None if it is: of INVALID, FAILED, NOT_MIGRATED, NOT_LOGGED, CHANGED, NEVER_BUILT
            and BEHIND the first that applies, whether or not a refresh is open or somebody holds the view;
            REMOVED where there is nothing to be on time.
        open_refreshes: primary keys of the refreshes under way, oldest first, at most `MOST_LISTED`.
        progress: how much of the oldest of these is done, from 0 to 1; None if that is unknown.
        running: who is at work in it now.
        error: what is wrong with its definition, else what the last refresh failed with.
    """

    label: str
    state: ViewState
    changed: tuple[Phase, ...] = ()
    enabled: bool = True
    paused: bool = False
    include_in_refresh_all: bool = True
    rows: RowCount | None = None
    successes: Mapping[Phase, datetime | None] = field(default_factory=dict)
    last_success: datetime | None = None
    age: timedelta | None = None
    change_lag: timedelta | None = None
    target: timedelta | None = None
    staleness: timedelta | None = None
    not_logged: tuple[str, ...] = ()
    fault: ViewState | None = None
    open_refreshes: tuple[int, ...] = ()
    progress: float | None = None
    running: tuple[Claim, ...] = ()
    error: str = ""

    @property
    def on_time(self) -> bool:
        """Whether it works, and its rows are no older than its target allows, if it has one."""
        return self.fault is None

    @property
    def held(self) -> bool:
        """Whether an operator keeps it from being refreshed."""
        return self.paused or not self.enabled

    @property
    def failed(self) -> bool:
        """Whether its class has errors or its last refresh failed, and nobody holds it."""
        return self.fault in (ViewState.INVALID, ViewState.FAILED) and not self.held


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sources:
    """What is known of the source tables of all views.

    Attributes:
        waiting: how long the oldest change has waited to be drained, by primary key of the control.
        trackings: on what the views depend, the same.
        unlogged: the tables whose changes are not logged for a view, the same.
        untrackable: those of them of which no trigger tells.
    """

    waiting: Mapping[int, timedelta]
    trackings: Mapping[int, Tracking]
    unlogged: Mapping[int, set[str]]
    untrackable: Collection[str]

    def logs_all(self, control: ViewControl) -> bool:
        """Whether each change that counts for a view is logged."""
        return control.pk in self.trackings and not self.unlogged[control.pk]

    def missing(self, control: ViewControl) -> tuple[str, ...]:
        """The tables of which triggers could tell a view's changes, and do not."""
        return tuple(sorted(self.unlogged.get(control.pk, set()) - set(self.untrackable)))


def view_statuses(labels: Iterable[str] | None = None) -> list[ViewStatus]:
    """The state of every view that the code defines or a control row remembers, by label.

    The number of statements does not depend on the number of views.

    Args:
        labels: the views to tell of; all by default.
    """
    wanted = None if labels is None else set(labels)
    waiting = changes.oldest_waiting()  # first: what is drained meanwhile, the controls tell
    controls = {control.label: control for control in _controls(wanted)}
    views = {each.label: each for each in registry if wanted is None or each.label in wanted}
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
    if tables:  # no triggers help a view whose columns are not what its models say
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
    """The control rows, with what the status needs to know of their refreshes."""
    # What was stopped says nothing of the view.
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
            still_open.prefetch_related(Prefetch("runs", runs))[:MOST_LISTED],
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
        changed=changed,
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
    """How old the rows of a view are: as old as the oldest change that they lack.

    Where changes do not tell, or time alone changes the source, as old as the last success.
    """
    if age is None or not sources.logs_all(control) or definition is None:
        return age
    waited = change_lag or timedelta()
    return max(age, waited) if _is_past(definition, control, sources) else waited


def _is_past(definition: ViewDefinition, control: Any, sources: _Sources) -> bool:
    """Whether the dates in `source()` are other ones than when its phases last succeeded."""
    if not sources.trackings[control.pk].is_dated:
        return False
    try:
        now = plan_of(definition, alias()).moment
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
        ViewState.REFRESHING: refreshing and _in_good_hands(control),
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
    return INTERVALS_MISSED * max(filter(None, intervals))


def _progress(control: Any) -> float | None:
    """How much the runs of the oldest refresh have done; None until each has told how much it is."""
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


def _in_good_hands(control: Any) -> bool:
    return any(
        shard.is_claimed
        # What was sent again, nobody has taken so far.
        or (shard.resend_after and shard.resend_after > control.now and not shard.resends)
        for shard in control.shards.all()
    )


def _successes(
    definition: ViewDefinition | None, control: ViewControl
) -> dict[Phase, datetime | None]:
    phases = definition.options.phases if definition else tuple(Phase)
    return {phase: getattr(control, phase.success_field) for phase in phases}
