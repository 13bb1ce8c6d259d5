"""Batches that the database server rolls back: tried again, smaller where that helps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
from django.db import connection, transaction

from matviews import engine
from matviews.engine import locking, transactions
from matviews.models import Refresh, ViewShard
from matviews.states import RefreshState, RunState
from tests.helpers import services
from tests.helpers.ledger import add_items
from tests.helpers.processes import Workers
from tests.sample.models import Item, Ledger, Limited, Sharded
from tests.sample.slow import Slow

SELECTED = services.selected_database()

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no server that rolls back"),
]

SLEEPING = {
    "postgres": "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND state = 'active' AND query LIKE 'SELECT pg_sleep%%'",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = database()"
    " AND info LIKE 'SELECT SLEEP%%'",
}
END_CONNECTION = {"postgres": "SELECT pg_terminate_backend(%s)", "mariadb": "KILL CONNECTION %s"}
# Not information_schema.innodb_trx: to who asks it ten times a second it shows nothing new.
WAITING_FOR_US = {
    "postgres": "SELECT pid FROM pg_locks"
    " WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = database()"
    " AND info LIKE 'UPDATE `sample_limited`%%' AND id <> connection_id()",
}
TIMED_OUT = {
    "postgres": "canceling statement due to statement timeout",
    "mariadb": "max_statement_time exceeded",
}


@pytest.fixture(autouse=True)
def small_batches(settings: Any) -> None:
    settings.MATVIEWS = {"BATCH_SIZE_INITIAL": 10, "BATCH_SIZE_MIN": 1, "BATCH_SIZE_MAX": 64}


@pytest.fixture
def sleepy_batches(small_batches: None, settings: Any) -> None:
    """Batches that sleep for half a minute, if the source has so many rows."""
    settings.MATVIEWS = {"BATCH_SIZE_INITIAL": 1500}
    add_items(1500)


def wake_up_soon() -> None:
    Item.objects.filter(value__gte=20).delete()


def ask(sql: dict[str, str], *parameters: int) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql[SELECTED], parameters)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def end_the_connection_of_a_batch(workers: Workers, ended: set[int]) -> None:
    """Let the server end the connection of the batch that has written its rows and sleeps.

    Args:
        workers: of which one runs the batch.
        ended: the connections that have been ended, which MariaDB may still list; extended.
    """
    found: list[int] = []

    def is_sleeping() -> bool:
        found[:] = set(ask(SLEEPING)) - ended
        return bool(found)

    workers.wait_for(is_sleeping)
    ask(END_CONNECTION, found[0])
    ended.add(found[0])


def assert_slow_has_each_item_once() -> None:
    keys = Slow.objects.order_by("key").values_list("key", flat=True)
    assert list(keys) == list(Item.objects.order_by("pk").values_list("pk", flat=True))


def test_a_batch_that_loses_its_connection_is_tried_again(
    sleepy_batches: None, workers: Workers
) -> None:
    workers.start(2)
    run, ended = Slow.refresh().runs, set[int]()
    # when the server ends the connection in the middle of a batch, three times
    for failures in (1, 2, 3):
        if failures == 3:
            wake_up_soon()
        end_the_connection_of_a_batch(workers, ended)
        workers.wait_for(run.filter(failures=failures).exists)
        # then the run says so, and is tried again
        assert run.get().state == RunState.RUNNING
        assert "Error: " in run.get().error
        assert "do_insert" in run.get().traceback
    workers.wait_until_quiet()
    # and no row is lost or doubled
    assert_slow_has_each_item_once()
    assert (run.get().state, run.get().error) == (RunState.SUCCEEDED, "")
    assert len(workers.lines("batch finished", "outcome=FAILED")) == 3


def test_a_batch_that_never_keeps_its_connection_fails_and_says_so(
    sleepy_batches: None, workers: Workers
) -> None:
    workers.start(2)
    refresh, ended = Slow.refresh(), set[int]()
    # when the server ends the connection of a batch, and of each of its three further tries
    for _ in range(4):
        end_the_connection_of_a_batch(workers, ended)
    workers.wait_until_quiet()
    # then the phase run has failed with the database's message, and no row was written
    refresh.refresh_from_db()
    run = refresh.runs.get()
    assert (refresh.state, run.state, run.failures) == (RefreshState.FAILED, RunState.FAILED, 4)
    assert run.error in refresh.error
    assert "Error: " in run.error
    assert not Slow.objects.exists()
    # and the next request does the work
    wake_up_soon()
    Slow.refresh()
    workers.wait_until_quiet()
    assert_slow_has_each_item_once()


@contextmanager
def a_batch_waiting_for_us(workers: Workers) -> Iterator[list[int]]:
    """A transaction that has changed the last row that an update batch of `Limited` is to write.

    The batch has written the other rows and waits for it. Yields the keys of the rows.
    """
    add_items(10)
    Limited.refresh()
    workers.wait_until_quiet()
    Item.objects.update(value=1000)
    keys = list(Limited.objects.order_by("key").values_list("key", flat=True))
    with transaction.atomic():
        change_row(keys[-1])
        workers.send_by_name("matviews.refresh", "sample.Limited", ["update"])
        workers.wait_for(lambda: ask(WAITING_FOR_US))
        yield keys


def change_row(key: int) -> None:
    Limited.objects.filter(key=key).update(value=-1)


def assert_all_updated(workers: Workers) -> None:
    workers.wait_until_quiet()
    assert set(Limited.objects.values_list("value", flat=True)) == {1000}
    assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}


def lose_no_deadlock() -> None:
    """Have the server choose the other side of a deadlock of this transaction."""
    if SELECTED == "postgres":  # Whoever looks first goes.
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL deadlock_timeout = '20s'")
    else:  # Whoever has written less goes.
        Ledger.objects.bulk_create([Ledger(key=key) for key in range(200)])


def test_a_batch_that_runs_into_a_deadlock_is_tried_again(workers: Workers) -> None:
    workers.start(2)
    # given a batch that waits for a transaction
    with a_batch_waiting_for_us(workers) as keys:
        lose_no_deadlock()
        # when that one wants what the batch has
        change_row(keys[0])
        transaction.set_rollback(True)
    # then the batch is tried again
    assert_all_updated(workers)
    (line,) = workers.lines("batch finished", "outcome=FAILED")
    assert "deadlock" in line.lower()


@pytest.mark.only_on("postgres", reason="batches on MariaDB are READ COMMITTED")
def test_a_batch_that_waited_sees_what_was_committed_whatever_level_the_role_has(
    workers: Workers, redis_environment: dict[str, str]
) -> None:
    # given workers in a project that wants REPEATABLE READ
    redis_environment["PGOPTIONS"] = r"-c default_transaction_isolation=repeatable\ read"
    workers.start(2)
    # when somebody else commits a change to a row that a batch is to write
    with a_batch_waiting_for_us(workers):
        pass
    # then the batch sees it at once: it is READ COMMITTED
    assert_all_updated(workers)
    assert workers.lines("batch finished", "outcome=FAILED") == []


def test_a_batch_over_its_time_limit_is_halved_and_gets_through(
    workers: Workers, settings: Any
) -> None:
    # given a statement that takes 1.2 s for the first size, and a limit of 1 s
    settings.MATVIEWS = {
        "STATEMENT_TIMEOUT": 1.0,
        "BATCH_TARGET": 0.5,
        "BATCH_SIZE_INITIAL": 60,
        "BATCH_SIZE_MIN": 1,
    }
    workers.start(2)
    add_items(75)
    # when
    refresh = Slow.refresh()
    workers.wait_until_quiet()
    # then the server ended the first batch, and half of it went through
    batches = workers.lines("batch finished")
    first, second, *_ = sorted(batches, key=lambda line: line.partition("token=")[2])
    assert "outcome=FAILED" in first
    assert TIMED_OUT[SELECTED] in first
    assert "outcome=DONE rows=30 limit=30" in second
    refresh.refresh_from_db()
    assert refresh.state == RefreshState.SUCCEEDED
    assert_slow_has_each_item_once()


def in_another_connection(action: Callable[[], bool]) -> bool:
    results: list[bool] = []

    def run() -> None:
        try:
            results.append(action())
        finally:
            connection.close()

    thread = Thread(target=run)
    thread.start()
    thread.join(timeout=20)
    (result,) = results
    return result


def claim(shard: ViewShard) -> bool:
    with transactions.short_transaction():
        return locking.update_if_current(shard.pk, shard.token, worker="another")


def test_a_batch_in_one_shard_turns_away_no_message_for_another() -> None:
    engine.sync_controls()
    first, second = ViewShard.objects.filter(view__label="sample.Sharded")

    with transactions.short_transaction():
        assert locking.update_if_current(first.pk, first.token, worker="this")
        assert in_another_connection(lambda: claim(second))
        assert not in_another_connection(lambda: claim(first))


def test_a_request_in_an_open_transaction_holds_up_nobody(workers: Workers) -> None:
    workers.start()
    add_items(10)
    # given a transaction that has asked for a refresh, and goes on
    with transaction.atomic():
        pending = Sharded.refresh()
        # when another refresh of the view is asked for
        workers.send_by_name("matviews.refresh", "sample.Sharded")
        # then it is done meanwhile
        others = Refresh.objects.exclude(pk=pending.pk).filter(state=RefreshState.SUCCEEDED)
        workers.wait_for(lambda: in_another_connection(others.exists), seconds=10)
    workers.wait_until_quiet()
    pending.refresh_from_db()
    assert pending.state == RefreshState.SUCCEEDED
