"""The values that pass between the engine and the code that delivers its messages."""

import logging
from dataclasses import dataclass
from enum import Enum

from .. import signals
from ..models import PhaseRun
from ..phases import Phase
from ..redact import in_one_line
from ..registry import registry

__all__ = ["BatchReport", "Message", "Outcome", "publish"]

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of a batch message."""

    DONE = "the batch committed"
    FAILED = "the batch was rolled back, and the failure recorded"
    LOST = "the batch was rolled back, and the failure could not be recorded"
    WAITING = "postponed: another process has yet to move changes that the batch must include"
    OVERTAKEN = (
        "the token advanced meanwhile: another worker ran it, or the answer to its commit was lost"
    )
    STALE = "the token has advanced: a duplicate, or too late"
    BUSY = "another batch is running in the shard"
    UNKNOWN = "there is no such shard"

    @property
    def refused(self) -> bool:
        """Whether the message was refused, so that at most a claim was written."""
        return self in (Outcome.OVERTAKEN, Outcome.STALE, Outcome.BUSY, Outcome.UNKNOWN)

    @property
    def recorded(self) -> bool:
        """Whether the token advanced after this worker claimed the batch: another may be due."""
        return self in (Outcome.DONE, Outcome.FAILED, Outcome.OVERTAKEN)


@dataclass(frozen=True, slots=True)
class Message:
    """A hint that a shard has work: all that is sent through a broker."""

    #: The phase that is due; it chooses the Celery task.
    phase: Phase
    #: Primary key of the shard.
    shard_id: int
    #: The shard's token when the message was created.
    token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """The outcome of one batch message, with the figures of its batch."""

    message: Message
    outcome: Outcome
    #: The view, "" if the message was refused or no refresh was open.
    label: str = ""
    #: Rows written.
    rows: int = 0
    #: Rows that the batch was allowed to write; None for a hook without `limit`.
    limit: int | None = None
    #: How long the batch took, including its bookkeeping.
    seconds: float = 0.0
    #: The phase runs that this batch worked on or ended, as they were saved.
    runs: tuple[PhaseRun, ...] = ()
    #: Class and message of the error, "" if there was none.
    error: str = ""


def publish(report: BatchReport) -> None:
    """Log what became of a message, and send its signal."""
    message, outcome = report.message, report.outcome
    if outcome.refused:
        logger.info(
            "message refused shard=%s token=%s phase=%s outcome=%s",
            message.shard_id, message.token, message.phase, outcome.name,
        )  # fmt: skip
        signals.message_refused.send_robust(sender=None, message=message, outcome=outcome)
        return
    logger.log(
        logging.WARNING if report.error else logging.INFO,
        "batch finished view=%s phase=%s token=%s outcome=%s rows=%s limit=%s seconds=%.3f "
        "error=%s",
        report.label, message.phase, message.token, outcome.name, report.rows, report.limit,
        report.seconds, in_one_line(report.error),
    )  # fmt: skip
    sender = registry.find(report.label).model if report.label in registry else None
    signals.batch_finished.send_robust(sender=sender, report=report)
