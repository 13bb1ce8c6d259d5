"""Our transactions have a level and limits of their own, and none waits for a holder of the log."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django_celery_beat.models import PeriodicTask

from matviews import engine, tasks
from matviews.changes.tracking_spec import tracked_tables, union
from matviews.databases import Sessions, triggers_of
from matviews.engine import Outcome, locking, transactions
from matviews.engine.batches import claim
from matviews.engine.requests import requests
from matviews.models import Change, PhaseRun, Refresh, TrackedTable, ViewShard
from matviews.queryset import stages
from matviews.queryset.sql import staging
from matviews.states import RefreshState
from matviews.tasks import inline, schedules
from tests.databases.test_sessions import on_mariadb, on_postgres, options, work_side_by_side
from tests.helpers.engine import (
    due,
    held_open,
    in_another_connection,
    items,
    let_time_pass,
    shards_of,
    without_sqlite,
)
from tests.helpers.view_classes import run
from tests.sample.models import Fault, Ledger, Limited, Sharded, Walked
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal, OrdersOfCustomer, QuantityTotal, RegionTotal
from tests.shapes.oracle import differences

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True), without_sqlite]

LIMIT = 2.0  # seconds


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.MATVIEWS = {"STATEMENT_TIMEOUT": LIMIT}
    engine.sync_controls()


@pytest.fixture
def shop(tracked: None) -> None:
    Region.objects.create(pk=1, name="1")
    Product.objects.create(sku="a", name="a", price=2)
    for number in (1, 2):
        Customer.objects.create(pk=number, name=str(number), region_id=1)
        order(number)
    for view in (CustomerTotal, RegionTotal, OrdersOfCustomer):
        run(view)


def order(number: int) -> None:
    Order.objects.create(
        customer_id=number, product_id="a", slot=number, price=1, paid=False, status="new", note=""
    )


@contextmanager
def serializable_by_default() -> Iterator[None]:
    """As the role or the database has it, which no option of Django's tells."""
    if connection.vendor == "mysql":
        level = "SET SESSION tx_isolation = 'SERIALIZABLE'"
        with options(isolation_level=None, init_command=level):
            yield
        return
    database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
    with connection.cursor() as cursor:
        cursor.execute(
            f"ALTER DATABASE {database} SET default_transaction_isolation = serializable"
        )
    connection.close()
    try:
        yield
    finally:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {database} RESET default_transaction_isolation")


LEVEL_AND_LIMITS = {
    "postgresql": "SELECT current_setting('transaction_isolation'), "
    "current_setting('statement_timeout'), current_setting('lock_timeout'), "
    "current_setting('idle_in_transaction_session_timeout')",
    "mysql": "SELECT @@tx_isolation, @@max_statement_time, @@innodb_lock_wait_timeout, "
    "@@idle_transaction_timeout, @@lock_wait_timeout",
}


class Inspector:
    """The level and limits that each statement of ours had that stood in a transaction."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, ...], str] = {}
        self._inside = False

    def __call__(self, execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if not self._inside and connection.in_atomic_block:
            self._inspect(sql)
        return execute(sql, *arguments)

    def _inspect(self, sql: str) -> None:
        self._inside = True
        with connection.cursor() as cursor:
            cursor.execute(LEVEL_AND_LIMITS[connection.vendor])
            self.seen[tuple(map(str, cursor.fetchone()))] = sql
        self._inside = False


def seconds(rows: Iterable[tuple[str, ...]]) -> Iterator[float]:
    """The limits among what LEVEL_AND_LIMITS reads."""
    return (float(value.rstrip("s")) for _level, *limits in rows for value in limits)


def test_each_transaction_has_its_level_and_limits(shop: None) -> None:
    # given sessions that are serializable by default
    found, dialect = Inspector(), triggers_of(engine.alias())
    items(1)
    with serializable_by_default():
        # when requests, batches and housekeeping are looked at
        with connection.execute_wrapper(found):
            for _ in range(2):
                order(1)
                run(CustomerTotal)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Fault, "commit", lambda *_arguments: 1 / 0)
                run(Limited)
            # also where the triggers of a table are gone
            gone = dialect.installed_triggers()[Region._meta.db_table]
            dialect.execute(dialect.drop(Region._meta.db_table, gone))
            tasks.maintain()
            # and a staging table that takes two batches, and a repair
            run(QuantityTotal, batch_size=1)
            CustomerTotal.objects.update(orders=9)
            assert CustomerTotal.verify(repair=True).repaired == 2
        # then each transaction reads what is committed, and ends
        level = "read committed" if connection.vendor == "postgresql" else "READ-COMMITTED"
        assert {each[0] for each in found.seen} == {level}, found.seen
        assert set(seconds(found.seen)) == {LIMIT}
        # and the session has what it had
        with connection.cursor() as cursor:
            cursor.execute(LEVEL_AND_LIMITS[connection.vendor])
            before = tuple(map(str, cursor.fetchone()))
        assert before[0].lower() == "serializable"
        assert LIMIT not in seconds([before])


def test_a_transaction_of_the_callers_keeps_its_own_limits() -> None:
    refresh, found = engine.request(Limited), Inspector()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(LEVEL_AND_LIMITS[connection.vendor])
        own = tuple(map(str, cursor.fetchone()))
        with connection.execute_wrapper(found):
            assert engine.request_stop(refresh.pk)
            PeriodicTask.objects.all().delete()
            assert schedules.reconcile()
    assert found.seen.keys() == {own}


def test_refreshes_side_by_side_do_not_fail_each_other_in_serializable_sessions() -> None:
    with serializable_by_default():
        items(120)
        refreshes = [
            engine.request(view, phases=["insert"], batch_size=3)
            for view in (Limited, Walked, Ledger)
        ]
        raised = work_side_by_side(refreshes)
        sharded = engine.request(Sharded, batch_size=5)
        outcomes: list[Outcome] = []

        def work(shard: int) -> None:
            while message := engine.close_finished(shard).message:
                outcomes.append(engine.run_batch(message).outcome)

        shards = shards_of(sharded.view_id)
        for thread in [in_another_connection(partial(work, pk)) for pk in shards]:
            thread.join()
        inline.run_to_end(sharded)
        for refresh in (*refreshes, sharded):
            refresh.refresh_from_db()
            assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert raised == []
    assert Outcome.FAILED not in outcomes
    assert not PhaseRun.objects.filter(failures__gt=0).exists()


@contextmanager
def written_meanwhile(rows: Any, **changes: Any) -> Iterator[None]:
    """Somebody has written rows, and commits as soon as another waits for that."""
    writing = threading.Event()
    waited: list[bool] = []

    def write() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            rows.update(**changes)
            writing.set()
            for _ in range(1000):
                cursor.execute(
                    "SELECT count(*) > 0 FROM pg_locks "
                    "WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
                )
                if cursor.fetchone()[0]:
                    waited.append(True)
                    return
                time.sleep(0.01)

    thread = in_another_connection(write)
    assert writing.wait(10)
    try:
        yield
    finally:
        thread.join()
    assert waited


@on_postgres
def test_a_stop_that_waited_in_a_serializable_session_is_recorded() -> None:
    with serializable_by_default():
        refresh = engine.request(Limited)
        with written_meanwhile(Refresh.objects.filter(pk=refresh.pk), requests=2):
            assert engine.request_stop(refresh.pk)
    refresh.refresh_from_db()
    assert (refresh.requests, refresh.stop_requested) == (2, True)


@on_postgres
def test_a_claim_is_withdrawn_in_a_serializable_session() -> None:
    with serializable_by_default():
        engine.request(Limited)
        message = due(Limited)
        assert claim.claim(message)
        shards = ViewShard.objects.filter(pk=message.shard_id)
        with written_meanwhile(shards, resends=1):
            claim.withdraw(message)
        assert shards.get().claimed_token == 0


def held(read: Callable[[], object]) -> AbstractContextManager[None]:
    """A person has read something, and locked it thereby, in a transaction of their own."""

    def found() -> None:
        assert read()

    return held_open(found)


def locked(rows: Any) -> AbstractContextManager[None]:
    """A person has locked rows."""
    return held(lambda: list(rows.select_for_update()))


def test_whoever_reads_a_staging_table_holds_nobody_up(
    shop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "LOCK_WAIT_SECONDS", 1)
    # given a refresh that has filled its staging table, which somebody then reads
    refresh = engine.request(QuantityTotal, batch_size=1)
    assert engine.run_batch(due(QuantityTotal)).outcome is Outcome.DONE
    stage = PhaseRun.objects.exclude(stage="").get().stage

    def read() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {triggers_of(engine.alias()).name(stage)}")
            return list(cursor.fetchall())

    with held(read):
        assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
        tasks.maintain()
        assert list(stages(engine.alias())) == [refresh.pk]
    # then maintenance removes it once nobody does
    tasks.maintain()
    assert not stages(engine.alias())
    assert differences(QuantityTotal) == []


@pytest.mark.parametrize("which", ["all", "one"])
def test_whoever_locks_the_records_of_tables_holds_nobody_up(
    shop: None, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = TrackedTable.objects.order_by("pk")
    rows = records if which == "all" else records.filter(table=Order._meta.db_table)
    order(1)
    with locked(rows):
        assert run(CustomerTotal).state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) == []
        engine.move_log()
        tasks.maintain()
    assert not Change.objects.exists()
    assert "could not" not in caplog.text


@pytest.mark.parametrize("state", ["gone", "to be made"])
def test_nor_where_triggers_of_theirs_are(
    shop: None, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    dialect, table = triggers_of(engine.alias()), Order._meta.db_table
    dialect.execute(dialect.drop(table, dialect.installed_triggers()[table]))
    records = TrackedTable.objects.order_by("pk")
    if state == "to be made":
        spec = union(tracked_tables(engine.alias())[table].values())
        records.filter(table=table).update(
            triggers=[], pending_version=dialect.version(table, spec)
        )
    order(1)
    with locked(records):
        for _time in range(2):
            tasks.maintain()
            assert run(CustomerTotal).state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) == []
        assert table not in dialect.installed_triggers()
    assert "could not" not in caplog.text
    tasks.maintain()

    record = records.get(table=table)
    assert (
        bool(record.triggers) is (table in dialect.installed_triggers()) is (state == "to be made")
    )


def test_no_refresh_succeeds_while_changes_are_held_that_it_must_see(shop: None) -> None:
    # given a change that another process is moving, without an end
    order(1)
    Customer.objects.create(pk=3, name="3", region_id=1)
    refresh, other = engine.request(CustomerTotal), engine.request(OrdersOfCustomer)
    with locked(Change.objects.filter(table=Order._meta.db_table)):
        # when a batch comes
        report = engine.run_batch(due(CustomerTotal))
        # then it is put off, and says why
        assert report.outcome is Outcome.WAITING
        unmoved = f"Changes of {Order._meta.db_table} have not been moved to the queue yet"
        assert unmoved in report.error
        assert refresh.runs.filter(error=report.error).exists()
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.OPEN
        assert differences(CustomerTotal) != []
        # and changes of other tables are moved
        assert set(Change.objects.values_list("table", flat=True)) == {Order._meta.db_table}
    # when nobody holds it any more, maintenance sends it again, without a lease that must be over
    shards = ViewShard.objects.filter(pk__in=[message.shard_id for message in engine.rescue()])
    assert refresh.view_id in shards.values_list("view", flat=True)
    for each in (refresh, other):
        assert inline.run_to_end(each).state == RefreshState.SUCCEEDED
    assert differences(CustomerTotal) == differences(OrdersOfCustomer) == []
    assert not PhaseRun.objects.exclude(error="").exists()


@pytest.mark.parametrize("late", [False, True])
def test_nor_one_that_a_later_request_has_joined(
    shop: None, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The joiner's change is newer than the refresh; it may join after a batch was claimed."""
    order(1)
    engine.move_log()
    first = engine.request(CustomerTotal)
    order(2)

    def put_off() -> None:
        assert engine.run_batch(due(CustomerTotal)).outcome is Outcome.WAITING

    def join_late(refresh_id: int) -> bool:
        put_off()
        return locking.join_unlocked(refresh_id)

    with locked(Change.objects.all()):
        if late:
            monkeypatch.setattr(requests, "join_unlocked", join_late)
        joined = engine.request(CustomerTotal)
        if not late:
            put_off()
        joined.refresh_from_db()
        assert (joined.pk, joined.requests, joined.state) == (first.pk, 2, RefreshState.OPEN)
    assert inline.run_to_end(joined).state == RefreshState.SUCCEEDED
    assert differences(CustomerTotal) == []


def test_a_request_that_joins_what_a_batch_has_just_done_asks_for_nothing_newer(
    shop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(1)
    engine.move_log()
    first = engine.request(CustomerTotal)
    order(2)

    def join_late(refresh_id: int) -> bool:
        assert engine.run_batch(due(CustomerTotal)).outcome is Outcome.DONE
        return locking.join_unlocked(refresh_id)

    monkeypatch.setattr(requests, "join_unlocked", join_late)
    joined = engine.request(CustomerTotal)
    assert joined.pk == first.pk
    assert differences(CustomerTotal) == []
    assert inline.run_to_end(joined).state == RefreshState.SUCCEEDED


def test_two_that_move_at_once_are_done_at_once(shop: None) -> None:
    """The other one commits while the batch waits."""
    order(1)
    holding, started = threading.Event(), threading.Event()

    def move_slowly() -> None:
        with transaction.atomic():
            assert list(Change.objects.select_for_update())
            holding.set()
            assert started.wait(10)

    thread = in_another_connection(move_slowly)
    assert holding.wait(10)
    asked = engine.request(CustomerTotal)
    with pytest.MonkeyPatch.context() as patch:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            started.set()
            thread.join()

        patch.setattr("matviews.engine.tracking.queues.time.sleep", pause)
        assert inline.run_to_end(asked).state == RefreshState.SUCCEEDED
    assert pauses == [0.01]
    assert differences(CustomerTotal) == []
    assert Refresh.objects.filter(state=RefreshState.OPEN).count() == 0


class TestModesOfMariadb:
    @on_mariadb
    def test_a_value_that_does_not_fit_is_refused_whatever_the_session_says(self) -> None:
        modes = "ANSI_QUOTES"
        with options(init_command=f"SET SESSION sql_mode='{modes}'"):
            items(1)
            seen: list[str] = []

            def look(*_arguments: Any) -> None:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT @@sql_mode")
                    seen.append(cursor.fetchone()[0])

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Fault, "commit", look)
                assert run(Limited).state == RefreshState.SUCCEEDED
            with connection.cursor() as cursor:
                cursor.execute("SELECT @@sql_mode")
                after = cursor.fetchone()[0]
        assert {"ANSI_QUOTES", "STRICT_TRANS_TABLES"} == set(",".join(seen).split(","))
        assert after == modes

    @on_mariadb
    @pytest.mark.parametrize(
        "transaction_of_ours",
        [engine.short_transaction, partial(transactions.batch_transaction, 33)],
    )
    def test_what_runs_on_commit_may_begin_another_and_the_session_is_as_before(
        self, transaction_of_ours: Callable[[], Any]
    ) -> None:
        # given something that a hook leaves until the commit, with a transaction of ours in it
        def nested() -> None:
            with transactions.batch_transaction(44):
                pass

        names = (
            "sql_mode", "max_statement_time", "idle_transaction_timeout", "lock_wait_timeout",
            "innodb_lock_wait_timeout", "tx_isolation", "autocommit",
        )  # fmt: skip

        def session() -> Any:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}")
                return cursor.fetchone()

        # when the outer one commits
        with options(init_command="SET SESSION sql_mode='ANSI_QUOTES', max_statement_time=7"):
            before = session()
            with transaction_of_ours():
                transaction.on_commit(nested)
            # then the caller's settings are those before
            assert session() == before

    @on_mariadb
    def test_a_session_that_cannot_be_restored_is_closed(self) -> None:
        items(1)
        let_time_pass()
        raw: Any = connection.connection
        with pytest.MonkeyPatch.context() as patch:
            execute = Sessions.execute

            def fail_at_the_end(sessions: Sessions, sql: str) -> None:
                execute(
                    sessions, sql.replace("SET SESSION max_statement_time = @", "SET nonsense = @")
                )

            patch.setattr(Sessions, "execute", fail_at_the_end)
            with engine.short_transaction():
                pass
        assert connection.connection is not raw
