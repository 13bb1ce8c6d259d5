"""The values that travel between the engine and whoever delivers its messages."""

from dataclasses import dataclass
from enum import Enum

from ..models import PhaseRun
from ..phases import Phase

__all__ = ["BatchReport", "Message", "Outcome"]


class Outcome(Enum):
    """What became of a batch message."""

    DONE = "the batch committed"
    FAILED = "the batch was rolled back, and the failure recorded"
    LOST = "the batch was rolled back, and the failure could not be recorded"
    WAITING = "put off: another process has yet to move changes that the batch must see"
    OVERTAKEN = "the token moved on meanwhile: done by another, or its commit's answer was lost"
    STALE = "the token has moved on: a duplicate, or too late"
    BUSY = "another batch is at work in the shard"
    UNKNOWN = "there is no such shard"

    @property
    def refused(self) -> bool:
        """Whether the message was turned away, and nothing but a claim was written."""
        return self in (Outcome.OVERTAKEN, Outcome.STALE, Outcome.BUSY, Outcome.UNKNOWN)

    @property
    def recorded(self) -> bool:
        """Whether the token has moved on since this worker claimed the batch: see what is due."""
        return self in (Outcome.DONE, Outcome.FAILED, Outcome.OVERTAKEN)


@dataclass(frozen=True, slots=True)
class Message:
    """A hint that a shard has work: all that is sent through a broker.

    Attributes:
        phase: the phase that is due; it chooses the Celery task.
        shard_id: primary key of the shard.
        token: the shard's token when the message was made.
    """

    phase: Phase
    shard_id: int
    token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """What came of one batch message.

    Attributes:
        message: the message.
        outcome: what became of it.
        label: the view, "" when the message was refused.
        rows: rows written.
        limit: rows that the batch was allowed; None for a hook without `limit`.
        seconds: how long the batch took, with its bookkeeping.
        runs: the phase runs that this batch worked on or ended, as they were saved.
        error: class and message of what failed, "" otherwise.
    """

    message: Message
    outcome: Outcome
    label: str = ""
    rows: int = 0
    limit: int | None = None
    seconds: float = 0.0
    runs: tuple[PhaseRun, ...] = ()
    error: str = ""
