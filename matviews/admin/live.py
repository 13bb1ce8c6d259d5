"""The progress of a view's open refresh: the few values that its page polls."""

from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..engine import Extent, RunProgress, extent_of, progress_of
from ..models import Refresh, ViewControl
from ..phases import Phase
from ..states import RefreshState, RunState
from .phrases import count_keys, count_rows, number, rate

__all__ = ["refresh_progress", "view_progress"]


def view_progress(control: ViewControl) -> dict[str, Any]:
    """The `refresh_progress` of a view's oldest open refresh."""
    refreshes = Refresh.objects.filter(view=control, state=RefreshState.OPEN)
    return refresh_progress(refreshes.select_related("view").order_by("pk").first())


def refresh_progress(
    refresh: Refresh | None, progress: Sequence[RunProgress] | None = None
) -> dict[str, Any]:
    """The progress of a refresh, as values for JSON.

    Args:
        refresh: the refresh.
        progress: its `progress_of`, if the caller has read that already.

    Returns:
        refresh: its primary key, None if it is not open; works: whether anything may change soon;
        phases: the progress of each as text, by name; words: that of the current phase; done: how
        much of the current phase is done, from 0 to 1, None if unknown.
    """
    if refresh is None or refresh.finished_at:
        return {"refresh": None, "works": False, "done": None, "phases": {}, "words": ""}
    progress = progress_of(refresh) if progress is None else progress
    phases = {
        phase: [each for each in progress if each.phase == phase]
        for phase in map(Phase, refresh.phases)
    }
    words = {phase.value: _in_words(found) for phase, found in phases.items()}
    turn = next((phase for phase, found in phases.items() if _is_current(found)), None)
    return {
        "refresh": refresh.pk,
        "works": refresh.stop_requested or not refresh.view.held,
        "done": _done(phases[turn]) if turn else None,
        "phases": words,
        "words": f"{turn}: {words[turn.value]}" if turn else "",
    }


def _is_current(shards: Sequence[RunProgress]) -> bool:
    return any(each.current for each in shards)


def _in_words(shards: Sequence[RunProgress]) -> str:
    """The progress of one phase, its shards taken together."""
    extent = _extent(shards)
    worst = RunState.worst(each.run.state for each in shards)
    if worst and not any(each.run.active for each in shards):
        ended = _("done") if worst == RunState.SUCCEEDED else str(worst.label)
        return f"{count_rows(extent.rows)}, {ended}"
    if not _is_current(shards) and not extent.done:
        return str(RunState.PENDING.label)
    if not extent.rate:
        return _extent_in_words(extent)
    return f"{_extent_in_words(extent)}, {rate(extent.rate, keys=extent.unit == 'key')}"


def _extent_in_words(extent: Extent) -> str:
    if extent.unit == "row":
        if not extent.total:
            return count_rows(extent.done)
        return ngettext(
            "%(done)s of about %(total)s row", "%(done)s of about %(total)s rows", extent.total
        ) % {"done": number(extent.done), "total": number(extent.total)}
    written = _("%(rows)s written") % {"rows": count_rows(extent.rows)}
    if not extent.total:
        checked = _("%(keys)s checked") % {"keys": count_keys(extent.done)}
    else:
        checked = ngettext(
            "%(done)s of about %(total)s key", "%(done)s of about %(total)s keys", extent.total
        ) % {"done": number(extent.done), "total": number(extent.total)}
    return f"{checked}, {written}"


def _extent(shards: Sequence[RunProgress]) -> Extent:
    return extent_of(each.run for each in shards)


def _done(shards: Sequence[RunProgress]) -> float | None:
    share = _extent(shards).share
    return None if share is None else round(share, 3)
