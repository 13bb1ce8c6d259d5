"""How the views stand, asked for once per request."""

from django.http import HttpRequest

from .. import engine
from ..engine import ViewStatus
from ..states import ViewState
from .words import length

__all__ = ["in_words", "statuses_of"]

_CACHED = "_matviews_statuses"


def statuses_of(request: HttpRequest) -> dict[str, ViewStatus]:
    """The status of every view, by label; the same for the whole of a request."""
    if not hasattr(request, _CACHED):
        setattr(request, _CACHED, {each.label: each for each in engine.view_statuses()})
    found: dict[str, ViewStatus] = getattr(request, _CACHED)
    return found


def in_words(status: ViewStatus) -> str:
    """The state, and by how much where that can be said."""
    if status.state == ViewState.BEHIND and status.lag and status.target:
        return f"behind by {length(status.lag - status.target)}"
    return status.state.value
