"""The states of a refresh and of a phase run, and every change between them that is allowed."""

from django.db.models import TextChoices

from .exceptions import IllegalTransition

__all__ = ["TRANSITIONS", "RefreshState", "RunState", "check_transition"]


class RefreshState(TextChoices):
    """How a refresh stands."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RunState(TextChoices):
    """How one phase of one refresh stands in one stripe."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_CONVERGING = "not_converging", "not converging"

    @property
    def active(self) -> bool:
        """Whether batches are still to come."""
        return self in (RunState.PENDING, RunState.RUNNING)


State = RefreshState | RunState

TRANSITIONS: dict[tuple[State, State], str] = {
    (RefreshState.OPEN, RefreshState.SUCCEEDED): "every phase run succeeded",
    (RefreshState.OPEN, RefreshState.FAILED): "a phase run failed or did not converge",
    (RunState.PENDING, RunState.RUNNING): "a batch committed or was tried, and more are needed",
    (RunState.PENDING, RunState.SUCCEEDED): "nothing was needed, or one batch was enough",
    (RunState.PENDING, RunState.FAILED): "the first batch failed for good",
    (RunState.PENDING, RunState.NOT_CONVERGING): "the first batch changed nothing",
    (RunState.RUNNING, RunState.SUCCEEDED): "no more work is needed",
    (RunState.RUNNING, RunState.FAILED): "a batch failed for good",
    (RunState.RUNNING, RunState.NOT_CONVERGING): "work is needed, but a batch changed nothing",
}


def check_transition(old: State, new: State) -> None:
    """Refuse a change of state that is not in `TRANSITIONS`; staying put is allowed.

    Raises:
        IllegalTransition: the change is not in the table.
    """
    if old != new and (old, new) not in TRANSITIONS:
        raise IllegalTransition(f"{type(old).__name__} cannot go from {old!r} to {new!r}.")
