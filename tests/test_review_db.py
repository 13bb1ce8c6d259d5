"""Faults of the review that need a certain database."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone

from matviews import engine
from matviews.engine import Outcome, databases
from matviews.models import PhaseRun, Refresh, Stripe, ViewControl
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.sample.models import Fault, Item, Ledger, Limited, Striped, Walked, Whole
from tests.test_engine import without_sqlite, due, items, let_time_pass, stripe_of, in_another_connection

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]
postgres = pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL")
mariadb = pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB")


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


@contextmanager
def options(**new):
    settings = connection.settings_dict
    before = settings["OPTIONS"]
    settings["OPTIONS"] = {**before, **new}
    connection.close()
    try:
        yield
    finally:
        settings["OPTIONS"] = before
        connection.close()


@postgres
@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_two_stripes_side_by_side_do_not_fail_each_other(level) -> None:
    from psycopg import IsolationLevel

    with options(isolation_level=IsolationLevel[level]):
        items(400)
        refresh = engine.request(Striped, batch_size=5)
        seen = []

        def work(stripe):
            def go():
                try:
                    while message := engine.settle(stripe).message:
                        report = engine.run_batch(message)
                        seen.append((report.outcome.name, report.error[:60]))
                except Exception as error:
                    seen.append(("RAISED", repr(error)[:90]))
            return go

        threads = [in_another_connection(work(s)) for s in engine.stripes_of(refresh.view_id)]
        for t in threads:
            t.join()
        from collections import Counter
        print(Counter(seen))
        inline.run_to_end(refresh)
        refresh.refresh_from_db()
        assert refresh.state == "succeeded", refresh.error
        assert not [s for s in seen if s[0] in ("RAISED",)]
        assert Counter(s[0] for s in seen)["FAILED"] == 0


@postgres
@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_two_views_side_by_side_do_not_fail_each_other(level) -> None:
    from collections import Counter

    from psycopg import IsolationLevel

    with options(isolation_level=IsolationLevel[level]):
        items(300)
        refreshes = [engine.request(v, phases=["insert"], batch_size=3) for v in (Limited, Walked, Ledger)]
        seen = []

        def work(refresh):
            def go():
                try:
                    inline.run_to_end(refresh, on_report=lambda r: seen.append((r.outcome.name, r.error[:60])))
                except Exception as error:
                    seen.append(("RAISED", repr(error)[:90]))
            return go

        threads = [in_another_connection(work(s)) for s in refreshes]
        for t in threads:
            t.join()
        print(Counter(seen))
        for r in refreshes:
            r.refresh_from_db()
        assert {r.state for r in refreshes} == {"succeeded"}, [r.error for r in refreshes]


@postgres
@pytest.mark.parametrize("level", ["REPEATABLE_READ"])
def test_two_processes_that_close_the_same_refresh_both_end(level) -> None:
    from collections import Counter

    from psycopg import IsolationLevel

    with options(isolation_level=IsolationLevel[level]):
        seen = []
        for _ in range(15):
            refreshes = [engine.request(Whole) for _ in range(3)]
            barrier = threading.Barrier(3)

            def work(refresh):
                def go():
                    barrier.wait()
                    try:
                        inline.run_to_end(refresh)
                    except Exception as error:
                        import traceback; seen.append("|".join([f.name for f in traceback.extract_tb(error.__traceback__) if "matviews" in f.filename or "tasks" in f.filename]))
                return go

            threads = [in_another_connection(work(s)) for s in refreshes]
            for t in threads:
                t.join()
            let_time_pass()
        print(Counter(seen))
        assert not seen


@mariadb
def test_a_connection_that_cannot_come_back_at_once_is_a_lost_connection(monkeypatch) -> None:
    items(3)
    refresh = engine.request(Ledger)
    message = due(Ledger)
    real = type(connections['default']).get_new_connection
    broken = [1]

    def once(self, params):
        if broken:
            broken.pop()
            raise OperationalError(1040, "Too many connections") from Exception(1040)
        return real(self, params)

    def die(_view, hook):
        if hook == "do_insert":
            other = connections['default'].copy()
            monkeypatch.setattr(type(connections['default']), "get_new_connection", real)
            with other.cursor() as cursor:
                cursor.execute(f"KILL {connection.connection.thread_id()}")
            other.close()
            monkeypatch.setattr(type(connections['default']), "get_new_connection", once)
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

    with monkeypatch.context() as patch:
        patch.setattr(Fault, "commit", die)
        report = engine.run_batch(message)
    monkeypatch.setattr(type(connections['default']), "get_new_connection", real)
    run = refresh.runs.first()
    print(report.outcome, report.error, run and run.state, run and run.error)
    assert run is None or run.state != "failed", run.error


@mariadb
def test_the_limits_are_taken_back_to_what_they_were() -> None:
    with options(init_command="SET SESSION max_statement_time=33"):
        items(1)
        inline.run_to_end(engine.request(Ledger))
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@max_statement_time")
            assert float(cursor.fetchone()[0]) == 33


@mariadb
def test_times_are_utc_whatever_the_servers_time_zone_is() -> None:
    with options(init_command="SET time_zone='+05:00'"):
        items(1)
        engine.request(Ledger)
        engine.run_batch(due(Ledger))
        stripe = stripe_of(Ledger)
        assert abs(stripe.announced_at - timezone.now()) < timedelta(minutes=5)


@mariadb
def test_refresh_within_testcase_repeatable_read() -> None:
    with options(isolation_level="repeatable read"):
        items(2)
        from django.test.testcases import TestCase  # noqa
        refresh = engine.request(Ledger)
        databases_atomic = transaction.atomic()
        databases_atomic._from_testcase = True
        with databases_atomic:
            ended = inline.run_to_end(refresh)
            print(ended.state, ended.error)
        assert ended.state == "succeeded"



@mariadb
def test_a_message_that_comes_while_watch_looks_is_not_lost(monkeypatch) -> None:
    items(3)
    engine.request(Whole)  # what watch finds
    let_time_pass()
    engine.request(Ledger)
    message = due(Ledger)
    Stripe.objects.filter(pk=message.stripe_id).update(watch_after=timezone.now() + timedelta(seconds=60))
    import sys
    module = sys.modules['matviews.engine.watch']
    outcomes = []
    real = module.lock_free

    def lock_free(condition):
        found = real(condition)
        in_another_connection(lambda: outcomes.append(engine.run_batch(message).outcome)).join()
        return found

    monkeypatch.setattr(module, "lock_free", lock_free)
    sent = module.watch()
    assert message in sent or outcomes == [Outcome.DONE]


def test_a_thousand_open_requests_cost_a_batch_no_more_than_ten() -> None:
    from django.test.utils import CaptureQueriesContext
    items(50)
    inline.run_to_end(engine.request(Walked))
    engine.request(Walked, batch_size=5)
    engine.run_batch(due(Walked))
    took = {}
    for n in (10, 1000):
        while Refresh.objects.filter(state="open").count() < n:
            engine.request(Walked)
        engine.run_batch(due(Walked))
        message = due(Walked)
        started = time.monotonic()
        engine.run_batch(message)
        took[n] = time.monotonic() - started
    most = 0
    while message := engine.settle(stripe_of(Walked).pk).message:
        with CaptureQueriesContext(connection) as queries:
            engine.run_batch(message)
        most = max(most, len(queries))
    print(took, "most statements", most)
    assert most < 50
    assert took[1000] < 5 * took[10]


@without_sqlite
@pytest.mark.parametrize("at", range(1, 14))
def test_a_connection_lost_at_any_statement(at) -> None:
    """Exploration: the server ends the connection before the statement; what is left?"""
    items(3)
    inline.run_to_end(engine.request(Ledger)); items(3)
    refresh = engine.request(Ledger)
    message = due(Ledger)
    left = at

    def kill(execute, sql, params, many, context):
        nonlocal left
        left -= 1
        if left == 0:
            pid = connection.connection.info.backend_pid if connection.vendor == "postgresql" else connection.connection.thread_id()
            def end():
                with connection.cursor() as c:
                    c.execute(f"SELECT pg_terminate_backend({pid})" if connection.vendor == "postgresql" else f"KILL {pid}")
            in_another_connection(end).join()
            time.sleep(0.05)
        return execute(sql, params, many, context)

    raised = None
    with connection.execute_wrapper(kill):
        try:
            report = engine.run_batch(message)
            first = (report.outcome.name, report.error)
        except BaseException as e:
            first = ("RAISED", repr(e)); 
        try:
            settled = engine.settle(message.stripe_id)
        except Exception as e:
            raised = repr(e)[:60]
    connection.close()
    s = stripe_of(Ledger)
    run = refresh.runs.first()
    print("AT", at, "left", left, first, "settle", raised, "token", s.token, "announced", s.announced, "attempts", s.attempts, run and (run.state, run.failures, run.error[:50]))
    for _ in range(5):
        let_time_pass()
        for m in engine.watch():
            engine.run_batch(m)
    let_time_pass(); engine.watch()
    refresh.refresh_from_db()
    assert refresh.state == "succeeded", refresh.error
    assert Ledger.objects.count() == 6
