"""The status of one view: the state that operators see, and what it follows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ...phases import Phase
from ...states import ViewState
from ...waits import Wait
from ..graph.upstream import NO_PROBLEM, Upstream
from ..row_counts import RowCount
from .progress import Claim
from .verifying import Verifying

__all__ = ["ViewStatus"]


@dataclass(frozen=True, kw_only=True)
class ViewStatus:
    """The state of a view, and what it follows from."""

    #: The label of the view.
    label: str
    #: The first that applies, in the order of `statuses._state`.
    state: ViewState
    #: The phases whose rows were built by another definition than the current one.
    definition_changed: tuple[Phase, ...] = ()
    #: Whether it is refreshed at all.
    enabled: bool = True
    #: Whether its requests wait.
    paused: bool = False
    #: Since when, and by whom; None and "" if it is not paused, or if that is not known.
    paused_at: datetime | None = None
    paused_by: str = ""
    #: The Celery queue of its tasks; None leaves it to `task_routes`.
    queue: str | None = None
    #: Whether a refresh of all views includes it.
    include_in_refresh_all: bool = True
    #: The rows of its table, estimated if it is large; None if there is no table.
    rows: RowCount | None = None
    #: When each of its phases last succeeded, None if one never did.
    successes: Mapping[Phase, datetime | None] = field(default_factory=dict)
    #: The oldest of these; None if one of the phases never succeeded.
    last_success: datetime | None = None
    #: The time since `last_success`; None if there is none.
    age: timedelta | None = None
    #: How long ago the oldest change was logged that some phase has yet to process; None if there
    #: is none, changes are not tracked, or not all of them are logged.
    change_lag: timedelta | None = None
    #: How old its rows may be, from the control or the code, or else twice the longest interval of
    #: its schedules; None without any of these.
    target: timedelta | None = None
    #: What the target is compared with: the change lag or, if changes do not show how old the rows
    #: are, the age; None if the view was never built.
    staleness: timedelta | None = None
    #: The source tables whose changes should be logged but are not, because their triggers are
    #: missing, disabled, replaced, or of another version.
    not_logged: tuple[str, ...] = ()
    #: How often in a row its refreshes have failed, and since when; None if the last succeeded.
    failures: int = 0
    failing_since: datetime | None = None
    #: How long it still waits before its next try; None if it does not wait, or is suspended.
    retry_in: timedelta | None = None
    #: Why its open refreshes wait, if not because of failures; None if they do not.
    wait: Wait | None = None
    #: When its quiet hours end, in UTC; None outside of them.
    quiet_until: datetime | None = None
    #: Since when it is suspended, None if it is not.
    suspended_at: datetime | None = None
    #: How many keys its phases leave out, because their rows cannot be computed or written;
    #: a key counts once for each phase.
    parked: int = 0
    #: The views that it reads, directly or through others, and whose rows are not kept up to date.
    upstream: Upstream = NO_PROBLEM
    #: Whether its refreshes change its own source, again and again, so that they are slowed.
    in_loop: bool = False
    #: Why it is not on time: which of REMOVED, INVALID, SUSPENDED, FAILED, PARKED, DIFFERS,
    #: NOT_MIGRATED, NOT_LOGGED, UPSTREAM_FAILED, UPSTREAM_PAUSED, CHANGED, NEVER_BUILT and BEHIND
    #: apply, in this order, even if a refresh is open or the view is paused or disabled.
    faults: tuple[ViewState, ...] = ()
    #: The primary keys of its open refreshes, oldest first, at most `MAX_OPEN_REFRESHES`.
    open_refreshes: tuple[int, ...] = ()
    #: How long no worker has taken the oldest of these, since it was requested or the view was last
    #: heard of or resumed; None unless the state is WAITING.
    waiting_for: timedelta | None = None
    #: How much of that is done, from 0 to 1; None if that is unknown.
    progress: float | None = None
    #: The workers that run its batches now.
    running: tuple[Claim, ...] = ()
    #: What the last verification found, as `ViewControl.verification` has it.
    verification: Mapping[str, Any] | None = None
    #: The verification that is running or requested.
    verifying: Verifying | None = None
    #: Since when its rows are known to differ, and how many: as `ViewControl.differing` has it.
    differing: Mapping[str, Any] | None = None
    #: What is wrong with its definition, or else the error of the last refresh that failed, if it
    #: is still failing; "" without either.
    error: str = ""

    def later(self, *, age: timedelta | None, staleness: timedelta | None) -> "ViewStatus":
        """The same after some time, in a tenth of what `dataclasses.replace` takes."""
        made = object.__new__(ViewStatus)
        made.__dict__.update(self.__dict__, age=age, staleness=staleness)
        return made

    @property
    def fault(self) -> ViewState | None:
        """The first of the faults, None if it is on time."""
        return next(iter(self.faults), None)

    @property
    def on_time(self) -> bool:
        """Whether it works and its rows are no older than its target, if it has one."""
        return self.fault is None

    @property
    def held(self) -> bool:
        """Whether an operator has paused or disabled it."""
        return self.paused or not self.enabled

    @property
    def failed(self) -> bool:
        """Whether it is invalid, suspended or failed, and not held."""
        return not self.held and self.fault in (
            ViewState.INVALID,
            ViewState.SUSPENDED,
            ViewState.FAILED,
        )
