"""Workers killed or stopped at any moment: nothing twice, nothing missing, nobody called."""

import os
import random
import signal
import time
from typing import Any

import pytest

from matviews import engine, tasks
from matviews.models import PhaseRun, Refresh, ViewShard
from matviews.states import RefreshState, RunState
from tests.helpers.engine import shards_of
from tests.helpers.ledger import add_items, assert_each_item_once, fault
from tests.helpers.processes import MAINTAIN_EVERY, Worker, Workers
from tests.sample.models import Item, Ledger, Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LEASE = 1.0
STATEMENT_TIMEOUT = 1.0
SLACK = 60.0  # seconds for the work itself, on a machine that does other things too

on_a_server = pytest.mark.only_on(
    "postgres", "mariadb", reason="SQLite has no server that could let go"
)
on_sqlite = pytest.mark.only_on("sqlite", reason="only SQLite has one lock for the whole file")


@pytest.fixture(autouse=True)
def impatience(settings: Any) -> None:
    settings.MATVIEWS = {
        "LEASE": LEASE,
        "STATEMENT_TIMEOUT": STATEMENT_TIMEOUT,
        "BATCH_SIZE_INITIAL": 2,
        "BATCH_SIZE_MIN": 1,
        "BATCH_SIZE_MAX": 8,
    }


class Killer:
    """Kills workers: at random moments from outside, and inside a batch by their own hand."""

    def __init__(self, workers: Workers, chance: random.Random) -> None:
        self.workers, self.chance = workers, chance
        self.kills: dict[str, int] = {"a worker": 0, "a child": 0, "inside a batch": 0}
        self.rows_before = -1

    def kill(self) -> None:
        """Kill one and start it again; in between, the source changes and a refresh is asked."""
        self._ask_for_more()
        # One batch must not take all the kills: it would be given up.
        self.workers.wait_for(self._has_progressed, meanwhile=self.workers.maintain)
        self._pause(self.chance.uniform(0, 0.6))
        kind = self.chance.choice(list(self.kills))
        if kind == "inside a batch":
            self._kill_inside()
        else:
            self._kill_from_outside(child=kind == "a child")
        self.kills[kind] += 1
        self.workers.revive()

    def _has_progressed(self) -> bool:
        return Ledger.objects.count() > self.rows_before

    def _ask_for_more(self) -> None:
        add_items(self.chance.randrange(5, 30))
        Ledger.refresh()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.workers.wait_for(lambda: time.monotonic() > until, meanwhile=self.workers.maintain)

    def _kill_from_outside(self, *, child: bool) -> None:
        self.workers.wait_for(self._ready, meanwhile=self.workers.maintain)
        victim = self.chance.choice(self._ready())
        children = victim.children if child else []
        if children:
            os.kill(self.chance.choice(children), signal.SIGKILL)
        else:
            victim.kill()

    def _ready(self) -> list[Worker]:
        return [worker for worker in self.workers.all if worker.ready]

    def _kill_inside(self) -> None:
        hook = self.chance.choice(["before_insert", "do_insert"])
        deaths = ("fault view=Ledger", f"hook={hook}", "action=kill")
        before = len(self.workers.lines(*deaths))
        with fault(Ledger, hook, "kill"):
            self._ask_for_more()
            self.workers.wait_for(
                lambda: len(self.workers.lines(*deaths)) > before,
                meanwhile=self._maintain_and_revive,
            )
        self.rows_before = Ledger.objects.count()

    def _maintain_and_revive(self) -> None:
        self.workers.maintain()
        self.workers.revive()


@pytest.mark.parametrize(
    "rounds", [8, pytest.param(100, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_workers_killed_at_any_moment_neither_double_nor_lose_a_row(
    workers: Workers, rounds: int
) -> None:
    # given three workers, one with a pool, on batches that take a while
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    killer = Killer(workers, random.Random(seed))
    workers.start(2)
    workers.start(1, children=2)
    with fault(Ledger, "before_insert", "sleep", seconds=0.02):
        # when they are killed over and over while items come in
        for _ in range(rounds):
            killer.kill()
    Ledger.refresh()
    # then they come to rest with nothing but maintenance, and each item is there once
    seconds = workers.wait_until_quiet(meanwhile=workers.maintain)
    print(f"kills {killer.kills}, items {Item.objects.count()}, quiet after {seconds:.1f} s")
    assert_each_item_once()
    assert Ledger.is_fresh()
    assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(20, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_a_batch_whose_worker_is_killed_goes_on_within_a_lease_and_one_maintenance(
    workers: Workers, rounds: int
) -> None:
    workers.start(2)
    for _ in range(rounds):
        # given a worker that is killed inside a batch, after it has written its rows
        add_items(3)
        with fault(Ledger, "do_insert", "kill"):
            Ledger.refresh()
            workers.wait_for(lambda: any(worker.dead for worker in workers.all))
        assert not Ledger.is_fresh()
        # when a lease has passed, and maintenance runs once
        time.sleep(LEASE)
        tasks.maintain()
        # then another worker does the batch
        workers.wait_until_quiet()
        assert_each_item_once()
        workers.revive()
        workers.wait_for(lambda: all(worker.ready for worker in workers.all))
    assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}


def stop_inside_a_batch(workers: Workers) -> Worker:
    """Stop the worker that has written a batch's rows and has yet to commit them."""
    inside = ("fault view=Ledger hook=do_insert action=sleep",)
    workers.wait_for(lambda: workers.lines(*inside))
    (worker,) = (worker for worker in workers.all if worker.lines(*inside))
    worker.signal(signal.SIGSTOP)
    workers.wait_for(lambda: worker.stopped)
    return worker


@on_a_server
def test_the_server_frees_a_batch_from_a_worker_that_has_stopped(workers: Workers) -> None:
    # given a worker that stops inside a batch
    workers.start(2)
    add_items(30)
    with fault(Ledger, "do_insert", "sleep", seconds=3 * LEASE):
        Ledger.refresh()
        stopped = stop_inside_a_batch(workers)
    # when maintenance runs every second
    seconds = workers.wait_until_quiet(meanwhile=workers.maintain)
    print(f"recovered after {seconds:.2f} s")
    # then another worker has done all, while the first is still stopped
    assert stopped.stopped
    assert seconds < max(LEASE, STATEMENT_TIMEOUT) + MAINTAIN_EVERY + SLACK
    assert_each_item_once()
    # and when the first goes on, its batch is turned away, and it works as before
    stopped.signal(signal.SIGCONT)
    workers.wait_for(lambda: stopped.lines("outcome=SUPERSEDED"))
    assert_each_item_once()
    for worker in workers.all:
        if worker is not stopped:
            worker.kill()
    add_items(10)
    Ledger.refresh()
    workers.wait_until_quiet()
    assert_each_item_once()


@on_sqlite
def test_a_stopped_worker_holds_sqlite_until_it_goes_on(workers: Workers) -> None:
    """Nobody can take a write lock from a process that is alive: recovery comes when it goes on."""
    # given a worker that stops inside a batch, and so holds the file's write lock
    workers.start(2)
    add_items(30)
    with fault(Ledger, "do_insert", "sleep", seconds=0.1):
        refresh = Ledger.refresh()
        stopped = stop_inside_a_batch(workers)
        # when its message comes again, more than a lease later
        until = time.monotonic() + 1.5 * LEASE
        workers.wait_for(lambda: time.monotonic() > until)
        (shard,) = shards_of(refresh.view_id)
        message = engine.close_finished(shard).message
        assert message is not None
        tasks.send([message])
        (other,) = (worker for worker in workers.all if worker is not stopped)
        workers.wait_for(lambda: other.lines("matviews.insert_batch", "received"))
        assert not Ledger.objects.exists()
        # then it waits, is turned away once the stopped one goes on, and both end
        stopped.signal(signal.SIGCONT)
        workers.wait_for(Ledger.objects.exists)
    workers.wait_until_quiet(meanwhile=workers.maintain)
    workers.wait_for(lambda: other.lines("message refused", "outcome=STALE"))
    assert_each_item_once()


def test_a_batch_that_always_kills_its_worker_fails_and_says_so(workers: Workers) -> None:
    # given a batch that kills whoever does it: two rows, then one
    (worker,) = workers.start(children=2)
    add_items(8)
    with fault(Limited, "do_insert", "kill"):
        asked = Limited.refresh()
        # when its worker is respawned again and again, while another view is refreshed
        workers.wait_for(lambda: worker.lines("fault view=Limited"))
        Ledger.refresh()
        seconds = workers.wait_until_quiet(meanwhile=workers.maintain)
    # then the batch is given up, at its smallest size, after three kills there
    kills = len(worker.lines("fault view=Limited", "action=kill"))
    print(f"given up after {kills} kills and {seconds:.1f} s")
    assert kills == 4
    run = asked.runs.get(phase="insert")
    assert run.state == RunState.FAILED
    assert "killed its worker 4 times, the last time with a batch size of 1" in run.error
    asked.refresh_from_db()
    assert asked.state == RefreshState.FAILED
    assert run.error in asked.error
    # and the other view and the other phases went on
    assert_each_item_once()
    assert set(asked.runs.exclude(pk=run.pk).values_list("state", flat=True)) == {"succeeded"}
    # and once the cause is mended, the next request does the work
    Limited.refresh()
    workers.wait_until_quiet(meanwhile=workers.maintain)
    assert Limited.objects.count() == 8
    assert ViewShard.objects.get(view=asked.view_id).attempts == 1
    assert PhaseRun.objects.filter(state=RunState.FAILED).count() == 1
