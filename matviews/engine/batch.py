"""The path of one batch: claim it, advance the token, run the hooks, record it, commit.

The view's rows and the bookkeeping commit together or not at all, and the token lets only one batch
commit per message. Nothing is held outside a transaction, so a killed worker leaves only a claim.
"""

import logging
import time
from dataclasses import replace
from typing import Any

from django.db import DatabaseError, DataError, InterfaceError

from ..changes import ChangesLogged
from ..conf import get_settings
from ..databases import Failure, errors_of
from ..definition import ViewDefinition
from ..models import PhaseRun, ViewShard
from ..queryset import key_columns
from ..redact import bounded, error_text, traceback_text
from ..states import RunState
from .checkpoints import save_changes
from .claim import advance_token, claim, is_claimed, withdraw
from .dirty_keys import give_up_keys, require_full_refresh
from .hooks import raised_by_hook
from .messages import BatchReport, Message, Outcome, publish
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
from .work import Work
from .work_loader import load_work

__all__ = ["run_batch"]

logger = logging.getLogger(__name__)

# Seconds. MariaDB and MySQL lock a row before they compare its token, so a worker that refuses a
# duplicate holds the row briefly.
BUSY_RETRY_DELAYS = (0.01, 0.04, 0.1)


def run_batch(message: Message) -> BatchReport:
    """Run the batch that a message asks for, if it is still due and no other worker runs it.

    Errors of hooks, of the database and of the message are not raised: the report and the
    bookkeeping show them. Call `close_finished` afterwards.
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
            "batch lost, matviews.maintain will re-send it shard=%s token=%s\n%s",
            message.shard_id, message.token, traceback_text(error),
        )  # fmt: skip
        report = BatchReport(message=message, outcome=Outcome.LOST, error=error_text(error))
    publish(report)
    return report


def _claim_and_run(message: Message) -> BatchReport:
    """Claim the batch and run it; withdraw the claim if it did not run.

    The claim lets a killed worker be counted.
    """
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
        # Not for SystemExit: a hook that always exits must count as one that kills its worker.
        withdraw(message)
        raise


def _run_claimed(attempt: "_Attempt") -> BatchReport:
    """Run the batch until it commits or fails.

    A refresh must include every change that was logged before its request. A batch that finds
    entries in the log is rolled back; the log is moved in transactions of its own, and the batch
    runs again for the requests that it has seen. Shards in `_SHARDS_WITH_CHANGES` skip that first
    attempt.
    """
    shard_id = attempt.message.shard_id
    if shard_id in _SHARDS_WITH_CHANGES:
        move_log()
    while True:
        try:
            return attempt.run()
        except _Refused:
            raise
        except ChangesLogged as logged:
            _SHARDS_WITH_CHANGES.add(shard_id)
            if unmoved_tables := await_changes(logged):
                return attempt.after_move().postpone(unmoved_tables)
            attempt = attempt.after_move()
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            drop_broken_connection()
            if not attempt.is_ambiguous(error):
                return attempt.record_failure(error)
            attempt.one_phase_only = True


# Shards whose batches found entries in the log in this process. The set only grows, by one number
# per view with triggers. A shard that no longer belongs here costs one statement per batch, which
# finds the log empty.
_SHARDS_WITH_CHANGES: set[int] = set()


def _refuse(message: Message) -> BatchReport:
    token = ViewShard.objects.filter(pk=message.shard_id).values_list("token", flat=True).first()
    if token is None:
        outcome = Outcome.UNKNOWN
    else:
        outcome = Outcome.BUSY if token == message.token else Outcome.STALE
    return BatchReport(message=message, outcome=outcome)


class _Refused(Exception):
    """The token has advanced between the claim and the batch."""


class _Attempt:
    """One attempt at a batch, with the state that is required to record its failure."""

    def __init__(
        self,
        message: Message,
        *,
        known: set[int] | None = None,
        tried: tuple[int, str] | None = None,
    ) -> None:
        self.message = message
        #: Primary keys of the refreshes that the batch has seen.
        self.known = known
        #: Whether all changes that the known refreshes must include have been moved to the queues.
        self.moved = known is not None
        #: Monotonic time of the start, in seconds.
        self.started = time.monotonic()
        #: Refresh and phase whose hooks were called last; at the COMMIT, those that wrote last.
        self.tried = tried
        #: How many phases had written at the COMMIT, which a deferred constraint can make fail.
        self.done_together = 0
        #: Whether to run only one phase, because it is unknown which of several has failed.
        self.one_phase_only = False
        #: The work of the shard, once it is loaded.
        self.work: Work | None = None

    def run(self) -> BatchReport:
        """Run the batch and commit it together with its bookkeeping."""
        seconds = get_settings().STATEMENT_TIMEOUT
        self.done_together, self.work, done = 0, None, list[tuple[int, str]]()
        with batch_transaction(seconds):
            self.work = work = self._advance_token()
            rows, limit = self._run_due_phases(work, done) if work else (0, None)
            if work:
                save_changes(work)
                work.save()
            self.tried = done[-1] if done else self.tried
            self.done_together = len(done)
        return self._report(work, Outcome.DONE, rows=rows, limit=limit)

    def after_move(self) -> "_Attempt":
        """The next attempt, after the log was moved: for the same refreshes, not for later ones."""
        return _Attempt(self.message, known=self.known, tried=self.tried)

    def is_ambiguous(self, error: Exception) -> bool:
        """Whether a statement or the COMMIT of several phases failed: which of them is unknown.

        A statement that timed out would do so again.
        """
        if self.one_phase_only or not isinstance(error, DatabaseError):
            return False
        if self.work and self.work.attempted and self.work.attempted.phases > 1:
            return errors_of(alias()).failure(error) is not Failure.RETRY_SMALLER
        return self.done_together > 1

    def record_failure(self, error: Exception) -> BatchReport:
        """Record why the batch was rolled back, guarded by the same token as the batch itself."""
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

    def postpone(self, tables: list[str]) -> BatchReport:
        """Leave the work to a later message, which `matviews.maintain` sends.

        Another process has locked changes that this batch must include.
        """
        names = ", ".join(tables)
        error = (
            f"Changes of {names} have not been moved to the queue yet: another process has locked "
            f"them. The batch will be retried."
        )
        with short_transaction():
            work = self._advance_token(resend_after=None)
            if work:
                work.stop()
                if run := self._failed_run(work):
                    Step(work, run).postpone(error)
                work.save()
        return self._report(work, Outcome.WAITING, error=error)

    def _failed_run(self, work: Work) -> PhaseRun | None:
        """The run that failed: its hooks were called last. None if it was stopped.

        Earlier runs in the batch had succeeded.
        """
        if self.tried is None:
            return work.next_run(self.message.phase)
        leaders = {(run.refresh_id, run.phase): run for run in work.leaders()}
        return leaders.get(self.tried)

    def _advance_token(self, **changes: Any) -> Work | None:
        """Advance the token and load the shard's work; None if it has none.

        Raises:
            _Refused: the token has advanced since the claim.
        """
        if not advance_token(self.message, **changes):
            raise _Refused
        work = load_work(self.message.shard_id)
        if work is not None:
            work.logged = 0 if self.moved else work.logged
            if self.known is None:
                self.known = {refresh.pk for refresh in work.refreshes if work.may_begin(refresh)}
            # Later requests are not part of a batch that failed: they get an attempt of their own.
            work.create_runs(self.known)
        return work

    def _run_due_phases(self, work: Work, done: list[tuple[int, str]]) -> tuple[int, int | None]:
        """End the phases without work, run a batch of the first that has work, append it to `done`.

        Returns the rows written and the first limit. A phase that the message does not name is left
        to a message of its own, and so is work that follows stopped runs, because the kills counted
        for this token are theirs. Phases that need to process only a few dirty keys share a batch:
        three messages would take longer than the work, and a row that moves from one key to another
        does so in one commit.
        """
        if work.stop() or work.shard.view.held:
            return 0, None
        if definition := work.definition:
            _apply_statement_timeout(definition)
        # After a kill, runs end and commit one at a time. Otherwise the kills of one hook could be
        # attributed to another run.
        work.one_run_only = self.one_phase_only or work.shard.attempts > 1
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
            run = None if work.one_run_only else work.next_run()
        return rows, limit

    def _fail(self, step: Step, error: Exception) -> None:
        errors = errors_of(alias())
        failure, full = errors.failure(error), False
        attempted = self.work.attempted if self.work else None
        keys = attempted.dirty_keys if attempted else 0
        if isinstance(error, DataError):
            # Logged values do not fit a column whose type has changed, for example.
            reason = "the database could not read a dirty key, or compute its row"
            require_full_refresh(step.work, step.run, reason)
        elif attempted and keys and errors.is_statement_timeout(error):
            full = give_up_keys(step.work, step.run, attempted)
        step.failed(
            *_texts(error, step.work),
            retry=failure is not Failure.FINAL,
            smaller=failure is Failure.RETRY_SMALLER and not full,
            size=keys or None,
        )

    @property
    def _seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.started

    def _report(self, work: Work | None, outcome: Outcome, **values: Any) -> BatchReport:
        return BatchReport(
            message=self.message,
            outcome=outcome,
            label=work.shard.view.label if work else "",
            seconds=self._seconds,
            runs=tuple(work.touched) if work else (),
            **values,
        )


def _apply_statement_timeout(definition: ViewDefinition) -> None:
    if seconds := definition.options.statement_timeout:
        limit_statements(seconds)


def _texts(error: Exception, work: Work | None) -> tuple[str, str]:
    """The text and the traceback of an error, as they are stored."""
    definition = work.definition if work else None
    key = key_columns(definition) if definition else frozenset[str]()
    trusted = raised_by_hook(error)
    text = error_text(error, trusted=trusted, key=key)
    if definition and (missing := denied_for(error, [definition])):
        text = bounded(f"{text}\n{missing}")
    return text, traceback_text(error, trusted=trusted, key=key)
