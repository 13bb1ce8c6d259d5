"""The states of a refresh and of a phase run, and every change between them that is allowed."""

from collections.abc import Iterable

from django.db.models import TextChoices

from .exceptions import IllegalTransition

__all__ = ["TRANSITIONS", "RefreshState", "RunState", "ViewState", "check_transition"]


class RefreshState(TextChoices):
    """How a refresh stands. A merged one ends with the open one that it was merged into before that began."""

    OPEN = "open"
    MERGED = "merged"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class RunState(TextChoices):
    """How one phase of one refresh stands in one shard."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_CONVERGING = "not_converging", "not converging"
    STOPPED = "stopped"

    @property
    def active(self) -> bool:
        """Whether batches are still to come."""
        return self in (RunState.PENDING, RunState.RUNNING)

    @staticmethod
    def worst(states: Iterable[str]) -> "RunState | None":
        """Of the states of several runs that which says most; None of none."""
        return max(map(RunState, states), key=_FROM_GOOD_TO_BAD.index, default=None)


_FROM_GOOD_TO_BAD = (
    RunState.SUCCEEDED, RunState.PENDING, RunState.RUNNING, RunState.STOPPED,
    RunState.NOT_CONVERGING, RunState.FAILED,
)  # fmt: skip


class ViewState(TextChoices):
    """How a view stands; what needs a person first comes first."""

    INVALID = "invalid"
    FAILED = "failed"
    NOT_LOGGED = "changes not logged"
    WAITING = "waiting"
    CHANGED = "definition changed"
    BEHIND = "behind"
    NOT_MIGRATED = "not migrated"
    REMOVED = "removed from the code"
    NEVER_BUILT = "never built"
    PAUSED = "paused"
    DISABLED = "disabled"
    REFRESHING = "refreshing"
    FRESH = "on time"
    NO_TARGET = "ok, no target"

    @property
    def meaning(self) -> str:
        """The state in a sentence."""
        return _MEANINGS[self]

    @property
    def urgency(self) -> int:
        """Place among the states, from 0 for what needs a person first."""
        return list(ViewState).index(self)


_MEANINGS = {
    ViewState.INVALID: "Its definition is wrong: see manage.py check.",
    ViewState.FAILED: "Its last refresh, not counting stopped ones, failed.",
    ViewState.NOT_LOGGED: "Triggers on its source tables are missing, disabled or replaced, so changes are not "
    "logged, and every refresh is a full one.",
    ViewState.WAITING: "A refresh is open, but no worker is at it: see that one runs, and listens to the "
    "queue of its tasks.",
    ViewState.CHANGED: "Its source() is another one than that of its rows: the next refresh rebuilds it.",
    ViewState.BEHIND: "Its rows are older than its target allows.",
    ViewState.NOT_MIGRATED: "Its table or its bookkeeping is missing: run makemigrations and migrate.",
    ViewState.REMOVED: "The code no longer defines it; its history is kept.",
    ViewState.NEVER_BUILT: "A phase of it has never succeeded.",
    ViewState.PAUSED: "Its work is held; requests wait.",
    ViewState.DISABLED: "It is not refreshed; requests are refused.",
    ViewState.REFRESHING: "A refresh is under way.",
    ViewState.FRESH: "Its rows are as recent as its target requires.",
    ViewState.NO_TARGET: "Its last refresh succeeded; it has no target to be measured by.",
}

State = RefreshState | RunState

TRANSITIONS: dict[tuple[State, State], str] = {
    (RefreshState.OPEN, RefreshState.MERGED): "another asks for the same, and has not begun either",
    (RefreshState.MERGED, RefreshState.SUCCEEDED): "the one that it was merged into succeeded",
    (RefreshState.MERGED, RefreshState.FAILED): "the one that it was merged into failed",
    (
        RefreshState.MERGED,
        RefreshState.STOPPED,
    ): "a person stopped it, or the one that it was merged into",
    (RefreshState.OPEN, RefreshState.SUCCEEDED): "every phase run succeeded",
    (RefreshState.OPEN, RefreshState.FAILED): "a phase run failed or did not converge",
    (RefreshState.OPEN, RefreshState.STOPPED): "a person stopped it, and no phase run failed",
    (RunState.PENDING, RunState.RUNNING): "a batch committed or was tried, and more are needed",
    (RunState.PENDING, RunState.SUCCEEDED): "nothing was needed, or one batch was enough",
    (RunState.PENDING, RunState.FAILED): "the first batch failed for good",
    (RunState.PENDING, RunState.NOT_CONVERGING): "the first batch changed nothing",
    (RunState.PENDING, RunState.STOPPED): "a person stopped the refresh before its first batch",
    (RunState.RUNNING, RunState.SUCCEEDED): "no more work is needed",
    (RunState.RUNNING, RunState.FAILED): "a batch failed for good",
    (RunState.RUNNING, RunState.NOT_CONVERGING): "work is needed, but a batch changed nothing",
    (RunState.RUNNING, RunState.STOPPED): "a person stopped the refresh between two batches",
}


def check_transition(old: State, new: State) -> None:
    """Refuse a change of state that is not in `TRANSITIONS`; staying put is allowed.

    Raises:
        IllegalTransition: the change is not in the table.
    """
    if old != new and (old, new) not in TRANSITIONS:
        raise IllegalTransition(f"{type(old).__name__} cannot go from {old!r} to {new!r}.")
