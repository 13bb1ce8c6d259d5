"""The path of one batch: claim it, advance the token, run the hooks, record it, commit.

The view's rows and the bookkeeping commit together or not at all, and the token lets only one batch
commit per message. Nothing is held outside a transaction, so a killed worker leaves only a claim.
"""

import logging
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import DatabaseError, InterfaceError

from ...changes import ChangesLogged
from ...conf import get_settings
from ...databases import Failure, errors_of
from ...logs import log
from ...models import PhaseRun
from ...redact import error_text, loggable
from ...states import RunState
from ..messages import BatchReport, Message, Outcome, publish
from ..parking.hook_keys import park_failed
from ..parking.splitting import is_unfit, may_split
from ..tracking.key_ranges import Split, split_for_batch
from ..tracking.queues import await_changes, move_log
from ..transactions import (
    alias,
    batch_transaction,
    drop_broken_connection,
    limit_statements,
    short_transaction,
    statement_timeout,
)
from ..work.loader import load_work
from ..work.shard_work import Work
from .as_of import begin
from .checkpoints import KeysUncut, leave_turns, save_changes
from .claim import advance_token, claim, is_claimed, refused, withdraw
from .error_texts import UNSPLIT, loggable_error, stored_texts, unmoved_text
from .failed_batches import fail
from .step import MAX_FAILURES, Step

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
        log(
            logger, logging.ERROR, "batch lost, matviews.maintain will re-send it",
            exception=loggable(error), phase=message.phase, shard=message.shard_id,
            token=message.token, error=error_text(error),
        )  # fmt: skip
        report = BatchReport(message=message, outcome=Outcome.LOST, error=error_text(error))
    publish(report)
    return report


def _claim_and_run(message: Message) -> BatchReport:
    """Claim the batch and run it; withdraw the claim if it did not run.

    The claim lets a killed worker be counted.
    """
    if not claim(message):
        return refused(message)
    try:
        return _run_claimed(_Attempt(message))
    except _Refused:
        withdraw(message)
        report = refused(message)
        superseded = report.outcome is Outcome.STALE
        return replace(report, outcome=Outcome.SUPERSEDED) if superseded else report
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
    runs again for the requests that it has seen; first if `_TABLES_WITH_CHANGES` has its shard.
    """
    shard_id = attempt.message.shard_id
    if tables := _TABLES_WITH_CHANGES.get(shard_id):
        move_log(tables)
    while True:
        try:
            return attempt.run()
        except _Refused:
            raise
        except (ChangesLogged, KeysUncut) as due:
            again = _again(attempt, due)
            if isinstance(again, BatchReport):
                return again
            attempt = again
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            drop_broken_connection()
            if not attempt.narrow(error):
                return attempt.record_failure(error)


def _again(attempt: "_Attempt", due: ChangesLogged | KeysUncut) -> "_Attempt | BatchReport":
    """The next attempt, after what had to be done first; a report if that was not possible."""
    if isinstance(due, KeysUncut):
        split = split_for_batch(attempt.message.shard_id)
        is_busy = due.required and split is Split.BUSY
        return attempt.wait(UNSPLIT) if is_busy else attempt.after_split(split)
    _TABLES_WITH_CHANGES[attempt.message.shard_id] = tuple(due.tables)
    tables, again = await_changes(due), attempt.after_move()
    return again.postpone(unmoved_text(tables)) if tables else again


# Shards whose batches found entries in the log in this process, and the tables that matter. It only
# grows, by one item per view with triggers; one that is needless costs each batch a statement.
_TABLES_WITH_CHANGES: dict[int, tuple[str, ...]] = {}


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
        as_of: datetime | None = None,
    ) -> None:
        self.message = message
        #: Primary keys of the refreshes that the batch has seen.
        self.known = known
        #: Whether all changes that the known refreshes must include are in the queues.
        self.moved = known is not None
        #: When the work was first loaded. What has been logged since may be left to a later batch.
        self.as_of = as_of
        #: Monotonic time of the start, in seconds.
        self.started = time.monotonic()
        #: Refresh and phase whose hooks were called last; at the COMMIT, those that wrote last.
        self.tried = tried
        #: How many phases had written at the COMMIT, which a deferred constraint can make fail.
        self.done_together = 0
        #: Whether to run only one phase, because it is unknown which of several has failed.
        self.one_phase_only = False
        #: Whether to do the work by keys, because it has failed for its data; and whether a value
        #: may not have fit its staging table.
        self.splitting = self.unfit = False
        #: Whether an attempt to split the view's keys again was made; whether it succeeded.
        self.was_cut = self.cut = False
        #: How often in a row the batch of the run that was tried last had failed before.
        self.failures = 0
        self.work: Work | None = None  #: that of the shard, once it is loaded

    def run(self) -> BatchReport:
        """Run the batch and commit it together with its bookkeeping."""
        seconds = get_settings().STATEMENT_TIMEOUT
        self.done_together, self.work, done = 0, None, list[tuple[int, str]]()
        with batch_transaction(seconds):
            self.work = work = self._advance_token()
            rows, limit = self._run_due_phases(work, done) if work else (0, None)
            if work:
                leave_turns(work)
                save_changes(work)
                work.save()
            self.tried = done[-1] if done else self.tried
            self.done_together = len(done)
        return self._report(work, Outcome.DONE, rows=rows, limit=limit, work=work)

    def after_move(self) -> "_Attempt":
        """The next attempt, after the log was moved: for the same refreshes, not for later ones."""
        again = _Attempt(self.message, known=self.known, tried=self.tried, as_of=self.as_of)
        again.was_cut, again.cut = self.was_cut, self.cut
        return again

    def after_split(self, split: Split) -> "_Attempt":
        """The same attempt, after it was tried to split the keys of the view among its shards."""
        again = _Attempt(self.message, known=self.known if self.moved else None, as_of=self.as_of)
        again.was_cut, again.cut = True, split is Split.DONE
        return again

    def narrow(self, error: Exception) -> bool:
        """Limit the next attempt to one phase, or do it by keys; False if neither can help."""
        ambiguous = self._is_ambiguous(error)
        self.splitting = not ambiguous and self._may_split(error)
        self.unfit = self.splitting and self.work is not None and is_unfit(self.work, error)
        self.one_phase_only |= ambiguous or self.splitting
        return ambiguous or self.splitting

    def _is_ambiguous(self, error: Exception) -> bool:
        """Whether a statement or the COMMIT of several phases failed: which of them is unknown.

        A statement that timed out would do so again.
        """
        if self.one_phase_only or not isinstance(error, DatabaseError):
            return False
        if self.work and self.work.attempted and self.work.attempted.phases > 1:
            return errors_of(alias()).failure(error) is not Failure.RETRY_SMALLER
        return self.done_together > 1

    def _may_split(self, error: Exception) -> bool:
        """Whether the run would fail now, but its rows that are not at fault may be written."""
        if self.splitting or self.work is None or self.tried is None:
            return False
        final = errors_of(alias()).failure(error) is Failure.FINAL or self.failures >= MAX_FAILURES
        return final and may_split(self.work, self.tried, error)

    def record_failure(self, error: Exception) -> BatchReport:
        """Record why the batch was rolled back, guarded by the same token as the batch itself.

        If a hook has named the row at fault, its key is parked, and the batch has not failed.
        """
        attempted = self.work.attempted if self.work else None
        final: Exception | None = error
        with short_transaction():
            if work := self._advance_token():
                work.stop()
                if run := self._failed_run(work):
                    if final := park_failed(work, run, error):
                        final = fail(Step(work, run), final, self.work)
                    else:
                        save_changes(work)
                work.save()
        if final is None:
            return self._report(work, Outcome.DONE)
        text, shown = stored_texts(final, work, attempted)[0], loggable_error(final, work)
        return self._report(work, Outcome.FAILED, error=text, exception=shown)

    def postpone(self, error: str) -> BatchReport:
        """Leave the work to a later message, which `matviews.maintain` sends."""
        with short_transaction():
            work = self._advance_token(resend_after=None)
            if work:
                work.stop()
                if run := self._failed_run(work):
                    Step(work, run).postpone(error)
                work.save()
        return self._report(work, Outcome.WAITING, error=error)

    def wait(self, error: str) -> BatchReport:
        """Like `postpone`, without beginning a refresh: then the keys could not be split."""
        with short_transaction():
            work = self._advance_token(resend_after=None)
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
        work = load_work(self.message.shard_id, looks_at_log=not self.moved)
        if work is not None:
            work.moved, work.was_cut, work.is_new = self.moved, self.was_cut, self.cut
            self.as_of = work.loaded_at = self.as_of or work.loaded_at
            if self.known is None:
                self.known = {refresh.pk for refresh in work.refreshes if work.may_begin(refresh)}
            # Later requests are not part of a batch that failed: they get an attempt of their own.
            work.create_runs(self.known)
        return work

    def _run_due_phases(self, work: Work, done: list[tuple[int, str]]) -> tuple[int, int | None]:
        """End the phases without work, run a batch of the first that has work, append it to `done`.

        Returns the rows written and the first limit. A phase that the message does not name is left
        to its own message, and so is work that follows stopped runs: the kills counted for this
        token are theirs. Phases with only a few dirty keys share a batch: three messages would take
        longer than the work, and a row that moves from one key to another does so in one commit.
        """
        if work.stop() or work.blocked:
            return 0, None
        if work.definition and work.definition.options.statement_timeout:
            limit_statements(statement_timeout(work.definition))
        # After a kill, runs commit one at a time, or kills of one hook might count for another run.
        work.one_run_only = self.one_phase_only or work.shard.attempts > 1
        work.splitting, work.unfit = self.splitting, self.unfit
        run = work.next_run(self.message.phase)
        rows, limit = 0, None
        while run is not None:
            step = Step(work, run)
            step.count_kills()
            begin(work, run)
            self.tried, self.failures = (run.refresh_id, run.phase), run.failures
            if fault := step.fault():
                work.end(run, RunState.FAILED, error=fault)
            elif not step.find_work():
                step.end_without_work()
            else:
                together = step.ends_at_once()
                if step.phase is not self.message.phase and not (limit and together):
                    break
                limit = limit or (step.limit() if step.paced else None)
                rows += step.do().rows
                done.append(self.tried)
                if not together or run.active:
                    break
            run = None if work.one_run_only else work.next_run()
        return rows, limit

    def _report(self, found: Work | None, outcome: Outcome, **values: Any) -> BatchReport:
        return BatchReport(
            message=self.message,
            outcome=outcome,
            label=found.shard.view.label if found else "",
            seconds=time.monotonic() - self.started,
            runs=tuple(found.touched) if found else (),
            turns_in=found.turns_in if found else None,
            **values,
        )
