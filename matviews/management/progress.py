"""How far a phase is, in words: rows or keys, rate and, where an estimate holds, time left."""

import time
from collections import deque
from collections.abc import Callable, Iterator

from matviews import engine
from matviews.engine import Claim, Extent, RunProgress, extent_of
from matviews.models import PhaseRun
from matviews.states import RunState
from matviews.words import counted, duration

__all__ = ["Meter", "first_line", "so_far", "title"]

WINDOW = 30.0  # seconds over which the rate is measured
QUIET = 5.0  # seconds that a batch may take before that is said
WORTH_TELLING = 1.0  # seconds that a worker is waited for before that is said


class Meter:
    """Follows one phase in one shard, and tells how far it is.

    The rate is that of the clock on the wall, over the last half minute: what is spent on other
    phases or on waiting for workers is part of it, or the time left would be too short.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._progress: RunProgress | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, progress: RunProgress) -> None:
        """Take note of how the phase stands now."""
        before, self._progress = self._progress, progress
        if before is None or not _goes_on(before, progress):
            self._seen.clear()
        elif before.run.batches == progress.run.batches:
            return
        now = self._clock()
        self._seen.append((now, progress.run.done))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW:
            self._seen.popleft()

    @property
    def extent(self) -> Extent:
        """How far the phase is, in numbers."""
        return extent_of([self._progress.run] if self._progress else [])

    @property
    def rate(self) -> float | None:
        """Rows or keys per second, None as long as nothing can be said."""
        if not self.extent.done:
            return None
        (since, before), (until, now) = self._seen[0], self._seen[-1]
        return (now - before) / (until - since) if until > since else self.extent.rate or None

    @property
    def left(self) -> float | None:
        """Seconds to the end, None where nothing honest can be said."""
        extent, rate = self.extent, self.rate
        if not extent.total or not rate:
            return None
        left = (extent.total - extent.done) / rate - self._quiet
        return left if left > 0 else None

    @property
    def text(self) -> str:
        """How far the phase is."""
        progress = self._progress
        if progress is None or not (progress.current or not progress.run.active):
            return "to come"
        if not progress.run.active:
            return _ended(progress.run) + _of_other(
                progress
            )  # why is told once, at the end of the refresh
        parts = [*self._how_far(progress.run), *self._circumstances(progress)]
        return _first_other(progress) + ", ".join(parts) + _of_other(progress)

    @property
    def waits_for(self) -> str:
        """The worker that is waited for, `host:pid`, "" if that is not worth telling."""
        claim = self._progress and self._progress.claim
        return claim.worker if claim and _waited(claim) >= WORTH_TELLING else ""

    @property
    def _quiet(self) -> float:
        return self._clock() - self._seen[-1][0] if self._seen else 0.0

    def _how_far(self, run: PhaseRun) -> Iterator[str]:
        extent, rate, left = self.extent, self.rate, self.left
        if run.batches and not extent.done and extent.unit == "row":
            yield f"0 rows in {counted(run.batches, 'batch')}"
        else:
            yield extent.words
        if rate:
            yield f"{rate:,.0f} {extent.unit}s/s" if rate >= 10 else f"{rate:.1f} {extent.unit}s/s"
        if run.estimate and extent.total is None:
            yield f"more than the {run.estimate:,} estimated"
        if left is not None:
            yield f"{duration(left)} left"

    def _circumstances(self, progress: RunProgress) -> Iterator[str]:
        if progress.run.failures:
            yield f"trying again after {first_line(progress.run.error)}"
        if progress.lost:
            yield "the end of the last batch could not be recorded; it is tried again"
        elif progress.claim:
            if self.waits_for:
                waited = duration(_waited(progress.claim))
                yield f"waiting for the worker {self.waits_for} ({waited} so far)"
        elif self._quiet >= QUIET:
            yield f"this batch has taken {duration(self._quiet)} so far"


def _goes_on(before: RunProgress, now: RunProgress) -> bool:
    restarted = now.run.done < before.run.done
    return before.current and before.run.pk in (None, now.run.pk) and not restarted


def _waited(claim: Claim) -> float:
    return (engine.now() - claim.since).total_seconds()


def _first_other(progress: RunProgress) -> str:
    return f"refresh {progress.other} comes first: " if progress.ahead else ""


def _of_other(progress: RunProgress) -> str:
    merged = progress.other is not None and not progress.ahead
    return f" (shared with refresh {progress.other})" if merged else ""


def title(progress: RunProgress) -> str:
    """Phase, and shard where there is more than one."""
    shard = "" if progress.shard is None else f" shard {progress.shard}"
    return f"{progress.phase}{shard}"


def so_far(progress: RunProgress) -> str:
    """How far a phase came, for when it is left."""
    run = progress.run
    if run.active:
        extent = (
            f"{counted(run.rows, 'row')} in {counted(run.batches, 'batch')}"
            if run.batches
            else "not begun"
        )
        return f"{title(progress)} {_first_other(progress)}{extent}"
    error = f": {first_line(run.error)}" if run.error else ""
    return f"{title(progress)} {_ended(run)}{error}"


def _ended(run: PhaseRun) -> str:
    if run.state == RunState.NOT_CONVERGING:
        return "not converging"
    if run.state == RunState.FAILED:
        return "failed"
    if not run.batches:
        return "nothing to do"
    # A whole-phase hook may not have counted its rows, so no rows are not claimed to be none.
    counts = run.rows or run.fingerprint
    rows = f"{counted(run.rows, 'row')} in " if counts else ""
    return f"{rows}{counted(run.batches, 'batch')}, {duration(run.seconds)}"


def first_line(error: str) -> str:
    """The first line of an error, for a place where only one fits."""
    return error.strip().partition("\n")[0]
