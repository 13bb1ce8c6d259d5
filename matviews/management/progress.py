"""How far a phase is, as a line: rows or keys, rate and, where an estimate allows it, time left."""

import time
from collections import deque
from collections.abc import Callable, Iterator

from matviews import engine
from matviews.engine import Claim, Progress, RunProgress
from matviews.models import PhaseRun
from matviews.presentation import (
    format_duration,
    format_progress,
    format_rate,
    pluralize,
    rows_in_batches,
)
from matviews.states import RunState

__all__ = ["Meter", "first_line", "so_far", "title"]

RATE_WINDOW = 30.0  # seconds over which the rate is measured
MAX_SILENT_BATCH = 5.0  # seconds after which a running batch is mentioned
MAX_SILENT_WAIT = 1.0  # seconds after which a worker that is waited for is mentioned


class Meter:
    """Follows one phase in one shard and says how far it is.

    The rate counts wall-clock time over the last half minute, including time spent on other phases
    or on waiting for workers; otherwise the time left would be too short.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: RunProgress | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, seen: RunProgress) -> None:
        """Record how far the phase is now."""
        before, self._seen = self._seen, seen
        if before is None or not _continues(before, seen):
            self._samples.clear()
        elif before.run.batches == seen.run.batches:
            return
        now = self._clock()
        self._samples.append((now, seen.run.done))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_WINDOW:
            self._samples.popleft()

    @property
    def progress(self) -> Progress:
        """How far the phase is, in numbers."""
        return Progress.of([self._seen.run] if self._seen else [])

    @property
    def rate(self) -> float | None:
        """Rows or keys per second; None while it is unknown."""
        if not self.progress.done:
            return None
        (since, before), (until, now) = self._samples[0], self._samples[-1]
        return (now - before) / (until - since) if until > since else self.progress.rate or None

    @property
    def left(self) -> float | None:
        """Seconds to the end; None if it is unknown."""
        progress, rate = self.progress, self.rate
        if not progress.total or not rate:
            return None
        left = (progress.total - progress.done) / rate - self._batch_seconds
        return left if left > 0 else None

    @property
    def text(self) -> str:
        """How far the phase is, in words."""
        seen = self._seen
        if seen is None or (seen.run.active and not seen.current):
            return "pending"
        if not seen.run.active:  # the end of the refresh says why it failed
            return _outcome(seen.run) + _shared(seen)
        parts = [*self._how_far(seen.run), *self._circumstances(seen)]
        return _blocked_by(seen) + ", ".join(parts) + _shared(seen)

    @property
    def waits_for(self) -> str:
        """What is waited for: a worker, as `host:pid`, or "the change log".

        It is "" if the wait is too short to mention.
        """
        if self._seen and self._seen.to_move:
            return "the change log"
        claim = self._seen and self._seen.claim
        return claim.worker if claim and _waited(claim) >= MAX_SILENT_WAIT else ""

    @property
    def _batch_seconds(self) -> float:
        """How long the running batch has taken so far."""
        return self._clock() - self._samples[-1][0] if self._samples else 0.0

    def _how_far(self, run: PhaseRun) -> Iterator[str]:
        progress, rate, left = self.progress, self.rate, self.left
        yield format_progress(progress)
        if rate:
            yield format_rate(rate, progress.unit)
        if run.estimate and progress.total is None:
            yield f"more than the {run.estimate:,} estimated"
        if left is not None:
            yield f"{format_duration(left)} left"

    def _circumstances(self, seen: RunProgress) -> Iterator[str]:
        if seen.run.failures:
            yield f"trying again after {first_line(seen.run.error)}"
        if seen.to_move:
            yield f"moving {seen.to_move:,} entries of the change log"
        elif seen.lost:
            yield "the end of the last batch could not be recorded; trying again"
        elif seen.claim:
            if self.waits_for:
                waited = format_duration(_waited(seen.claim))
                yield f"waiting for the worker {self.waits_for} ({waited} so far)"
        elif self._batch_seconds >= MAX_SILENT_BATCH:
            so_far = f"{format_duration(self._batch_seconds)} so far"
            waits = seen.unclaimed
            yield f"waiting for a worker ({so_far})" if waits else f"this batch has taken {so_far}"


def _continues(before: RunProgress, now: RunProgress) -> bool:
    restarted = now.run.done < before.run.done
    return before.current and before.run.pk in (None, now.run.pk) and not restarted


def _waited(claim: Claim) -> float:
    return (engine.now() - claim.since).total_seconds()


def _blocked_by(seen: RunProgress) -> str:
    return f"refresh {seen.other} comes first: " if seen.ahead else ""


def _shared(seen: RunProgress) -> str:
    merged = seen.other is not None and not seen.ahead
    return f" (shared with refresh {seen.other})" if merged else ""


def title(seen: RunProgress) -> str:
    """The phase, and the shard if there is more than one."""
    shard = "" if seen.shard is None else f" shard {seen.shard}"
    return f"{seen.phase}{shard}"


def so_far(seen: RunProgress) -> str:
    """How far a phase was when the command stopped."""
    run = seen.run
    if run.active:
        done = rows_in_batches(run.rows, run.batches) if run.batches else "not started"
        return f"{title(seen)} {_blocked_by(seen)}{done}"
    error = f": {first_line(run.error)}" if run.error else ""
    return f"{title(seen)} {_outcome(run)}{error}"


def _outcome(run: PhaseRun) -> str:
    if run.state == RunState.NOT_CONVERGING:
        return "not converging"
    if run.state == RunState.FAILED:
        return "failed"
    if not run.batches:
        return "nothing to do"
    # A whole-phase hook may not count its rows, so "0 rows" could be wrong.
    counts_rows = run.rows or run.fingerprint
    did = rows_in_batches(run.rows, run.batches) if counts_rows else pluralize(run.batches, "batch")
    parked = f"; {pluralize(run.parked, 'key')} parked: see --parked" if run.parked else ""
    return f"{did}, {format_duration(run.seconds)}{parked}"


def first_line(error: str) -> str:
    """The first line of an error, for where only one fits."""
    return error.strip().partition("\n")[0]
