"""How soon views on change follow: from a commit by raw SQL to the view's row, and what it costs.

The follower is a thread of this process with a connection of its own, so both share an interpreter.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from django.db import connection
from rich.console import Console
from rich.table import Table

from matviews import changes, engine, tasks
from matviews.models import Change, RefreshSchedule, ViewControl
from matviews.tasks.following import LONGEST_WAIT, Follower

from .models import Spending
from .monitoring import idle_views
from .querysets.loading import load_orders
from .report import add
from .scheduled import Cost, cost
from .shards import two_workers
from .through_redis import own_workers

__all__ = ["Figure", "measure", "save", "show"]

ROWS = 20_000  # orders
BUILT_ROWS = 1_000_000  # orders of the view that one worker builds, and two
CHANGES = 200  # one after the other
SILENCES = 5
PER_SECOND = 200  # writes
PASSED, AT_ONCE = 1_000_000, 10_000  # entries of the log
POLL = 0.001  # seconds between two looks at the view
PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Something that was measured, and what it should be at most on PostgreSQL."""

    name: str
    #: Milliseconds, or percent of a core.
    found: float
    bar: float | None = None


def measure(
    address: str, views: int, seconds: float, runs: int, say: Callable[[str], object]
) -> Iterator[Figure]:
    """Measure all.

    Args:
        address: of the broker.
        views: that are idle.
        seconds: of silence before a change, and of writes.
        runs: calls that the cost of a look is the median of.
        say: says what begins.
    """
    load_orders(ROWS)
    changes.install(engine.alias())
    _run(Spending)
    control = ViewControl.objects.get(label=Spending._meta.label)
    RefreshSchedule.objects.filter(view=control).delete()
    RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")
    say("a follower, within traffic")
    with _follower():
        times = [_until_seen(1 + number % 100, random.random() / 20) for number in range(CHANGES)]
        yield from _quantiles("followed, within traffic", times, 40, 150)
        say(f"a follower, after {seconds:.0f} s of silence")
        times = [_until_seen(1 + number, seconds) for number in range(SILENCES)]
        yield from _quantiles("followed, after silence", times, 100, 250)
    say("writes without a follower, and with one")
    alone, _lags = _under_load(seconds, followed=False)
    engine.move_log()
    _run(Spending)
    with _follower():
        beside, lags = _under_load(seconds, followed=True)
    yield from _quantiles(f"followed, {PER_SECOND} writes a second", lags, None, 1_000)
    without, with_one = _p99(alone), _p99(beside)
    yield Figure(name="writes without, p99", found=1e3 * without)
    yield Figure(name="writes with, p99", found=1e3 * with_one, bar=1.3e3 * without)
    say("a worker and a pulse each second")
    with own_workers(address, 10_000) as workers, _pulses():
        workers.start()
        _until_seen(1, 0)
        times = [_until_seen(1 + number, random.random()) for number in range(20)]
    yield from _quantiles("by a worker, pulse of 1 s", times, 600, None)
    if connection.features.has_select_for_update:
        say(f"{PASSED:,} entries of the log, beside an open snapshot")
        yield _beside_a_snapshot(max(runs, 20))
    RefreshSchedule.objects.all().delete()
    if connection.features.has_select_for_update:
        for name, one, two in two_workers(BUILT_ROWS, runs, say):
            built = f"{BUILT_ROWS:,} orders, {name}"
            yield Figure(name=f"{built}, one worker", found=one.elapsed)
            bar = 0.65 * one.elapsed
            yield Figure(name=f"{built}, two workers", found=two.elapsed, bar=bar)
            bar = 0.65 * one.busiest
            yield Figure(name=f"{built}, processor time of one", found=one.busiest)
            yield Figure(name=f"{built}, of the busier of two", found=two.busiest, bar=bar)
    say(f"{views:,} idle views")
    yield from _idle(views, runs)


def _run(view: type[Spending]) -> None:
    refresh = engine.request(view)
    while (step := engine.close_finished_in_view(refresh.view_id)[0]).message:
        engine.run_batch(step.message)


@contextmanager
def _follower() -> Iterator[None]:
    ended = threading.Event()
    with _thread(Follower(stop=ended.is_set, report_alive=lambda: None).run, ended):
        _until_seen(1, 0)
        yield


@contextmanager
def _pulses() -> Iterator[None]:
    """Send a pulse each second, as beat does."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(1.0):
            tasks.pulse.delay()

    with _thread(send, ended):
        yield


@contextmanager
def _thread(work: Callable[[], object], ended: threading.Event) -> Iterator[None]:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _until_seen(customer: int, pause: float) -> float:
    """Seconds from the commit of a change to the view's row, after a pause."""
    time.sleep(pause)
    before = Spending.objects.get(customer=customer).total
    _write(customer)
    committed = time.perf_counter()
    while Spending.objects.get(customer=customer).total == before:
        if time.perf_counter() - committed > PATIENCE:
            raise RuntimeError(f"The row of customer {customer} has not come in {PATIENCE} s.")
        time.sleep(POLL)
    return time.perf_counter() - committed


def _write(customer: int) -> float:
    """Change an order of a customer, and commit; the seconds that took."""
    started = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE benchmarks_order SET amount = amount + 1 WHERE id = (SELECT id FROM "
            "(SELECT MIN(id) AS id FROM benchmarks_order WHERE customer_id = %s) oldest)",
            [customer],
        )
    return time.perf_counter() - started


def _under_load(seconds: float, *, followed: bool) -> tuple[list[float], list[float]]:
    """What each write took, and how late the view was, again and again, if it is followed."""
    took, lags = list[float](), list[float]()
    ended = threading.Event()

    def write() -> None:
        number, due = 0, time.perf_counter()
        while not ended.is_set():
            took.append(_write(200 + number % 1_000))
            number, due = number + 1, due + 1 / PER_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))

    with _thread(write, ended):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            if followed:
                lags.append(_until_seen(1 + len(lags) % 100, 0.05))
            else:
                time.sleep(0.1)
    return took, lags


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[-1]


def _quantiles(
    name: str, times: list[float], median: float | None, p99: float | None
) -> Iterator[Figure]:
    yield Figure(name=f"{name}, p50", found=1e3 * statistics.median(times), bar=median)
    yield Figure(name=f"{name}, p99", found=1e3 * _p99(times), bar=p99)


def _beside_a_snapshot(runs: int) -> Figure:
    """The processor time of a look at the log, when a snapshot keeps what has left the log."""
    with closing(connection.copy()) as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            else:
                cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            cursor.execute(f"SELECT COUNT(*) FROM {Change._meta.db_table}")
        poller = engine.ChangePoller()
        for _ in range(PASSED // AT_ONCE):
            _log(AT_ONCE)
            _run(Spending)
            poller.poll()
        look: Cost = cost(poller.poll, runs)
        other.rollback()
    name = f"a look after {PASSED:,} entries, snapshot open"
    return Figure(name=name, found=look.total, bar=1)


def _log(entries: int) -> None:
    """Log changes of the orders of a few customers."""
    Change.objects.bulk_create(
        Change(
            table="benchmarks_order",
            links=[["customer_id"], [1 + number % 100]],
            changed=["amount"],
        )
        for number in range(entries)
    )


def _idle(views: int, runs: int) -> Iterator[Figure]:
    """The CPU time of looks, with the server's, at the pace of idle views."""
    with idle_views(views):
        RefreshSchedule.objects.update(on_change=True, every=0, period="seconds")
        poller = engine.ChangePoller()
        poller.poll()
        look: Cost = cost(poller.poll, max(runs, 20))
        pulse = cost(tasks.pulse.run, max(runs, 20))
    name = f"{views:,} idle views"
    percent = look.total / 1e3 / LONGEST_WAIT * 100
    yield Figure(name=f"{name}, follower, % of a core", found=percent, bar=1)
    yield Figure(name=f"{name}, pulse, % of a core", found=pulse.total / 1e3 * 100, bar=0.3)


def show(figures: list[Figure], database: str, console: Console) -> None:
    """Print the figures, in milliseconds where nothing else is said."""
    table = Table(title=f"freshness on {database}", title_justify="left")
    for column in ("", "found", "at most"):
        table.add_column(column, justify="left" if not column else "right")
    for each in figures:
        bar = "" if each.bar is None else f"{each.bar:,.4g}"
        table.add_row(each.name, f"{each.found:,.4g}", bar)
    console.print(table)


def save(figures: list[Figure], database: str, path: Path) -> None:
    """Add the figures to a file, as JSON."""
    add(path, database, {"freshness": [asdict(each) for each in figures]})
