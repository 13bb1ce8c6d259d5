"""The values that pass between the engine and the code that delivers its messages."""

import logging
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .. import signals
from ..logs import log
from ..models import PhaseRun
from ..phases import Phase
from ..registry import registry
from ..states import RunState

__all__ = ["BatchReport", "Message", "Outcome", "publish"]

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of a batch message."""

    DONE = "the batch committed"
    FAILED = "the batch was rolled back, and the failure recorded"
    LOST = "the batch was rolled back, and the failure could not be recorded"
    WAITING = "postponed: another process has locked changes or shards that the batch needs"
    SUPERSEDED = (
        "the token advanced meanwhile: another worker ran it, or the answer to its commit was lost"
    )
    STALE = "the token has advanced: a duplicate, or too late"
    BUSY = "another batch is running in the shard"
    UNKNOWN = "there is no such shard"

    @property
    def refused(self) -> bool:
        """Whether the message was refused, so that at most a claim was written."""
        return self in (Outcome.SUPERSEDED, Outcome.STALE, Outcome.BUSY, Outcome.UNKNOWN)

    @property
    def recorded(self) -> bool:
        """Whether the token advanced after this worker claimed the batch: another may be due."""
        return self in (Outcome.DONE, Outcome.FAILED, Outcome.SUPERSEDED)


@dataclass(frozen=True, slots=True)
class Message:
    """A hint that a shard has work: all that is sent through a broker."""

    #: The phase that is due; it chooses the Celery task.
    phase: Phase
    #: Primary key of the shard.
    shard_id: int
    #: The shard's token when the message was created.
    token: int
    #: The Celery queue to send it to; None leaves it to `task_routes`. It is not part of what is
    #: sent.
    queue: str | None = field(default=None, compare=False)
    #: Whether its refresh needs more batches than one, as far as known: `fair_queueing` has it wait
    #: for others in its queue.
    is_long: bool = field(default=False, compare=False)
    #: Whether the shard takes turns already.
    in_turns: bool = field(default=False, compare=False)
    #: Whether other shards do.
    is_crowded: bool = field(default=False, compare=False)


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
    #: The queue in which other long refreshes wait for their turn; None if there were none.
    turns_in: str | None = None
    #: The exception, with no more values in it than `error` has; None if there was none.
    exception: BaseException | None = None
    #: The work of the shard as the batch left it, for `close_finished`; None unless it committed.
    work: Any = field(default=None, repr=False, compare=False)


def publish(report: BatchReport) -> None:
    """Log what became of a message, and send its signal."""
    message, outcome = report.message, report.outcome
    if outcome.refused:
        log(
            logger, logging.INFO, "message refused", shard=message.shard_id, token=message.token,
            phase=message.phase, outcome=outcome.name,
        )  # fmt: skip
        signals.message_refused.send_robust(sender=None, message=message, outcome=outcome)
        return
    failed = [run for run in report.runs if run.state in (RunState.FAILED, RunState.NOT_CONVERGING)]
    log(
        logger, logging.WARNING if report.error else logging.INFO, "batch finished",
        exception=None if failed else report.exception, view=report.label, phase=message.phase,
        shard=message.shard_id, token=message.token, outcome=outcome.name, rows=report.rows,
        limit=report.limit, seconds=round(report.seconds, 3), error=report.error,
    )  # fmt: skip
    for run in failed:
        log(
            logger, logging.ERROR, "phase failed", exception=report.exception, view=report.label,
            phase=Phase(run.phase), refresh=run.refresh_id, shard=run.shard_id, error=run.error,
        )  # fmt: skip
    sender = registry.find(report.label).model if report.label in registry else None
    signals.batch_finished.send_robust(sender=sender, report=report)
