"""Badges for the states of views, refreshes, runs and alarms, and the results of verifications."""

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from ..states import RefreshState, RunState, ViewState

__all__ = ["badge", "badge_class", "badge_text", "tone"]

# `admin.css` has a class for each tone. The keys are values: states that views, refreshes and runs
# share look the same.
_TONES: dict[str, str] = {
    ViewState.INVALID: "bad",
    ViewState.SUSPENDED: "bad",
    ViewState.FAILED: "bad",
    ViewState.PARKED: "bad",
    ViewState.DIFFERS: "bad",
    ViewState.NOT_LOGGED: "bad",
    ViewState.WAITING: "warning",
    ViewState.UPSTREAM_FAILED: "warning",
    ViewState.UPSTREAM_PAUSED: "warning",
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
    "active": "bad",
    "ended": "quiet",
}

_LABELS = {
    **dict(ViewState.choices),
    **dict(RefreshState.choices),
    **dict(RunState.choices),
    "equal": _("equal"),
    "differs": _("differs"),
    "repaired": _("repaired"),
    "active": pgettext_lazy("alarm", "active"),
    "ended": pgettext_lazy("alarm", "ended"),
}


def tone(state: str) -> str:
    """The class of `admin.css` for a state."""
    return _TONES[state]


def badge(state: str, text: str = "") -> SafeString:
    """A state as a badge. Its text says what its colour does.

    Args:
        state: the value of a state, the result of a verification ("equal", "differs" or
            "repaired"), or of an alarm "active" or "ended".
        text: instead of the state's label.
    """
    return format_html('<span class="{}">{}</span>', badge_class(state), text or badge_text(state))


def badge_class(state: str) -> str:
    """The CSS classes of a badge."""
    return f"matviews-badge matviews-{_TONES[state]}"


def badge_text(state: str) -> str:
    """The label of a state."""
    return str(_LABELS[state])
