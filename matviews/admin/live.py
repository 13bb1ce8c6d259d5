"""The progress of a view's open refresh: the few values that its page polls."""

from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _

from ..engine import Progress, RunProgress, find_verifying, is_waiting, progress_of
from ..models import Refresh, ViewControl
from ..phases import Phase
from ..states import RefreshState, RunState
from .badges import badge_class, badge_text
from .phrases import count_rows, moving_log, progress_text
from .verification_section import verifying_text

__all__ = ["oldest_open", "phase_states", "refresh_progress", "state_of", "view_progress"]


def oldest_open(control: ViewControl) -> Refresh | None:
    """The oldest open refresh of a view."""
    refreshes = Refresh.objects.filter(view=control, state=RefreshState.OPEN)
    return refreshes.select_related("view").order_by("pk").first()


def view_progress(control: ViewControl) -> dict[str, Any]:
    """The `refresh_progress` of a view's oldest open refresh, and how far its verification is."""
    live = refresh_progress(oldest_open(control))
    verifying = verifying_text(find_verifying(control.pk))
    return {**live, "works": live["works"] or bool(verifying), "verifying": verifying}


def refresh_progress(
    refresh: Refresh | None, progress: Sequence[RunProgress] | None = None
) -> dict[str, Any]:
    """The progress of a refresh, as values for JSON.

    Args:
        refresh: the refresh.
        progress: its `progress_of`, if the caller has read that already.

    Returns:
        refresh: its primary key, None if it is not open; works: whether anything may change soon;
        phases: the progress of each as text, by name; badges: the state of each, as the class and
        text of its badge; words: that of the current phase; done: how
        much of the current phase is done, from 0 to 1, None if unknown.
    """
    if refresh is None or refresh.finished_at:
        nothing: dict[str, Any] = {"phases": {}, "badges": {}, "words": ""}
        return {"refresh": None, "works": False, "done": None, **nothing}
    progress = progress_of(refresh) if progress is None else progress
    phases = {
        phase: [each for each in progress if each.phase == phase]
        for phase in map(Phase, refresh.phases)
    }
    words = {phase.value: _in_words(found) for phase, found in phases.items()}
    turn = next((phase for phase, found in phases.items() if _is_current(found)), None)
    return {
        "refresh": refresh.pk,
        "works": refresh.stop_requested or not _is_blocked(refresh),
        "done": _done(phases[turn]) if turn else None,
        "phases": words,
        "badges": {
            phase.value: [badge_class(state), badge_text(state)]
            for phase, state in phase_states(progress).items()
        },
        "words": f"{turn}: {words[turn.value]}" if turn else "",
    }


def phase_states(progress: Sequence[RunProgress]) -> dict[Phase, RunState]:
    """The state of each phase of a refresh, its shards taken together."""
    states: dict[Phase, list[RunState]] = {}
    for each in progress:
        states.setdefault(each.phase, []).append(state_of(each))
    return {phase: RunState.worst(found) or RunState.PENDING for phase, found in states.items()}


def state_of(progress: RunProgress) -> RunState:
    """The state of a phase in one shard: running as soon as a worker has claimed its first batch.

    Pending while another refresh comes first.
    """
    if progress.ahead:
        return RunState.PENDING
    running = progress.claim is not None and progress.run.active
    return RunState.RUNNING if running else RunState(progress.run.state)


def _is_blocked(refresh: Refresh) -> bool:
    view = refresh.view
    return view.held or (view.retry_at is not None and is_waiting(view.pk))


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
    if entries := max(each.to_move for each in shards):
        return moving_log(entries)
    return progress_text(progress)


def _progress(shards: Sequence[RunProgress]) -> Progress:
    return Progress.of(each.run for each in shards)


def _done(shards: Sequence[RunProgress]) -> float | None:
    share = _progress(shards).share
    return None if share is None else round(share, 3)
