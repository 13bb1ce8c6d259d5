"""Finding the keys that fail: runs a phase for keys, halves them on an error, parks single ones."""

import time
from collections.abc import Sequence

from django.db import DatabaseError, transaction

from ...conf import get_settings
from ...databases import errors_of, sessions_of
from ...databases.keys import Key, in_order
from ...models import PhaseRun
from ...phases import Phase
from ...queryset import BatchRunner, equal_keys
from ...redact import error_text
from ..transactions import alias
from ..work.shard_work import Work
from .parked_keys import (
    find_parked,
    involves_others,
    load_parked,
    log_parked,
    may_be_data_error,
    park,
    parked_by,
    too_many_parked,
    unpark,
)

__all__ = ["PROBES", "SAMPLE_KEYS", "Bisection"]

# Per batch. A single bad row among 10,000 takes 27. The next batch does what is left.
MAX_STATEMENTS = 400
# Once a run has tried SAMPLE_KEYS, at most this share of them is parked: if more fail, the fault is
# not in single rows.
SAMPLE_KEYS = 1_000
MAX_SHARE = 0.1
# If at most this many keys fail because of others, each is left out once.
MAX_LEFT = 20
# If this many keys, spread over a batch, all fail on their own, the source is at fault.
PROBES = 10


class Bisection:
    """Runs a phase for keys, and halves them when a statement fails because of its data.

    Args:
        work: the work of the shard.
        phase: the phase.
        runner: runs the phase for given keys.
        limit: the maximum number of keys per statement.
    """

    def __init__(self, work: Work, phase: Phase, runner: BatchRunner, limit: int) -> None:
        self.work, self.phase, self.runner, self.limit = work, phase, runner, limit
        self.rows = 0
        self.tried = 0
        self.passed: list[Key] = []
        self._statements = 0
        self._is_planned = False
        self._end = time.monotonic() + get_settings().STATEMENT_TIMEOUT
        self._failed: dict[Key, Exception] = {}
        constraints = work.plan.source.model._meta.constraints
        self._may_swap = any(getattr(each, "deferrable", None) for each in constraints)
        sessions_of(alias()).check_constraints_at_once()

    def run(self, keys: Sequence[Key], *, probed: bool = False) -> int:
        """Run the phase for keys in order, until the batch has run too many statements.

        Args:
            keys: the keys.
            probed: whether to try a few of them on their own first if all together fail.

        Returns:
            How many of the keys it has tried, from the first on.

        Raises:
            DatabaseError: the data is not at fault, or these few keys fail too.
        """
        done = self._run(keys, probed=probed)
        self.tried += done
        return done

    def run_again(self, keys: Sequence[Key]) -> None:
        """Retry keys that failed because of another row, and replace the rows that fail again."""
        self._repeat(keys)
        self._replace(keys)

    def _repeat(self, keys: Sequence[Key]) -> None:
        """Retry keys for as long as more of them succeed.

        Alternates between backwards, the order in which rows can move up by one, and forwards.
        """
        left, before = in_order(keys), 0
        while len(left) != before:
            before = len(left)
            self._run(left[::-1])
            passed = set(self.passed)
            left = [key for key in reversed(left) if key not in passed]
        self._leave_one_out(left)

    def _replace(self, keys: Sequence[Key]) -> None:
        """Delete and insert rows: no update can have them swap the values of a unique constraint.

        Rows that fail all the same are left as they are, and the others are tried without them.
        """
        assert self.work.definition is not None
        if self.phase is not Phase.UPDATE or Phase.INSERT not in self.work.definition.derived:
            return
        if self.work.plan.source.model._meta.related_objects:
            return  # rows of other tables, which a delete might take along
        left = [key for key in keys if key not in self.passed][:MAX_LEFT]
        while len(left) > 1:
            if not (failed := self._not_replaced(left)):
                self._pass(left)
                return
            left = [key for key in left if key not in failed]

    def _not_replaced(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Replace the rows of keys; return those that are refused. If any is, no row is changed."""
        failed: list[Key] = []
        try:
            with transaction.atomic(using=alias()):
                self.runner.delete_rows(keys)
                rows = sum(self._insert(key, failed) for key in keys)
                transaction.set_rollback(bool(failed), using=alias())
        except DatabaseError as error:
            if not may_be_data_error(self.work, error):
                raise
            return keys  # a trigger refuses to delete them
        self.rows += 0 if failed else rows
        return failed

    def _insert(self, key: Key, failed: list[Key]) -> int:
        """Insert the row of a key; if it fails for its data, add it to `failed`."""
        self._statements += 1
        try:
            with transaction.atomic(using=alias()):
                return self.runner.run_keys(Phase.INSERT, [key])
        except DatabaseError as error:
            if not may_be_data_error(self.work, error):
                raise
            failed.append(key)
            return 0

    def _leave_one_out(self, keys: Sequence[Key]) -> None:
        """Try all of a few keys but one, for each in turn, because two rows may swap their values.

        Halving never keeps those two together without the row that is in their way.
        """
        for key in keys if self._may_swap and 2 < len(keys) <= MAX_LEFT else ():
            others = [other for other in keys if other != key]
            if self._try(others) is None:
                self._pass(others)
                return

    def _run(self, keys: Sequence[Key], *, probed: bool = False) -> int:
        starts = reversed(range(0, len(keys), self.limit))
        waiting = [(start, min(start + self.limit, len(keys))) for start in starts]
        while waiting:
            start, end = waiting.pop()
            if self._is_over():
                return start
            error = self._try(keys[start:end])
            if error is None:
                self._pass(keys[start:end])
            elif end - start == 1:
                self._failed[keys[start]] = error
            else:
                if probed and end - start == len(keys):
                    self._probe(keys)
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
        return len(keys)

    def _pass(self, keys: Sequence[Key]) -> None:
        self.passed += keys
        for key in keys:
            self._failed.pop(key, None)

    def _is_over(self) -> bool:
        """Whether to leave the rest to the next batch, which needs at least one key done."""
        late = time.monotonic() > self._end and bool(self.passed or self._failed)
        return late or self._statements >= MAX_STATEMENTS

    def _try(self, keys: Sequence[Key]) -> Exception | None:
        """Run the phase for keys. If the data is at fault, change nothing and return the error."""
        self._statements += 1
        try:
            with transaction.atomic(using=alias()):
                self.rows += self.runner.run_keys(self.phase, keys)
        except DatabaseError as error:
            if not may_be_data_error(self.work, error):
                raise
            if not errors_of(alias()).is_data_error(error):
                self._check_plan(keys[0], error)
            return error
        return None

    def _probe(self, keys: Sequence[Key]) -> None:
        """Try a few keys, spread over all of them, on their own until one succeeds.

        Raises:
            DatabaseError: all of them fail, none because of another row.
        """
        for place in range(PROBES):
            error = self._try([keys[(2 * place + 1) * len(keys) // (2 * PROBES)]])
            if error is None or involves_others(error):
                return
        assert error is not None
        raise self._too_many(
            error, f"{PROBES} of {len(keys):,} keys were tried alone, and all failed."
        ) from error.__cause__

    def check_keys(self) -> None:
        """Check that the keys that failed are valid for the types of the view's columns.

        Raises:
            DatabaseError: one of them is not.
        """
        for key, error in self._failed.items():
            try:
                with transaction.atomic(using=alias()):
                    self.runner.compare(key)
            except DatabaseError:
                raise error from error.__cause__

    def _check_plan(self, key: Key, error: Exception) -> None:
        """Check that the database can plan the statement, which has failed for a key.

        Raises:
            DatabaseError: it cannot, so the statement would fail for every key.
        """
        if self._is_planned:
            return
        try:
            with transaction.atomic(using=alias()):
                self.runner.plan_key(self.phase, key)
        except DatabaseError as found:
            if not may_be_data_error(self.work, found):
                raise
            note = "The statement fails whatever its keys: it cannot even be planned."
            raise self._too_many(error, note) from error.__cause__
        self._is_planned = True

    def finish(self, run: PhaseRun) -> int:
        """Park the keys that failed, unpark those that succeeded, and return the rows written.

        Raises:
            DatabaseError: too many keys have failed.
        """
        work, phase = self.work, self.phase
        again = [key for key, error in self._failed.items() if involves_others(error)]
        changed = self.rows or len(again) < self.tried
        if changed or self._may_swap:
            self._statements = 0
            self._repeat(again)
        self._replace(again)
        self.unpark_succeeded()
        if self._failed and not self.passed:
            self._check_plan(*next(iter(self._failed.items())))
        failed, known = self._by_spelling(), load_parked(work, phase)
        new = [key for key in failed if key not in known]
        if failed:
            self._check_number(run, new)
        for key, error in failed.items():
            park(work, phase, key, error)
        if new:
            log_parked(work, phase, len(new), error_text(failed[new[-1]], trusted=False))
        run.parked = len(load_parked(work, phase))
        return self.rows

    def unpark_succeeded(self) -> int:
        """Unpark the keys that succeeded, and return the rows written."""
        statements = self.runner.statements
        unpark(self.work, find_parked(self.work, self.phase, self.passed, statements).values())
        return self.rows

    def _by_spelling(self) -> dict[Key, Exception]:
        """The errors by key, each key once: spelled as it is parked, or else as it first failed."""
        if not self._failed:
            return {}
        others = [*load_parked(self.work, self.phase), *self._failed]
        first = equal_keys(self.runner.statements, list(self._failed), others)
        return {first[key]: error for key, error in self._failed.items()}

    def _check_number(self, run: PhaseRun, new: Sequence[Key]) -> None:
        error = next(reversed(self._failed.values()))
        work = self.work
        if note := too_many_parked(work, len(new)):
            raise self._too_many(error, note) from error.__cause__
        tried = run.keys_scanned + self.tried
        failed = len(parked_by(work, run)) + len(new)
        if new and tried >= SAMPLE_KEYS and failed > MAX_SHARE * tried:
            note = f"{failed:,} of {tried:,} keys failed, so they are not parked."
            raise self._too_many(error, note) from error.__cause__

    def _too_many(self, error: Exception, note: str) -> Exception:
        """The error, with a note, of a batch that fails because too many keys have failed."""
        self.work.too_many_failed = True
        error.add_note(note)
        return error
