"""The status of one view: the state that operators see, and what it follows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..phases import Phase
from ..states import ViewState
from .progress import Claim
from .rows import RowCount

__all__ = ["ViewStatus"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewStatus:
    """The state of a view, and what it follows from."""

    #: The label of the view.
    label: str
    #: The first that applies, in the order of `status._state`.
    state: ViewState
    #: The phases whose rows were built by another definition than the current one.
    definition_changed: tuple[Phase, ...] = ()
    #: Whether it is refreshed at all.
    enabled: bool = True
    #: Whether its requests wait.
    paused: bool = False
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
    #: Why it is not on time, None if it is: the first of REMOVED, INVALID, FAILED, NOT_MIGRATED,
    #: NOT_LOGGED, CHANGED, NEVER_BUILT and BEHIND that applies, even if a refresh is open or the
    #: view is paused or disabled.
    fault: ViewState | None = None
    #: The primary keys of its open refreshes, oldest first, at most `status.MAX_OPEN_REFRESHES`.
    open_refreshes: tuple[int, ...] = ()
    #: How much of the oldest of these is done, from 0 to 1; None if that is unknown.
    progress: float | None = None
    #: The workers that run its batches now.
    running: tuple[Claim, ...] = ()
    #: What is wrong with its definition, or else the error of its last refresh; "" without either.
    error: str = ""

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
        """Whether its definition is invalid or its last refresh failed, and it is not held."""
        return self.fault in (ViewState.INVALID, ViewState.FAILED) and not self.held
