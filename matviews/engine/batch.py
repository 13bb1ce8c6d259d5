"""The path of one batch: claim it, advance the token, run the hooks, record it, commit.

Whatever a batch writes, the view's rows and the bookkeeping, commits together or not at all, and
the token lets only one batch commit per message. Nothing is held outside a transaction, so
a worker that is killed leaves nothing behind but a claim.
"""

import logging
import time
from dataclasses import replace
from typing import Any

from django.db import DatabaseError, DataError, InterfaceError

from .. import signals
from ..changes import ChangesLogged
from ..conf import get_settings
from ..databases import Failure, errors_of
from ..definition import ViewDefinition
from ..models import PhaseRun, ViewShard
from ..queryset import key_columns
from ..redact import bounded, error_text, in_one_line, traceback_text
from ..registry import registry
from ..states import RunState
from .checkpoints import save_changes
from .claim import advance_token, claim, is_claimed, withdraw
from .dirty_keys import distrust_dirty
from .hooks import raised_by_hook
from .messages import BatchReport, Message, Outcome
from .queues import await_changes, move_log
from .rights import denied_for
from .step import Step
from .transactions import (
    alias,
    batch_transaction,
    drop_broken_connection,
    limit_statements,
    short_transaction,
)
from .work import Work, load_work

__all__ = ["run_batch"]

logger = logging.getLogger(__name__)

# Seconds. MariaDB and MySQL lock a row before they look at its token: for a moment it is held by whoever
# turns a duplicate away.
BUSY_RETRY_DELAYS = (0.01, 0.04, 0.1)


def run_batch(message: Message) -> BatchReport:
    """Run the batch that a message asks for, if it is still due and nobody else is running it.

    Never raises for what a hook, the database or the message did: the report and the bookkeeping
    tell. Call `close_finished` afterwards.
    """
    try:
        report = _claim_and_run(message)
        for delay in BUSY_RETRY_DELAYS:
            if report.outcome is not Outcome.BUSY or is_claimed(message):
                break
            time.sleep(delay)
            report = _claim_and_run(message)
    except (DatabaseError, InterfaceError) as error:
        drop_broken_connection()
        logger.error(  # noqa: TRY400 - the exception itself may hold values of rows
            "batch lost, to be sent again by matviews.maintain shard=%s token=%s\n%s",
            message.shard_id, message.token, traceback_text(error),
        )  # fmt: skip
        report = BatchReport(message=message, outcome=Outcome.LOST, error=error_text(error))
    _publish(report)
    return report


def _claim_and_run(message: Message) -> BatchReport:
    """Claim the batch, so that a worker that dies is counted; run it, or withdraw the claim."""
    if not claim(message):
        return _refuse(message)
    try:
        return _run_claimed(_Attempt(message))
    except _Refused:
        withdraw(message)
        report = _refuse(message)
        overtaken = report.outcome is Outcome.STALE
        return replace(report, outcome=Outcome.OVERTAKEN) if overtaken else report
    except (DatabaseError, InterfaceError):
        drop_broken_connection()
        withdraw(message)
        raise
    except KeyboardInterrupt:
        # Not for SystemExit: a hook that always exits must be counted as one that kills.
        withdraw(message)
        raise


def _run_claimed(attempt: "_Attempt") -> BatchReport:
    """Run the batch until it commits, or fails by itself.

    Whoever requests a refresh wants what was logged until then. A batch that finds both a request and a log
    is rolled back; the log is moved, in transactions of its own, and the batch runs again for the requests
    that it has seen. Shards in `_LOGGED` save that first attempt.
    """
    shard_id = attempt.message.shard_id
    if shard_id in _LOGGED:
        move_log()
    while True:
        try:
            return attempt.run()
        except _Refused:
            raise
        except ChangesLogged as logged:
            _LOGGED.add(shard_id)
            if left := await_changes(logged):
                return attempt.after_move().put_off(left)
            attempt = attempt.after_move()
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            drop_broken_connection()
            if not attempt.is_ambiguous(error):
                return attempt.record_failure(error)
            attempt.alone = True


# Shards whose batches have met a log in this process. It only grows, by one number per view with triggers: a
# shard that is in it for nothing costs one statement per batch, which finds the log empty.
_LOGGED: set[int] = set()


def _refuse(message: Message) -> BatchReport:
    token = ViewShard.objects.filter(pk=message.shard_id).values_list("token", flat=True).first()
    if token is None:
        outcome = Outcome.UNKNOWN
    else:
        outcome = Outcome.BUSY if token == message.token else Outcome.STALE
    return BatchReport(message=message, outcome=outcome)


class _Refused(Exception):
    """The token has moved on between the claim and the batch."""


class _Attempt:
    """One try of one batch, and what must be remembered of it to record a failure.

    Attributes:
        message: the message.
        moved: whether all changes that the known refreshes are to see have been moved to the queues.
        started: monotonic time of the beginning, in seconds.
        known: primary keys of the refreshes that the batch has seen.
        tried: refresh and phase whose hooks were called last; at the COMMIT, those that wrote last.
        done_together: at the COMMIT, how many phases have written. It fails for a deferred constraint, say.
        alone: whether the batch is to do one phase only, after such a COMMIT has failed.
    """

    def __init__(
        self,
        message: Message,
        *,
        known: set[int] | None = None,
        tried: tuple[int, str] | None = None,
    ) -> None:
        self.message, self.known, self.moved = message, known, known is not None
        self.started = time.monotonic()
        self.tried = tried
        self.done_together, self.alone = 0, False

    def run(self) -> BatchReport:
        """Do the batch and commit it together with its bookkeeping."""
        seconds = get_settings().STATEMENT_TIMEOUT
        self.done_together, done = 0, list[tuple[int, str]]()
        with batch_transaction(seconds):
            work = self._advance_token()
            rows, limit = self._run_due_phases(work, done) if work else (0, None)
            if work:
                save_changes(work)
                work.save()
            self.tried = done[-1] if done else self.tried
            self.done_together = len(done)
        return self._report(work, Outcome.DONE, rows=rows, limit=limit)

    def after_move(self) -> "_Attempt":
        """The next try, once the log has been moved: for the same refreshes, whatever is logged meanwhile."""
        return _Attempt(self.message, known=self.known, tried=self.tried)

    def is_ambiguous(self, error: Exception) -> bool:
        """Whether the COMMIT of several phases has failed, so that nothing tells which of them failed."""
        return self.done_together > 1 and isinstance(error, DatabaseError)

    def record_failure(self, error: Exception) -> BatchReport:
        """Write down why the batch was rolled back, behind the same fence as the batch itself."""
        with short_transaction():
            work = self._advance_token()
            if work:
                work.stop()
                if run := self._failed_run(work):
                    step = Step(work, run)
                    error = step.explained(error)
                    self._fail(step, error)
                work.save()
        return self._report(work, Outcome.FAILED, error=_texts(error, work)[0])

    def put_off(self, tables: list[str]) -> BatchReport:
        """Leave the work to a message that `matviews.maintain` sends: others are moving changes that it must see."""
        names = ", ".join(tables)
        error = (
            f"Changes of {names} are not moved yet: another process holds them. It is tried again."
        )
        with short_transaction():
            work = self._advance_token(resend_after=None)
            if work:
                work.stop()
                if run := self._failed_run(work):
                    Step(work, run).put_off(error)
                work.save()
        return self._report(work, Outcome.WAITING, error=error)

    def _failed_run(self, work: Work) -> PhaseRun | None:
        """The run whose hooks were called last: those before it in the batch are innocent.

        None if that was stopped meanwhile.
        """
        if self.tried is None:
            return work.next_run(self.message.phase)
        leaders = {(run.refresh_id, run.phase): run for run in work.leaders()}
        return leaders.get(self.tried)

    def _advance_token(self, **changes: Any) -> Work | None:
        """Take the shard for this transaction; what it has to do, None if nothing.

        Raises:
            _Refused: the token has moved on since the claim.
        """
        if not advance_token(self.message, **changes):
            raise _Refused
        work = load_work(self.message.shard_id)
        if work is not None:
            work.logged = 0 if self.moved else work.logged
            if self.known is None:
                self.known = {refresh.pk for refresh in work.refreshes if work.may_begin(refresh)}
            # What was asked for since is not the failed batch's, and is tried afresh.
            work.create_runs(self.known)
        return work

    def _run_due_phases(self, work: Work, done: list[tuple[int, str]]) -> tuple[int, int | None]:
        """End the phases that need nothing, up to the one that does; do a batch of that, and add it to `done`.

        Only if it is the phase that the message names: another is left to a message of its own, and
        so is what comes after runs that were stopped: the kills that this token counts are theirs.
        Where few keys are all that the phases have to look at, they are done together: three messages would
        take longer than the work, and a row that moves from one key to another is seen to do so at once.
        """
        if work.stop() or work.shard.view.held:
            return 0, None
        if definition := work.definition:
            _limit_own(definition)
        # After a kill, one run at a time is settled and committed, or its hook could kill again
        # and again and never be the one that is blamed.
        one = self.alone or work.shard.attempts > 1
        run = work.next_run(self.message.phase)
        rows, limit = 0, None
        while run is not None:
            step = Step(work, run)
            self.tried = run.refresh_id, run.phase
            if fault := step.fault():
                work.end(run, RunState.FAILED, error=fault)
            elif not step.needed():
                work.end(run, RunState.SUCCEEDED)
            else:
                together = step.ends_at_once()
                if step.phase is not self.message.phase and not (limit and together):
                    break
                limit = limit or (step.limit() if step.paced else None)
                rows += step.do().rows
                done.append(self.tried)
                if not together:
                    break
            run = None if one else work.next_run()
        return rows, limit

    def _fail(self, step: Step, error: Exception) -> None:
        if isinstance(error, DataError):
            distrust_dirty(step.work, step.run)
        fault = errors_of(alias()).failure(error)
        step.failed(
            *_texts(error, step.work),
            again=fault is not Failure.FINAL,
            smaller=fault is Failure.RETRY_SMALLER,
        )

    def _report(self, work: Work | None, outcome: Outcome, **values: Any) -> BatchReport:
        return BatchReport(
            message=self.message,
            outcome=outcome,
            label=work.shard.view.label if work else "",
            seconds=time.monotonic() - self.started,
            runs=tuple(work.touched) if work else (),
            **values,
        )


def _limit_own(definition: ViewDefinition) -> None:
    if seconds := definition.options.statement_timeout:
        limit_statements(seconds)


def _texts(error: Exception, work: Work | None) -> tuple[str, str]:
    """What is kept of an error: its words, and its traceback."""
    definition = work.definition if work else None
    key = key_columns(definition) if definition else frozenset[str]()
    trusted = raised_by_hook(error)
    text = error_text(error, trusted=trusted, key=key)
    if definition and (lacking := denied_for(error, [definition])):
        text = bounded(f"{text}\n{lacking}")
    return text, traceback_text(error, trusted=trusted, key=key)


def _publish(report: BatchReport) -> None:
    """Tell the log and the signals what became of a message."""
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
        "batch finished view=%s phase=%s token=%s outcome=%s rows=%s limit=%s seconds=%.3f error=%s",
        report.label, message.phase, message.token, outcome.name, report.rows, report.limit,
        report.seconds, in_one_line(report.error),
    )  # fmt: skip
    sender = registry.find(report.label).model if report.label in registry else None
    signals.batch_finished.send_robust(sender=sender, report=report)
