"""What the page of one view shows above its form."""

from typing import Any

from .. import engine
from ..models import Refresh, ViewControl
from ..states import RefreshState
from ..tasks import schedules
from .definitions import definition_of, phases_of
from .live import live_progress
from .statuses import in_words
from .summaries import summaries
from .tones import tone
from .words import length, rows_in_words

__all__ = ["page_context"]

LISTED = 20  # of the refreshes of a view


def page_context(control: ViewControl) -> dict[str, Any]:
    """How a view stands and what it did, for its template."""
    (status,) = engine.view_statuses([control.label])
    phases = phases_of(control.label)
    definition = definition_of(control.label)
    newest = Refresh.objects.filter(view=control).order_by("-pk")
    return {
        "status": status,
        "words": in_words(status),
        "tone": tone(status.state),
        "verbose_name": definition.model._meta.verbose_name if definition else "",
        "rows": rows_in_words(status.rows),
        "lag": "" if status.lag is None else length(status.lag),
        "target": length(status.target) if status.target else "",
        "phases": phases,
        "summaries": summaries(control, phases),
        "live": live_progress(control),
        "open_refreshes": list(newest.filter(state=RefreshState.OPEN)[:LISTED])[::-1],
        "refreshes": [(refresh, tone(refresh.state)) for refresh in newest[:LISTED]],
        "watch_problem": schedules.watch_problem(),
    }
