"""The measurements in this process. All times are milliseconds."""

import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Self

from django.db import transaction

from matviews import engine
from matviews.models import Refresh
from matviews.phases import Phase
from matviews.states import RefreshState
from matviews.tasks import inline

from .models import Hop, NoOp
from .statements import statements
from .tasks import write

SETTLED = 5  # first batches of a refresh that are not looked at when statements are counted
ENDS = 1000  # batches at either end of the long refresh that are compared


@dataclass(frozen=True, kw_only=True)
class Times:
    """Several runs of the same thing.

    Attributes:
        median: the median of the runs' medians.
        p90: the median of the runs' 90th percentiles.
        low, high: the lowest and the highest median of a run.
    """

    median: float
    p90: float
    low: float
    high: float

    @classmethod
    def of(cls, runs: Sequence[Sequence[float]]) -> Self:
        medians = [statistics.median(run) for run in runs]
        p90s = [statistics.quantiles(run, n=10)[-1] for run in runs]
        return cls(
            median=statistics.median(medians), p90=statistics.median(p90s),
            low=min(medians), high=max(medians),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Synchronous:
    """Batches one after the other in this process.

    Attributes:
        statements: per batch, without BEGIN, COMMIT and what the hooks do.
        batch: from the end of a batch to the end of the next.
        cpu: CPU time of this process per batch.
        hooks: the same hooks alone, each call in a transaction.
        update: one UPDATE of one row, each in a transaction.
    """

    statements: int
    batch: Times
    cpu: float
    hooks: Times
    update: Times


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A refresh of three phases none of which needs anything: from the request to its end."""

    statements: int
    refresh: Times


@dataclass(frozen=True, kw_only=True)
class Long:
    """One refresh of very many batches.

    Attributes:
        batches: how many.
        first, last: median of the first and of the last thousand batches.
        cpu_first, cpu_last: mean CPU time of a batch in these.
        rss_growth: resident memory at the end less that after the first thousand batches, in KiB.
    """

    batches: int
    first: float
    last: float
    cpu_first: float
    cpu_last: float
    rss_growth: int

    @property
    def ratio(self) -> float:
        """Time of the last thousand over the first: 1 is flat."""
        return self.last / self.first


def synchronous(runs: int, batches: int) -> Synchronous:
    Hop._base_manager.create()
    per_batch = _statements_per_batch()
    cpu, engine_runs, hooks_runs, update_runs = [], [], [], []
    _build(batches // 4)
    for _ in range(runs):
        started = time.process_time()
        engine_runs.append(_build(batches))
        cpu.append((time.process_time() - started) * 1e3 / batches)
        hooks_runs.append(_each(batches, _hooks_alone))
        update_runs.append(_each(batches, write))
    return Synchronous(
        statements=per_batch, batch=Times.of(engine_runs), cpu=statistics.median(cpu),
        hooks=Times.of(hooks_runs), update=Times.of(update_runs),
    )  # fmt: skip


def idle(runs: int, refreshes: int) -> Idle:
    NoOp.batches = 0
    with statements() as found:
        _refresh_all()
    times = [_each(refreshes, _refresh_all) for _ in range(runs)]
    return Idle(statements=len(found), refresh=Times.of(times))


def long(batches: int) -> Long:
    memory: list[int] = []
    cpu: list[float] = []

    def measure(done: int) -> None:
        if done in (1, ENDS, batches - ENDS, batches):
            cpu.append(time.process_time() * 1e3 / ENDS)
        if done in (ENDS, batches):
            memory.append(_resident())

    times = _build(batches, measure)
    return Long(
        batches=batches,
        first=statistics.median(times[:ENDS]), last=statistics.median(times[-ENDS:]),
        cpu_first=cpu[1] - cpu[0], cpu_last=cpu[-1] - cpu[-2],
        rss_growth=memory[-1] - memory[0],
    )  # fmt: skip


def _statements_per_batch() -> int:
    """Statements of a batch in the middle of a refresh; they must be the same for each."""
    with statements() as found:
        after: list[int] = []
        _build(2 * SETTLED, lambda _done: after.append(len(found)))
    counts = {b - a for a, b in pairwise(after[:-1])}
    assert len(counts) == 1, f"batches differ in their statements: {counts}"
    return counts.pop()


def _build(batches: int, on_batch: Callable[[int], object] = lambda _done: None) -> list[float]:
    """Refresh in so many batches; the time from each to the next."""
    NoOp.batches = batches
    ended = array("d", bytes(8 * batches))  # all at once: memory is measured, too
    numbers = count()

    def note(_report: Any) -> None:
        number = next(numbers)
        ended[number] = time.perf_counter()
        on_batch(number + 1)

    refresh = inline.run_to_end(engine.request(NoOp, phases=[Phase.INSERT]), on_report=note)
    _assert_done(refresh, batches, next(numbers))
    return [(after - before) * 1e3 for before, after in pairwise(ended)]


def _assert_done(refresh: Refresh, batches: int, done: int) -> None:
    assert refresh.state == RefreshState.SUCCEEDED, refresh.error
    assert done == batches, f"{done} batches instead of {batches}"


def _refresh_all() -> None:
    refresh = inline.run_to_end(engine.request(NoOp))
    assert refresh.state == RefreshState.SUCCEEDED, refresh.error


def _hooks_alone() -> None:
    with transaction.atomic():
        NoOp.do_insert(limit=1000, cursor=None)


def _each(count: int, work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _resident() -> int:
    """Resident memory of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS")
