"""Badges for the states of views, refreshes and runs, and for the results of verifications."""

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ..states import RefreshState, RunState, ViewState

__all__ = ["badge"]

# `admin.css` has a class for each tone. The keys are values: states that views, refreshes and runs
# share look the same.
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
    ViewState.ON_TIME: "good",
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

_LABELS = {
    **dict(ViewState.choices),
    **dict(RefreshState.choices),
    **dict(RunState.choices),
    "equal": _("equal"),
    "differs": _("differs"),
    "repaired": _("repaired"),
}


def badge(state: str, text: str = "") -> SafeString:
    """A state as a badge. Its text says what its colour does.

    Args:
        state: the value of a state, or the result of a verification: "equal", "differs" or
            "repaired".
        text: instead of the state's label.
    """
    return format_html(
        '<span class="matviews-badge matviews-{}">{}</span>', _TONES[state], text or _LABELS[state]
    )
