"""The states of views, refreshes and phase runs, and the allowed changes between them.

Values are English and are what JSON and the database contain. Labels and meanings are translated.
"""

from collections.abc import Iterable

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from .exceptions import IllegalTransition

__all__ = [
    "TRANSITIONS",
    "RefreshState",
    "RefreshStrategy",
    "RunState",
    "ViewState",
    "check_transition",
]


class RefreshState(TextChoices):
    """The state of a refresh. A merged one ends with the refresh that it was merged into."""

    OPEN = "open", pgettext_lazy("state", "open")
    MERGED = "merged", pgettext_lazy("state", "merged")
    SUCCEEDED = "succeeded", pgettext_lazy("state", "succeeded")
    FAILED = "failed", pgettext_lazy("state", "failed")
    STOPPED = "stopped", pgettext_lazy("state", "stopped")


class RefreshStrategy(TextChoices):
    """How a phase derived from `source()` is refreshed after a change."""

    BY_KEYS = "by_keys", pgettext_lazy("strategy", "by keys")
    FULL = "full", pgettext_lazy("strategy", "in full")
    FULL_STAGED = "full_staged", pgettext_lazy("strategy", "in full, staged")

    @property
    def is_full(self) -> bool:
        """Whether it reads the whole source."""
        return self is not RefreshStrategy.BY_KEYS


class RunState(TextChoices):
    """The state of one phase of one refresh in one shard."""

    PENDING = "pending", pgettext_lazy("state", "pending")
    RUNNING = "running", pgettext_lazy("state", "running")
    SUCCEEDED = "succeeded", pgettext_lazy("state", "succeeded")
    FAILED = "failed", pgettext_lazy("state", "failed")
    NOT_CONVERGING = "not_converging", pgettext_lazy("state", "not converging")
    STOPPED = "stopped", pgettext_lazy("state", "stopped")

    @property
    def active(self) -> bool:
        """Whether more batches may follow."""
        return self in (RunState.PENDING, RunState.RUNNING)

    @staticmethod
    def worst(states: Iterable[str]) -> "RunState | None":
        """The state that needs attention most, None if there are no states."""
        return max(map(RunState, states), key=_FROM_GOOD_TO_BAD.index, default=None)


_FROM_GOOD_TO_BAD = (
    RunState.SUCCEEDED, RunState.PENDING, RunState.RUNNING, RunState.STOPPED,
    RunState.NOT_CONVERGING, RunState.FAILED,
)  # fmt: skip


class ViewState(TextChoices):
    """The state of a view, in order of urgency: what needs a person comes first."""

    INVALID = "invalid", pgettext_lazy("state", "invalid")
    SUSPENDED = "suspended", pgettext_lazy("state", "suspended")
    FAILED = "failed", pgettext_lazy("state", "failed")
    PARKED = "keys parked", pgettext_lazy("state", "keys parked")
    DIFFERS = "rows differ", pgettext_lazy("state", "rows differ")
    NOT_LOGGED = "changes not logged", pgettext_lazy("state", "changes not logged")
    WAITING = "waiting", pgettext_lazy("state", "waiting")
    UPSTREAM_FAILED = "upstream failed", pgettext_lazy("state", "upstream failed")
    UPSTREAM_PAUSED = "upstream paused", pgettext_lazy("state", "upstream paused")
    CHANGED = "definition changed", pgettext_lazy("state", "definition changed")
    BEHIND = "behind", pgettext_lazy("state", "behind")
    NOT_MIGRATED = "not migrated", pgettext_lazy("state", "not migrated")
    REMOVED = "removed from the code", pgettext_lazy("state", "removed from the code")
    NEVER_BUILT = "never built", pgettext_lazy("state", "never built")
    PAUSED = "paused", pgettext_lazy("state", "paused")
    DISABLED = "disabled", pgettext_lazy("state", "disabled")
    REFRESHING = "refreshing", pgettext_lazy("state", "refreshing")
    ON_TIME = "on time", pgettext_lazy("state", "on time")
    NO_TARGET = "ok, no target", pgettext_lazy("state", "ok, no target")

    @property
    def meaning(self) -> str:
        """What the state means, and what to do about it, in the active language."""
        return str(_MEANINGS[self])

    @property
    def urgency(self) -> int:
        """The place among the states, from 0 for the most urgent."""
        return list(ViewState).index(self)


_MEANINGS = {
    ViewState.INVALID: _("Its definition has errors: see manage.py check."),
    ViewState.SUSPENDED: _(
        "It kept failing, so its refreshes wait. Fix the cause, then resume it or refresh it: a "
        "success resumes it, as does a changed definition."
    ),
    ViewState.FAILED: _(
        "Its last refresh failed, or one of its phases has not succeeded since it failed. Stopped "
        "refreshes are not counted."
    ),
    ViewState.PARKED: _(
        "Some of its rows cannot be computed or written. They stay as they were until they can; "
        "all others are refreshed."
    ),
    ViewState.DIFFERS: _(
        "A verification found rows that differ from source() although no change of them is "
        "pending. Repair the view; a full verification that finds none ends this state too."
    ),
    ViewState.NOT_LOGGED: _(
        "Triggers on its source tables are missing, disabled or replaced, so changes are not "
        "logged, and every refresh is full."
    ),
    ViewState.WAITING: _(
        "A refresh is waiting, and no worker has picked it up. Check that a worker is running and "
        "listens to the queue of its tasks."
    ),
    ViewState.UPSTREAM_FAILED: _(
        "A view that it reads, directly or through others, has failed, so its rows are computed "
        "from old ones. Fix that view, and this one follows."
    ),
    ViewState.UPSTREAM_PAUSED: _(
        "A view that it reads, directly or through others, is paused or disabled, so its rows are "
        "computed from old ones until that view is resumed."
    ),
    ViewState.CHANGED: _(
        "source() has changed since its rows were built; the next refresh updates them."
    ),
    ViewState.BEHIND: _("Its rows are older than its target allows."),
    ViewState.NOT_MIGRATED: _(
        "Its table or its bookkeeping is missing: run makemigrations and migrate."
    ),
    ViewState.REMOVED: _("The code no longer defines it; its history is kept."),
    ViewState.NEVER_BUILT: _("At least one of its phases has never succeeded."),
    ViewState.PAUSED: _("No further batch starts; requests wait."),
    ViewState.DISABLED: _("It is not refreshed; requests are refused."),
    ViewState.REFRESHING: _("A refresh is running."),
    ViewState.ON_TIME: _("Its rows are as recent as its target requires."),
    ViewState.NO_TARGET: _("Its last refresh succeeded; it has no target to be measured by."),
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
    """Refuse a change of state that is not in `TRANSITIONS`. Keeping the state is allowed.

    Raises:
        IllegalTransition: the change is not in the table.
    """
    if old != new and (old, new) not in TRANSITIONS:
        raise IllegalTransition(f"{type(old).__name__} cannot go from {old!r} to {new!r}.")
