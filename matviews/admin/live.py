"""How far the work on a view is, in the few values that its page asks for every other second."""

from collections.abc import Sequence
from typing import Any

from ..engine import Progress, RunProgress, progress_of
from ..models import Refresh, ViewControl
from ..phases import Phase
from ..presentation import format_progress, format_rate, pluralize
from ..states import RefreshState, RunState

__all__ = ["refresh_progress", "view_progress"]


def view_progress(control: ViewControl) -> dict[str, Any]:
    """How far the oldest open refresh of a view is, as `refresh_progress` has it."""
    refreshes = Refresh.objects.filter(view=control, state=RefreshState.OPEN)
    return refresh_progress(refreshes.select_related("view").order_by("pk").first())


def refresh_progress(
    refresh: Refresh | None, progress: Sequence[RunProgress] | None = None
) -> dict[str, Any]:
    """How far a refresh is, as values for JSON.

    Args:
        refresh: the refresh.
        progress: its `progress_of`, where that has been read already.

    Returns:
        refresh: its primary key, None if it is not open; works: whether anything may change soon;
        phases: by name, how each stands in words; words: the phase that has its turn, in words;
        done: how much of that phase is done, from 0 to 1, None if unknown.
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
    """How far one phase is, its shards taken together."""
    progress = _progress(shards)
    worst = RunState.worst(each.run.state for each in shards)
    if worst and not any(each.run.active for each in shards):
        ended = "done" if worst == RunState.SUCCEEDED else worst.label.lower()
        return f"{pluralize(progress.rows, 'row')}, {ended}"
    if not _is_current(shards) and not progress.done:
        return "pending"
    rate = f", {format_rate(progress.rate, progress.unit)}" if progress.rate else ""
    return f"{format_progress(progress)}{rate}"


def _progress(shards: Sequence[RunProgress]) -> Progress:
    return Progress.of(each.run for each in shards)


def _done(shards: Sequence[RunProgress]) -> float | None:
    share = _progress(shards).share
    return None if share is None else round(share, 3)
