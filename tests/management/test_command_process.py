"""`update_materialized_views` as a process: on a terminal, under signals, beside workers."""

import fcntl
import itertools
import json
import os
import pty
import re
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import transaction
from django.utils import timezone

from matviews import engine
from matviews.management.interrupts import stop_on_signal
from matviews.models import PhaseRun, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.states import RefreshState
from tests import ROOT
from tests.helpers import services
from tests.helpers.forked import Forked
from tests.helpers.ledger import add_items, assert_each_item_once, fault
from tests.helpers.processes import DEADLINE, Workers
from tests.sample.models import Fault, Item, Ledger, Limited, Walked
from tests.shapes.models import DayStatus, Order

pytestmark = pytest.mark.django_db(transaction=True)

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
AT_ONCE = 30.0  # seconds; a process has to start, but no lease of 60 seconds to run out


# There a batch locks the whole database, so that a second command waits inside its statements.
not_on_sqlite = pytest.mark.only_on("postgres", "mariadb", reason="SQLite has one writer at a time")


@pytest.fixture(autouse=True)
def _controls() -> Iterator[None]:
    engine.sync_controls()
    yield
    while Process.started:
        Process.started.pop().end()


class Process:
    """A running command, on a terminal of its own where `columns` says how wide."""

    started: list["Process"] = []

    def __init__(self, *arguments: str, columns: int = 0, **environment: str) -> None:
        self.text = ""
        theirs = self._pipe_or_terminal(columns)
        self._process = Forked(
            ["-m", "django", "update_materialized_views", *arguments],
            cwd=ROOT,
            env=_environment(environment),
            output=theirs,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.started.append(self)

    def _pipe_or_terminal(self, columns: int) -> int:
        self._ours, theirs = pty.openpty() if columns else os.pipe()
        if columns:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        return theirs

    def _read(self) -> None:
        while chunk := _read_some(self._ours):
            self.text += chunk.decode(errors="replace")
        os.close(self._ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def words(self) -> str:
        """What it has written, without control sequences and line ends."""
        return " ".join(CONTROL.sub(" ", self.text).split())

    def wait_for(self, condition: Callable[[], object] | str) -> None:
        """Wait until a condition holds, or the process has written a text."""
        if isinstance(condition, str):
            self._wait_for(
                lambda: condition in self.words or not self._reader.is_alive(), condition
            )
            assert condition in self.words, self.text
        else:
            self._wait_for(condition, condition)

    def _wait_for(self, holds: Callable[[], object], what: object) -> None:
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < deadline, f"still waiting for {what}\n{self.text}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def status(self, seconds: float = DEADLINE) -> int:
        """Its exit status, once it has ended."""
        status = self._process.wait(timeout=seconds)
        self._reader.join()
        return status

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other end of a terminal is closed
        return b""


def _environment(others: dict[str, str]) -> dict[str, str]:
    environment = services.worker_environment("memory://", "nobody", key_prefix="")
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        environment.pop(variable, None)
    return {
        **environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8",
        "MATVIEWS_TEST_SETTINGS": json.dumps(django_settings.MATVIEWS), **others,
    }  # fmt: skip


@contextmanager
def slow(view: type[Any], hook: str = "do_insert", seconds: float = 0.3) -> Iterator[None]:
    with fault(view, hook, "sleep", seconds=seconds):
        yield


def first_insert() -> PhaseRun:
    return PhaseRun.objects.filter(phase="insert").earliest("pk")


# On a terminal


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_shows_rows_rate_and_time_left(columns: int) -> None:
    # given a view of 4,000 rows, in four batches
    add_items(4000)
    with slow(Limited):
        process = Process("--models", "Limited", "--batch-size", "1000", columns=columns)
        # then its bars tell how far it is while it works
        process.wait_for(" rows/s, ")
        process.wait_for("s left")
        assert process.status() == 0
    assert re.search(
        r"insert [━╸╺ ]+ [123],000 of about 4,000 rows, [\d,]+ rows/s, ", process.words
    )
    assert re.search(r"✓ insert ━+ 4,000 rows in 4 batches, [\d.]+ m?s", process.words)
    assert "update ━" in process.words
    assert re.search(r"✓ delete ━+ nothing to do$", process.words)
    # and no line is wider than the terminal
    lines = CONTROL.sub("", process.text).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [((), {}, True), (("--no-color",), {}, False), ((), {"NO_COLOR": "1"}, False)],
)
def test_colour_can_be_refused(
    arguments: tuple[str, ...], environment: dict[str, str], coloured: bool
) -> None:
    with fault(Limited, "needs_insert", "raise"):
        process = Process("--models", "Limited", *arguments, columns=80, **environment)
        assert process.status() == 1

    colours = [code for code in COLOUR.findall(process.text) if re.search(r"[34]\d", code)]
    assert bool(colours) == coloured
    assert "CommandError: 1 of 1 views failed: sample.Limited." in process.words


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_cuts_nothing_on_a_terminal(columns: int) -> None:
    process = Process("--list", columns=columns)
    assert process.status() == 1  # a view has errors where the database is SQLite

    lines = CONTROL.sub("", process.text).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("sample.Limited")] == [
        "sample.Limited"
    ]
    # what follows the list are sentences, which the terminal wraps
    of_list = itertools.takewhile(lambda line: not re.match(r"\S+\.\w+:? \S", line), lines)
    assert max(map(len, of_list)) <= columns
    assert "…" not in process.text


# Signals


@pytest.mark.database
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_the_first_signal_stops_between_batches_and_the_next_run_goes_on(
    number: signal.Signals, status: int
) -> None:
    # given a walk over 40 keys in batches of 10
    add_items(40)
    with slow(Walked):
        process = Process("--models", "Walked,Ledger", "--batch-size", "10", "--verbosity", "2")
        process.wait_for("batch of 10 rows")
        # when it is to stop, in the middle of a batch
        process.signal(number)
        assert process.status() == status
    # then it finished that batch, and says how far it came
    left = first_insert()
    assert "Stopping after this batch. Ctrl-C again interrupts it." in process.words
    assert f"Stopped after 0 of 2 views (sample.Walked: insert {left.rows} rows" in process.words
    assert 10 <= left.rows < 40
    assert left.cursor is not None
    assert Walked.objects.count() == left.rows
    # and the next run goes on from its cursor
    again = Process("--models", "Walked,Ledger", "--batch-size", "10")
    assert again.status(AT_ONCE) == 0
    left.refresh_from_db()
    assert (left.rows, left.batches, left.state) == (40, 5, "succeeded")
    assert set(Walked.objects.values_list("key", flat=True)) == {
        item.pk for item in Item.objects.all()
    }
    assert not Refresh.objects.filter(state=RefreshState.OPEN).exists()


@pytest.mark.database
def test_a_signal_during_the_last_batch_of_all_finds_everything_done() -> None:
    add_items(5)
    with slow(Ledger, seconds=1.0):
        process = Process("--models", "Ledger")
        process.wait_for(ViewShard.objects.filter(worker__endswith=f":{process.pid}").exists)
        time.sleep(0.3)
        process.signal(signal.SIGINT)
        assert process.status() == 0

    assert_each_item_once()


@pytest.mark.database
@pytest.mark.parametrize("columns", [0, 80], ids=["pipe", "terminal"])
def test_the_second_signal_interrupts_the_batch_and_leaves_nothing_wedged(columns: int) -> None:
    # given a batch that takes very long
    add_items(20)
    with slow(Ledger, "before_insert", 30.0):
        process = Process("--models", "Ledger", "--batch-size", "10", columns=columns)
        process.wait_for(ViewShard.objects.filter(worker__endswith=f":{process.pid}").exists)
        time.sleep(0.5)
        # when Ctrl-C is pressed twice
        process.signal(signal.SIGINT)
        process.wait_for("Stopping after this batch.")
        process.signal(signal.SIGINT)
        # then it ends at once, and says so
        assert process.status(AT_ONCE) == 130
    assert "(sample.Ledger: insert not started). What was committed stays" in process.words
    assert "Traceback" not in process.words
    assert (Ledger.objects.count(), Refresh.objects.get().state) == (0, RefreshState.OPEN)
    # and the next run need not wait for the lease
    assert Process("--models", "Ledger").status(AT_ONCE) == 0
    assert_each_item_once()


@pytest.mark.database
@not_on_sqlite
def test_the_second_signal_ends_the_statement_on_the_server_too() -> None:
    # given a batch inside a statement of many seconds
    add_items(1000)
    shard = ViewShard.objects.get(view__label="sample.Slow")
    process = Process("--models", "Slow", "--batch-size", "1000")
    process.wait_for(ViewShard.objects.filter(worker__endswith=f":{process.pid}").exists)
    time.sleep(1.0)
    process.signal(signal.SIGINT)
    process.wait_for("Stopping after this batch.")
    # when it is interrupted
    process.signal(signal.SIGINT)
    assert process.status(AT_ONCE) == 130
    # then the server holds no lock for it
    with transaction.atomic():
        free = ViewShard.objects.order_by().select_for_update(nowait=True)
        assert not free.get(pk=shard.pk).is_claimed


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal(print) as wish:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert (wish(), wish.returncode) == (True, 143)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signal(print) as wish:
            seen.append(wish())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


# Beside others


@pytest.mark.database
@not_on_sqlite
@pytest.mark.parametrize("columns", [0, 80], ids=["pipe", "terminal"])
def test_a_command_says_whom_it_waits_for(columns: int) -> None:
    # given a command inside a batch
    add_items(20)
    with slow(Ledger, seconds=10.0):  # in which a second process starts
        first = Process("--models", "Ledger")
        first.wait_for(ViewShard.objects.filter(worker__endswith=f":{first.pid}").exists)
        # when another is started
        second = Process("--models", "Ledger", columns=columns)
        # then it names the first, and both end
        second.wait_for("waiting for the worker ")
        assert (first.status(), second.status()) == (0, 0)
    worker = ViewShard.objects.get(view__label="sample.Ledger").worker
    assert re.search(rf"insert.*waiting for the worker \S+:{first.pid} \(", second.words)
    assert worker.partition(":")[0] in second.words
    assert_each_item_once()


@pytest.fixture
def small_batches(settings: Any) -> None:
    settings.MATVIEWS = {
        "LEASE": 1.0, "BATCH_SIZE_INITIAL": 5, "BATCH_SIZE_MIN": 1, "BATCH_SIZE_MAX": 5,
    }  # fmt: skip


@pytest.mark.database
@pytest.mark.usefixtures("small_batches")
def test_the_command_and_workers_refresh_one_view_and_both_end(workers: Workers) -> None:
    # given two workers on their way through a view
    workers.start(2)
    add_items(300)
    asked = Ledger.refresh()
    workers.wait_for(Ledger.objects.exists)
    # when commands refresh it too
    processes = [Process("--models", "Ledger", "--format", "json") for _ in range(2)]
    statuses = [process.status() for process in processes]
    workers.wait_until_quiet(meanwhile=workers.maintain)
    # then all end, and each row is there once
    assert statuses == [0, 0], [process.text for process in processes]
    for process in processes:
        (ledger,) = json.loads(process.text)["views"]
        assert (ledger["state"], ledger["error"]) == ("succeeded", "")
    asked.refresh_from_db()
    assert asked.state == RefreshState.SUCCEEDED
    assert workers.lines("batch finished", "outcome=DONE")
    assert_each_item_once()


@pytest.mark.database
@not_on_sqlite
@pytest.mark.usefixtures("small_batches")
def test_the_command_goes_on_where_a_worker_was_killed(workers: Workers) -> None:
    # given a worker inside a batch, and a command that waits for it
    (worker,) = workers.start()
    add_items(12)
    Fault.objects.create(view="Ledger", hook="do_insert", action="sleep", seconds=60)
    Ledger.refresh()
    workers.wait_for(lambda: worker.lines("fault", "do_insert"))
    process = Process("--models", "Ledger")
    process.wait_for("waiting for the worker ")
    # when the worker is killed
    worker.kill()
    Fault.objects.all().delete()
    # then the command does the work after the lease
    assert process.status() == 0
    assert_each_item_once()


@pytest.mark.database
@pytest.mark.parametrize("columns", [0, 80], ids=["pipe", "terminal"])
def test_the_command_takes_over_from_a_worker_that_is_gone(columns: int, settings: Any) -> None:
    # given the claim of a worker that will never come back
    settings.MATVIEWS = {"LEASE": 4.0}
    add_items(12)
    shard = ViewShard.objects.filter(view__label="sample.Ledger")
    shard.update(claimed_token=shard.get().token, claimed_at=timezone.now(), worker="vm-1:4711")
    # when a command finds it
    process = Process("--models", "Ledger", columns=columns)
    # then it says whom it waits for, and goes on after the lease
    process.wait_for("insert")
    assert process.status() == 0
    assert re.search(r"waiting for the worker vm-1:4711 \([\d.]+ s so far\)", process.words)
    assert_each_item_once()


@not_on_sqlite
@pytest.mark.database
def test_a_follower_killed_in_a_batch_is_succeeded_by_another(settings: Any) -> None:
    # given two that follow one view, one of them in the middle of a batch
    settings.MATVIEWS = {
        "LEASE": 2.0, "BATCH_SIZE_INITIAL": 5, "BATCH_SIZE_MIN": 5, "BATCH_SIZE_MAX": 5,
    }  # fmt: skip
    view = ViewControl.objects.get(label="sample.Ledger")
    RefreshSchedule.objects.create(view=view, on_change=True, every=0, period="seconds")
    add_items(30)
    asked = engine.request(Ledger)
    with slow(Ledger):
        followers = [Process("--follow", "--models", "Ledger") for _ in range(2)]
        followers[0].wait_for(lambda: ViewShard.objects.get(view=view).is_claimed)
        worker = ViewShard.objects.get(view=view).worker
        at_work, other = sorted(followers, key=lambda each: f":{each.pid}" not in worker)
        # when that one is killed
        at_work.signal(signal.SIGKILL)
        at_work.status()
        # then the other goes on after the lease, without maintenance, and no row is written twice
        other.wait_for(Refresh.objects.filter(pk=asked.pk, state=RefreshState.SUCCEEDED).exists)
    assert_each_item_once()


def test_follow_refreshes_on_change_until_it_is_stopped(tracked: None) -> None:
    view = ViewControl.objects.get(label="shapes.DayStatus")
    RefreshSchedule.objects.create(view=view, on_change=True, every=0, period="seconds")
    process = Process("--follow", "--models", "shapes.DayStatus")
    process.wait_for("Following changes")

    Order.objects.create(price=1, paid=True, status="new", shipped_on="2026-01-01")
    process.wait_for(DayStatus.objects.exists)
    process.signal(signal.SIGTERM)

    assert process.status(AT_ONCE) == 0
