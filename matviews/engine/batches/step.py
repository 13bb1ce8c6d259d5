"""One batch of one phase run: whether it is needed, how large it may be, and its result."""

import json
import logging
import time
from dataclasses import dataclass

from ...conf import get_settings
from ...contract import Batch
from ...definition import HookKind, Hooks, ViewDefinition
from ...exceptions import NotAdvancing
from ...logs import log
from ...models import PhaseRun
from ...phases import Phase
from ...states import RunState
from ..parking.hook_keys import left_out, unpark_written
from ..parking.parked_keys import unpark_new
from ..parking.splitting import is_careful
from ..tracking.dirty_keys import count_keys, dirty_keys
from ..transactions import now
from ..work.costs import record_cost
from ..work.shard_work import Work
from .checkpoints import assign_changes, save_checkpoint
from .derived import do_derived, explained, fits_one_batch, not_migrated
from .hooks import call_do, call_needs
from .pacing import Pace, halved, halvings

__all__ = ["MAX_FAILURES", "Step"]

logger = logging.getLogger(__name__)

MAX_SAMPLES = 60  # batches of a run that the admin's plot shows
# The first window of a derived phase, as a multiple of BATCH_SIZE_INITIAL. On PostgreSQL, windows
# of 1,000 keys cost half as much again as those of 5,000.
INITIAL_WINDOW_FACTOR = 5
# The same for a batch of dirty keys, so that one batch can process a tenth of 100,000 keys.
INITIAL_DIRTY_FACTOR = 10
MAX_FAILURES = 3  # retries of a batch, and kills of a batch that cannot get smaller


@dataclass(frozen=True)
class Step:
    """The batch of a phase run whose turn it is."""

    work: Work
    run: PhaseRun

    @property
    def phase(self) -> Phase:
        """The run's phase, as the enum."""
        return Phase(self.run.phase)

    @property
    def definition(self) -> ViewDefinition:
        """The view's definition. Use it only after `fault` has found that there is one."""
        assert self.work.definition is not None
        return self.work.definition

    @property
    def hooks(self) -> Hooks:
        """The hooks of the phase and the parameters that they declare."""
        return self.definition.hooks[self.phase]

    @property
    def is_full(self) -> bool:
        """Whether the run is a full refresh of a phase derived from `source()`."""
        definition = self.work.definition
        derived = definition is not None and self.phase in definition.derived
        return derived and self.run.dirty_after is None

    @property
    def paced(self) -> bool:
        """Whether the batch has a size, because its hook declares `limit`."""
        return "limit" in self.hooks.do

    def fault(self) -> str:
        """Why this run cannot continue, "" if it can."""
        label, definition = self.work.shard.view.label, self.work.definition
        if definition is None:
            return f"The code no longer defines the view {label}."
        if definition.errors:
            return f"The view has errors: {' '.join(str(e.msg) for e in definition.errors)}"
        if self.phase not in definition.hooks:
            return f"{label} no longer has the phase {self.phase}."
        if self.work.hook_shard.count > 1 and not definition.is_shard_aware:
            count = self.work.hook_shard.count
            return f"{label} has {count} shards, but its hooks do not declare shard."
        return self._fault_of_kills() if self._kills >= MAX_FAILURES else ""

    def _fault_of_kills(self) -> str:
        """Why the run fails.

        Each kill halves the batch, and `MAX_FAILURES` kills at the floor end the run.
        """
        at_floor = self._kills - halvings(self._size(), self._floor) if self.paced else self._kills
        if at_floor < MAX_FAILURES:
            return ""
        size = f", the last time with a batch size of {self.limit()}" if self.paced else ""
        return (
            f"The batch killed its worker {self._kills} times{size}: it ran out of memory, "
            f"a library crashed or exited, or a time limit killed it."
        )

    def count_kills(self) -> None:
        """Count the workers that the batch has killed among the failures of the run."""
        self.run.failed_batches += self._kills

    def find_work(self) -> bool:
        """Drain the queue, or call `needs_*` and keep its estimate; whether the run has work.

        If a hook with a cursor has begun, `needs_*` is not called.
        """
        if self.hooks.kind is HookKind.CURSOR and self.run.batches:
            return True
        if self.hooks.is_derived:
            return assign_changes(self.work, self.run)
        answer = call_needs(
            self.definition,
            self.phase,
            shard=self.work.hook_shard,
            parked=left_out(self.work, self.phase),
        )
        # Estimates of derived phases count keys, not rows.
        if not isinstance(answer, bool) and not self.hooks.do_derived:
            self.run.estimate = self.run.rows + answer
        return bool(answer)

    def end_without_work(self) -> None:
        """End the run, because `find_work` has found none."""
        if not self.hooks.do_derived:
            unpark_written(self.work, self.run)
        self.work.end(self.run, RunState.SUCCEEDED)

    def ends_at_once(self) -> bool:
        """Whether the run ends with its next batch: it has only a few keys to process."""
        run = self.run
        if run.dirty_after is None:
            return self.hooks.is_derived and fits_one_batch(self.work, run, self.limit())
        if run.batches or run.failures:
            return False
        return count_keys(dirty_keys(self.work, run)) <= self.limit()

    def do(self) -> Batch:
        """Run one batch and record it in the run."""
        run, limit, started = self.run, self.limit(), time.monotonic()
        run.started_at = run.started_at or now()
        if self.hooks.do_derived:
            try:
                batch = do_derived(self.work, run, limit)
            except NotAdvancing as error:
                self.work.end(run, RunState.NOT_CONVERGING, error=f"Not converging: {error}")
                return Batch(0, None)
        else:
            batch = call_do(
                self.definition,
                self.phase,
                limit=limit,
                shard=self.work.hook_shard,
                cursor=run.cursor,
                parked=left_out(self.work, self.phase),
            )
        seconds = time.monotonic() - started
        state = self._state_after(batch, limit)
        run.batches += 1
        run.rows += batch.rows
        run.seconds += seconds
        run.failures = 0
        sample = [run.batches, limit if self.paced else None, batch.rows, round(seconds, 4)]
        run.samples = _thinned([*run.samples, sample])
        run.error = run.traceback = ""
        run.cursor = batch.cursor
        run.caught_up = self.hooks.kind is HookKind.LIMIT and batch.rows < limit
        run.last_batch_at = now()
        if self.paced:
            run.batch_size = limit
            self._pace(batch, limit, seconds)
        self._finish(state)
        return batch

    def explained(self, error: Exception) -> Exception:
        """A rolled back batch's error, explained if a missing table or a source row caused it."""
        if self.work.definition is None:
            return error
        error = not_migrated(error, self.definition)
        derived = self.phase in self.definition.derived
        return explained(error, self.definition) if derived else error

    def failed(
        self,
        error: str,
        trace: str,
        *,
        retry: bool,
        smaller: bool,
        external_cause: bool,
        size: int | None = None,
        too_many: bool = False,
    ) -> None:
        """Record that a batch was rolled back: the run ends, or its batch is retried.

        If it had fewer keys than its limit, `size` is their number. `external_cause` says that
        the cause lies outside the view, and `too_many` that too many keys have failed.
        """
        run = self.run
        run.failures += 1
        run.failed_batches += 1
        self.count_kills()
        if not retry or run.failures > MAX_FAILURES:
            run.external_cause = external_cause
            self.work.end(run, RunState.FAILED, error=error, trace=trace)
            if too_many:
                unpark_new(self.work, run)
            return
        if smaller and self.paced:
            run.batch_size = halved(min(self._size(), size or self._size()), 1, self._floor)
        run.move_to(RunState.RUNNING)
        run.error, run.traceback, run.last_batch_at = error, trace, now()
        run.started_at = run.started_at or run.last_batch_at
        self.work.touch(run)

    def postpone(self, error: str) -> None:
        """Record why the run has to wait."""
        self.run.error, self.run.last_batch_at = error, now()
        self.work.touch(self.run)

    def limit(self) -> int:
        """Rows that the batch may write, halved for each worker that it has killed."""
        limit = halved(self._size(), self._kills, self._floor)
        return (
            limit if self.run.dirty_after is None else min(limit, self.work.plan.dialect.max_keys)
        )

    @property
    def _kills(self) -> int:
        return self.work.shard.attempts - 1

    @property
    def _floor(self) -> int:
        return get_settings().BATCH_SIZE_MIN

    def _size(self) -> int:
        """Rows that the run's next batch may write; at its start, the size earlier runs reached."""
        if self.run.batch_size is None:
            last = self._last_run() if self.run.dirty_after is None else None
            self.run.pace = last.pace if last else {}
            if last and last.keys_scanned and self._is_comparable(last):
                self.run.estimate = self.run.estimate or last.keys_scanned
            self.run.batch_size = self._pinned or self._initial_size
        return self.run.batch_size

    def _is_comparable(self, last: PhaseRun) -> bool:
        """Whether the last run went through the keys of the present definition."""
        of_now = self.work.plan.fingerprint if self.hooks.do_derived else last.fingerprint
        return last.state == RunState.SUCCEEDED and last.fingerprint == of_now

    def _last_run(self) -> PhaseRun | None:
        """The last full run of the phase in the shard that has measured batches."""
        runs = PhaseRun.objects.filter(shard=self.run.shard_id, phase=self.phase, batches__gt=0)
        return runs.filter(dirty_after=None).order_by("-pk").first()

    @property
    def _initial_size(self) -> int:
        settings = get_settings()
        start = settings.BATCH_SIZE_INITIAL * (
            INITIAL_WINDOW_FACTOR if self.hooks.do_derived else 1
        )
        if self.run.dirty_after is not None:
            start = settings.BATCH_SIZE_INITIAL * INITIAL_DIRTY_FACTOR
        size: int = self.run.pace.get("size", start)
        return max(settings.BATCH_SIZE_MIN, min(settings.BATCH_SIZE_MAX, size))

    @property
    def _pinned(self) -> int | None:
        return self.run.refresh.pinned_size

    @property
    def _target(self) -> float:
        return self.work.shard.view.seconds_per_batch

    def _state_after(self, batch: Batch, limit: int) -> RunState:
        if self.hooks.kind is HookKind.WHOLE:
            return RunState.SUCCEEDED
        if self.hooks.kind is HookKind.CURSOR:
            return self._state_by_cursor(batch)
        if batch.rows >= limit:
            return RunState.RUNNING
        if not self.find_work():
            return RunState.SUCCEEDED
        return RunState.RUNNING if batch.rows else RunState.NOT_CONVERGING

    def _state_by_cursor(self, batch: Batch) -> RunState:
        if batch.cursor is None:
            return RunState.SUCCEEDED
        stuck = not batch.rows and json.loads(json.dumps(batch.cursor)) == self.run.cursor
        return RunState.NOT_CONVERGING if stuck else RunState.RUNNING

    def _pace(self, batch: Batch, limit: int, seconds: float) -> None:
        if self._pinned or (self.hooks.do_derived and is_careful(self.work)):
            return
        settings, before = get_settings(), Pace.from_json(self.run.pace, limit)
        # A batch with a cursor has read its whole window, however few rows it wrote.
        rows = batch.rows if batch.cursor is None else limit
        pace = before.after(
            rows=rows, limit=limit, seconds=seconds, target=self._target,
            floor=settings.BATCH_SIZE_MIN, ceiling=settings.BATCH_SIZE_MAX,
        )  # fmt: skip
        if pace.flat and not before.flat:
            log(
                logger, logging.WARNING, "smaller batches take just as long: is an index missing?",
                view=self.definition.label, phase=self.phase, size=pace.size,
                seconds=round(seconds, 3),
            )  # fmt: skip
        self.run.batch_size = pace.size
        self.run.pace = pace.to_json()

    def _finish(self, state: RunState) -> None:
        if state.active:
            self.run.move_to(state)
            self.work.touch(self.run)
            return
        if state is RunState.SUCCEEDED and self.run.checkpoint:
            save_checkpoint(self.work, self.run)
            if not is_careful(self.work):
                record_cost(self.work, self.run)
        if state is RunState.SUCCEEDED and not self.hooks.do_derived:
            unpark_written(self.work, self.run)
        error = self._not_converging() if state is RunState.NOT_CONVERGING else ""
        self.work.end(self.run, state, error=error)

    def _not_converging(self) -> str:
        name = f"{self.definition.label}.{self.phase.do_hook}"
        if self.hooks.kind is HookKind.CURSOR:
            return f"Not converging: {name} wrote no row and returned the cursor it was given."
        return (
            f"Not converging: {name} wrote no row (or returned None instead of their number), "
            f"yet {self.phase.needs_hook} still says that work is pending."
        )


def _thinned(samples: list[list[float | None]]) -> list[list[float | None]]:
    """Every second sample, including the newest, once there are too many."""
    return samples if len(samples) <= MAX_SAMPLES else samples[::-2][::-1]
