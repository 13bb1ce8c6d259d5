"""Isolation levels of the database, connections that are lost, limits and time zones."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.utils import timezone

from matviews import engine
from matviews.engine import Outcome, locking, transactions
from matviews.models import Refresh
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers.engine import (
    due,
    in_another_connection,
    items,
    let_time_pass,
    shard_of,
    shards_of,
    without_sqlite,
)
from tests.sample.models import Fault, Ledger, Limited, Sharded, Walked, Whole

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_mariadb = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


@contextmanager
def options(**new: Any) -> Iterator[None]:
    """Connections that are opened within have these options too."""
    settings = connection.settings_dict
    before = settings["OPTIONS"]
    settings["OPTIONS"] = {**before, **new}
    connection.close()
    try:
        yield
    finally:
        settings["OPTIONS"] = before
        connection.close()


@contextmanager
def isolation(level: str) -> Iterator[None]:
    from psycopg import IsolationLevel

    with options(isolation_level=IsolationLevel[level]):
        yield


def end_connection() -> None:
    """The server ends this thread's connection; returns once it has."""
    raw: Any = connection.connection
    if connection.vendor == "postgresql":
        statement = f"SELECT pg_terminate_backend({raw.info.backend_pid}, 5000)"
        in_another_connection(lambda: _execute(statement)).join()
    else:
        in_another_connection(lambda: _kill(raw.thread_id())).join()


def _kill(thread: int) -> None:
    _execute(f"KILL {thread}")
    query = f"SELECT count(*) FROM information_schema.processlist WHERE id = {thread}"
    for _ in range(1000):
        if _execute(query) == 0:
            return
        time.sleep(0.005)
    pytest.fail("the server did not end the connection")


def _execute(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


class TestLevelsOfPostgres:
    @on_postgres
    @pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
    def test_two_shards_side_by_side_do_not_fail_each_other(self, level: str) -> None:
        outcomes: list[Outcome] = []
        raised: list[Exception] = []

        def work(shard: int) -> None:
            try:
                while message := engine.close_finished(shard).message:
                    outcomes.append(engine.run_batch(message).outcome)
            except Exception as error:  # noqa: BLE001 - any is a failure
                raised.append(error)

        with isolation(level):
            items(300)
            refresh = engine.request(Sharded, batch_size=5)
            for thread in [
                in_another_connection(partial(work, pk)) for pk in shards_of(refresh.view_id)
            ]:
                thread.join()
            ended = inline.run_to_end(refresh)
        assert (ended.state, ended.error) == (RefreshState.SUCCEEDED, "")
        assert raised == []
        assert Outcome.FAILED not in outcomes

    @on_postgres
    @pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
    def test_views_side_by_side_do_not_fail_each_other(self, level: str) -> None:
        with isolation(level):
            items(120)
            refreshes = [
                engine.request(view, phases=["insert"], batch_size=3)
                for view in (Limited, Walked, Ledger)
            ]
            raised = work_side_by_side(refreshes)
            for refresh in refreshes:
                refresh.refresh_from_db()
        assert raised == []
        ends = {(refresh.state, refresh.error) for refresh in refreshes}
        assert ends == {(RefreshState.SUCCEEDED, "")}

    @on_postgres
    def test_processes_that_close_the_same_refreshes_all_end(self) -> None:
        raised: list[Exception] = []
        with isolation("REPEATABLE_READ"):
            for _ in range(15):
                raised += work_side_by_side([engine.request(Whole) for _ in range(3)])
                let_time_pass()
        assert raised == []


def work_side_by_side(refreshes: list[Refresh]) -> list[Exception]:
    """Run each refresh to its end in a connection of its own; what was raised."""
    barrier = threading.Barrier(len(refreshes), timeout=10)
    raised: list[Exception] = []

    def work(refresh: Refresh) -> None:
        barrier.wait()
        try:
            inline.run_to_end(refresh)
        except Exception as error:  # noqa: BLE001 - any is a failure
            raised.append(error)

    threads = [in_another_connection(partial(work, each)) for each in refreshes]
    for thread in threads:
        thread.join()
    return raised


class TestLostConnections:
    @without_sqlite
    @pytest.mark.parametrize("at", range(1, 14))
    def test_a_connection_lost_at_any_statement_costs_time_alone(self, at: int) -> None:
        # Given a server that ends the connection before a certain statement
        items(3)
        inline.run_to_end(engine.request(Ledger))
        items(3)
        refresh = engine.request(Ledger)
        message = due(Ledger)
        statements = iter(range(1, 1000))

        def end_at(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if next(statements) == at:
                end_connection()
            return execute(sql, params, many, context)

        # When
        with connection.execute_wrapper(end_at):
            engine.run_batch(message)
            with suppress(DatabaseError, InterfaceError):
                engine.close_finished(message.shard_id)
        connection.close()
        # Then maintenance brings it to its end, and nothing is done twice
        for _ in range(5):
            let_time_pass()
            for again in engine.rescue():
                engine.run_batch(again)
            refresh.refresh_from_db()
            if refresh.state != RefreshState.OPEN:
                break
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        assert Ledger.objects.count() == 6

    @on_mariadb
    def test_a_server_with_too_many_connections_is_a_lost_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a connection that dies within the hook, and a server that refuses the next one
        items(3)
        refresh = engine.request(Ledger)
        message = due(Ledger)
        wrapper = type(connections["default"])
        connect = wrapper.get_new_connection
        refused: list[int] = []

        def refuse_once(database: Any, params: Any) -> Any:
            if not refused:
                refused.append(1040)
                raise OperationalError(1040, "Too many connections") from Exception(1040)
            return connect(database, params)

        with monkeypatch.context() as patch:

            def die(_view: type[Any], hook: str) -> None:
                if hook == "do_insert":
                    end_connection()
                    patch.setattr(wrapper, "get_new_connection", refuse_once)
                    _execute("SELECT 1")

            patch.setattr(Fault, "commit", die)
            # When
            engine.run_batch(message)
        # Then the run has not failed, and goes on
        assert refused == [1040]
        assert not refresh.runs.filter(state=RunState.FAILED).exists()
        let_time_pass()
        assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
        assert Ledger.objects.count() == 3


class TestSessionsOfMariadb:
    @on_mariadb
    def test_the_limits_are_taken_back_to_what_they_were(self) -> None:
        with options(init_command="SET SESSION max_statement_time=33"):
            items(1)
            inline.run_to_end(engine.request(Ledger))
            assert float(_execute("SELECT @@max_statement_time")) == 33

    @on_mariadb
    def test_nothing_stays_in_a_session_that_took_the_place_of_a_lost_one(self) -> None:
        # Given a kept connection that the server has ended, in a project with CONN_HEALTH_CHECKS
        session = (
            "SELECT CONCAT_WS('|', @@max_statement_time, @@idle_transaction_timeout, "
            "@@innodb_lock_wait_timeout, @@tx_isolation, @@sql_mode, @@autocommit)"
        )
        with options(init_command="SET SESSION sql_mode = ''"):
            before = _execute(session)
            end_connection()
            database: Any = connection
            database.health_check_enabled, database.health_check_done = True, False
            # When a transaction of ours is the first to find out
            with transactions.batch_transaction(5):
                pass
            # Then the new session is as the old one was
            assert _execute(session) == before

    @on_mariadb
    def test_times_are_utc_whatever_the_servers_time_zone_is(self) -> None:
        with options(init_command="SET time_zone='+05:00'"):
            items(1)
            engine.request(Ledger)
            engine.run_batch(due(Ledger))
            claimed_at = shard_of(Ledger).claimed_at
        assert claimed_at is not None
        assert abs(claimed_at - timezone.now()) < timedelta(minutes=5)

    @on_mariadb
    def test_a_refresh_within_a_test_case_works_under_repeatable_read(self) -> None:
        with options(isolation_level="repeatable read"):
            items(2)
            refresh = engine.request(Ledger)
            around = transaction.atomic()
            around._from_testcase = True  # type: ignore[attr-defined]
            with around:
                ended = inline.run_to_end(refresh)
        assert (ended.state, ended.error) == (RefreshState.SUCCEEDED, "")


def test_the_first_claim_of_a_process_is_made_outside_of_a_transaction() -> None:
    locking._statements_for.cache_clear()
    engine.request(Limited)

    assert engine.run_batch(due(Limited)).outcome is Outcome.DONE
