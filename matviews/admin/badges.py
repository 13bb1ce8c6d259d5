"""The badges that say how views, refreshes and runs stand."""

from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..states import RefreshState, RunState, ViewState

__all__ = ["badge"]

# What a badge looks like: `admin.css` has a class for each. By value: a state that views, refreshes
# and runs share looks the same for each.
_TONES: dict[str, str] = {
    ViewState.INVALID: "bad",
    ViewState.FAILED: "bad",
    ViewState.NOT_LOGGED: "bad",
    ViewState.WAITING: "warning",
    ViewState.CHANGED: "warning",
    ViewState.BEHIND: "warning",
    ViewState.NOT_MIGRATED: "warning",
    ViewState.REMOVED: "quiet",
    ViewState.NEVER_BUILT: "warning",
    ViewState.PAUSED: "quiet",
    ViewState.DISABLED: "quiet",
    ViewState.REFRESHING: "busy",
    ViewState.FRESH: "good",
    ViewState.NO_TARGET: "good",
    RefreshState.OPEN: "busy",
    RefreshState.MERGED: "quiet",
    RefreshState.SUCCEEDED: "good",
    RefreshState.STOPPED: "quiet",
    RunState.PENDING: "quiet",
    RunState.RUNNING: "busy",
    RunState.NOT_CONVERGING: "bad",
    "equal": "good",
    "differs": "bad",
    "repaired": "good",
}


def badge(state: str, words: str = "") -> SafeString:
    """A state as a badge, whose words say what its colour does.

    Args:
        state: of a view, a refresh or a run, as the database or the enum has it; or what a
            verification came to: "equal", "differs" or "repaired".
        words: what the badge says; the state by default.
    """
    return format_html(
        '<span class="matviews-badge matviews-{}">{}</span>',
        _TONES[state],
        words or state.replace("_", " "),
    )
