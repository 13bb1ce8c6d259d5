"""How the status of every view is found, for the command and the admin."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ... import changes
from ...databases import clock
from ...definition import ViewDefinition
from ...models import ViewControl
from ...phases import Phase
from ...registry import registry
from ...states import RefreshState, ViewState
from ..dispatch.resends import first_sent
from ..failures.fingerprints import changed_phases
from ..graph.loops import is_in_loop
from ..graph.upstream import NO_PROBLEM, Upstream, fault_of_class, with_problems
from ..graph.view_graph import views_read, views_upstream
from ..row_counts import RowCount, count_rows
from ..transactions import alias, now
from .known_statuses import known_status, remember
from .progress import Claim, Progress
from .records import load_records
from .timeliness import Sources, change_lag, timeliness
from .verifying import verifying_of
from .view_status import ViewStatus
from .wait_status import is_late, quiet_until, retry_in, wait_of

__all__ = ["compute_status", "view_statuses"]


def view_statuses(labels: Iterable[str] | None = None, *, counted: bool = True) -> list[ViewStatus]:
    """The state of every view that the code defines or a control row remembers, by label.

    The number of statements does not depend on the number of views.

    Args:
        labels: the views to include; all by default.
        counted: whether to count their rows, which also shows whether their tables exist.
    """
    requested = None if labels is None else set(labels)
    reads = views_read() if requested is None else views_upstream(*requested)
    waiting = (
        changes.oldest_waiting()
    )  # first: if changes are drained meanwhile, the controls show them
    needed = None if requested is None else {*requested, *reads}
    records = {control.label: control for control in load_records(needed)}
    read = set[str]().union(*reads.values()) & records.keys()
    found = with_problems({label: records[label] for label in sorted(read)})
    controls = {
        label: each for label, each in records.items() if requested is None or label in requested
    }
    views = {each.label: each for each in registry if requested is None or each.label in requested}
    rows = count_rows(views.values()) if counted else None
    sources = _sources(views, controls, waiting)
    return [
        _status(label, views.get(label), controls.get(label), rows, sources, found.of(label, reads))
        for label in sorted({*controls, *views})
    ]


def _status(
    label: str,
    definition: ViewDefinition | None,
    control: Any,
    rows: Mapping[str, RowCount] | None,
    sources: Sources,
    upstream: Upstream,
) -> ViewStatus:
    """As `compute_status`, which is skipped for a quiet view while only time passes."""
    if control is None or rows is not None:
        return compute_status(label, definition, control, rows, sources, upstream)
    status = known_status(definition, control, sources, upstream)
    if status is None:
        status = compute_status(label, definition, control, rows, sources, upstream)
        remember(definition, control, sources, upstream, status)
    return status


def _sources(
    views: Mapping[str, ViewDefinition],
    controls: Mapping[str, ViewControl],
    waiting: Mapping[int, timedelta],
) -> Sources:
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
    return Sources(
        now=now(),
        waiting=waiting,
        trackings=trackings,
        unlogged=unlogged,
        untrackable=changes.untrackable_tables(tables, alias()).keys(),
    )


def compute_status(
    label: str,
    definition: ViewDefinition | None,
    control: Any,
    rows_of: Mapping[str, RowCount] | None,
    sources: Sources,
    upstream: Upstream = NO_PROBLEM,
) -> ViewStatus:
    """The status of a view; `control` is as of `load_records`, `rows_of` None if not counted."""
    rows = rows_of.get(label) if rows_of else None
    if control is None:
        state = ViewState.NOT_MIGRATED
        return ViewStatus(label=label, state=state, faults=(state,), rows=rows)
    no_table = rows_of is not None and rows is None
    successes = _successes(definition, control)
    last_success = None if None in successes.values() else min(filter(None, successes.values()))
    target, staleness = timeliness(definition, control, successes, sources)
    known: dict[str, Any] = {
        "definition_changed": _changed(definition, control),
        "target": target,
        "staleness": staleness,
        "not_logged": sources.missing(control),
        "parked": _parked(definition, control),
        "upstream": upstream,
    }
    invalid = fault_of_class(definition) if definition else ""
    no_rows = bool(definition) and no_table and last_success is None
    faults = _faults(definition, control, known, invalid=bool(invalid), no_rows=no_rows)
    return ViewStatus(
        label=label,
        rows=rows,
        successes=successes,
        last_success=last_success,
        age=sources.now - last_success if last_success else None,
        change_lag=change_lag(control, successes, sources),
        in_loop=is_in_loop(control),
        faults=tuple(fault for fault, applies in faults.items() if applies),
        **known,
        **_of_control(control, _state(control, target, faults)),
        error=invalid or (control.last_error or "" if faults[ViewState.FAILED] else ""),
    )


def _faults(
    definition: ViewDefinition | None,
    control: Any,
    known: Mapping[str, Any],
    *,
    invalid: bool,
    no_rows: bool,
) -> dict[ViewState, bool]:
    """What keeps a view from being on time; `known` has what the status is known to have."""
    return {
        ViewState.REMOVED: definition is None,
        ViewState.INVALID: invalid,
        ViewState.SUSPENDED: control.suspended_at is not None,
        ViewState.FAILED: control.last_state == RefreshState.FAILED or control.failures > 0,
        ViewState.PARKED: known["parked"] > 0,
        ViewState.DIFFERS: definition is not None and control.differing is not None,
        ViewState.NOT_MIGRATED: no_rows,
        ViewState.NOT_LOGGED: bool(known["not_logged"]),
        ViewState.UPSTREAM_FAILED: bool(known["upstream"].failed),
        ViewState.UPSTREAM_PAUSED: bool(known["upstream"].held),
        ViewState.CHANGED: bool(known["definition_changed"]),
        ViewState.NEVER_BUILT: known["staleness"] is None,
        ViewState.BEHIND: is_late(control, known["staleness"], known["target"]),
    }


def _of_control(control: Any, state: ViewState) -> dict[str, Any]:
    """What the control and its open refreshes show by themselves."""
    waits = state is ViewState.WAITING
    return {
        "state": state,
        "waiting_for": _waited(control) if waits else None,
        "enabled": control.enabled,
        "paused": control.paused,
        "paused_at": _stored(control.paused_at) if control.paused else None,
        "paused_by": control.paused_by if control.paused else "",
        "queue": control.queue_name,
        "include_in_refresh_all": control.include_in_refresh_all,
        "failures": control.failures,
        "failing_since": _stored(control.failing_since),
        "retry_in": retry_in(control),
        "wait": wait_of(control),
        "quiet_until": quiet_until(control),
        "suspended_at": _stored(control.suspended_at),
        "open_refreshes": tuple(refresh.pk for refresh in control.open_refreshes),
        "progress": _progress(control),
        "running": _running(control),
        "verification": control.verification,
        "verifying": verifying_of(control),
        "differing": control.differing,
    }


def _waited(control: Any) -> timedelta:
    """How long no worker has taken the oldest refresh: since then, nothing else made it wait."""
    since = [control.retry_at, *map(first_sent, control.all_shards)]
    waits = [control.now - moment for moment in since if moment and moment <= control.now]
    waited: timedelta = min([now() - control.open_refreshes[0].requested_at, *waits])
    return waited


def _stored(when: datetime | None) -> datetime | None:
    return when and clock.stored(when, alias())


def _parked(definition: ViewDefinition | None, control: Any) -> int:
    """How many keys the phases of a view leave out."""
    if definition is None or not definition.parking:
        return 0
    return sum(shard.parked_count for shard in control.all_shards)


def _changed(definition: ViewDefinition | None, control: Any) -> tuple[Phase, ...]:
    return tuple(changed_phases(definition, control)) if definition else ()


def _state(control: Any, target: timedelta | None, faults: Mapping[ViewState, bool]) -> ViewState:
    held = control.waits or control.wait or control.follows
    goes_on = bool(control.open_refreshes) and not held
    by_priority = {
        ViewState.REMOVED: faults[ViewState.REMOVED],
        ViewState.INVALID: faults[ViewState.INVALID],
        ViewState.DISABLED: not control.enabled,
        ViewState.PAUSED: control.paused,
        ViewState.REFRESHING: goes_on and _is_handled(control),
        ViewState.WAITING: goes_on,
        **faults,
        ViewState.ON_TIME: target is not None,
    }
    return next((state for state, applies in by_priority.items() if applies), ViewState.NO_TARGET)


def _progress(control: Any) -> float | None:
    """How much of the oldest refresh is done; None until every run has an estimate."""
    if not control.open_refreshes:
        return None
    refresh = control.open_refreshes[0]
    leaders = [run.merged_into or run for run in refresh.all_runs]
    if len(leaders) < len(refresh.phases) * len(control.all_shards):
        return None
    return Progress.of(leaders).share


def _running(control: Any) -> tuple[Claim, ...]:
    return tuple(
        Claim(shard.worker, clock.stored(shard.claimed_at, alias()))
        for shard in control.all_shards
        if shard.is_claimed and control.open_refreshes
    )


def _is_handled(control: Any) -> bool:
    return any(
        shard.turn_deadline is not None
        # A message that had to be re-sent has not been taken by anybody so far: who had claimed it
        # before is dead.
        or (
            not shard.resends
            and (shard.is_claimed or (shard.resend_after and shard.resend_after > control.now))
        )
        for shard in control.all_shards
    )


def _successes(
    definition: ViewDefinition | None, control: ViewControl
) -> dict[Phase, datetime | None]:
    phases = definition.options.phases if definition else tuple(Phase)
    return {phase: getattr(control, phase.success_field) for phase in phases}
