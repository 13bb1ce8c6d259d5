"""The progress of a view's open refresh: the few values that its page polls."""

from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _

from ..engine import Progress, RunProgress, progress_of
from ..models import Refresh, ViewControl
from ..phases import Phase
from ..states import RefreshState, RunState
from .phrases import count_rows, progress_text

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
    progress = _progress(shards)
    worst = RunState.worst(each.run.state for each in shards)
    if worst and not any(each.run.active for each in shards):
        ended = _("done") if worst == RunState.SUCCEEDED else str(worst.label)
        return f"{count_rows(progress.rows)}, {ended}"
    if not _is_current(shards) and not progress.done:
        return str(RunState.PENDING.label)
    return progress_text(progress)


def _progress(shards: Sequence[RunProgress]) -> Progress:
    return Progress.of(each.run for each in shards)


def _done(shards: Sequence[RunProgress]) -> float | None:
    share = _progress(shards).share
    return None if share is None else round(share, 3)
