"""The looks of badges, of which `admin.css` has one for each tone. Their words say the same."""

from ..states import RefreshState, RunState, ViewState

__all__ = ["tone"]

# By value: a state that views, refreshes and runs share looks the same for each.
_TONES: dict[str, str] = {
    ViewState.INVALID: "bad",
    ViewState.FAILED: "bad",
    ViewState.WAITING: "warning",
    ViewState.BEHIND: "warning",
    ViewState.NO_ROWS: "warning",
    ViewState.NOT_IN_CODE: "quiet",
    ViewState.NEVER_BUILT: "warning",
    ViewState.PAUSED: "quiet",
    ViewState.DISABLED: "quiet",
    ViewState.REFRESHING: "busy",
    ViewState.FRESH: "good",
    ViewState.READY: "good",
    RefreshState.OPEN: "busy",
    RefreshState.SUCCEEDED: "good",
    RefreshState.STOPPED: "quiet",
    RunState.PENDING: "quiet",
    RunState.RUNNING: "busy",
    RunState.NOT_CONVERGING: "bad",
}


def tone(state: str) -> str:
    """The tone of a state's badge: good, busy, quiet, warning or bad."""
    return _TONES[state]
