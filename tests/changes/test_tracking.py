"""Change tracking: changes are seen whatever makes them; what changes nothing costs nothing."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.apps import apps as real_apps
from django.core.checks import Tags, run_checks
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.db.models import Count, Exists, F, OuterRef, QuerySet, Subquery, Sum, Window
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now, RowNumber
from django.db.models.signals import post_migrate, pre_migrate
from django.db.transaction import TransactionManagementError
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from benchmarks.statements import statements
from matviews import changes, engine, mark_dirty, signals, untracked
from matviews.admin import live
from matviews.changes import change_log, log_spans, tracking_of
from matviews.changes.tracking_spec import tracked_tables, union
from matviews.databases import dialect_of, triggers_of
from matviews.exceptions import InvalidRequest, ViewDisabled
from matviews.models import (
    Change,
    DirtyKeys,
    Refresh,
    TrackedTable,
    ViewChange,
    ViewControl,
    ViewShard,
)
from matviews.phases import Phase
from matviews.queryset import plan as plan_module
from matviews.queryset import plan_of, stages
from matviews.registry import registry
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers.engine import due, in_another_connection, shard_of, without_sqlite
from tests.helpers.source_views import sourced, staged
from tests.helpers.view_classes import make_view, ready, run
from tests.sample.models import Limited
from tests.shapes.models import Customer, Order, Product, Region, Tag
from tests.shapes.models.grouped import (
    CustomerTotal,
    DayRegion,
    DayStatus,
    Overall,
    ProductTotal,
    QuantityTotal,
    RegionTotal,
    SlotRegion,
    ViewOfView,
)
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.shop import COLUMNS
from tests.shapes.tracking import everything_tracked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]
CLOCKS_DIFFER = 1.0  # seconds, between the database and this process, and by rounding

OTHER_QUERY = "source() changed since the last success, or its dates did"

only_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
NOTHING_PENDING = "<dt>oldest pending change</dt><dd>none</dd>"


@pytest.fixture(autouse=True)
def _filled(tracked: None) -> Iterator[None]:
    region = Region.objects.create(pk=1, name="here")
    Product.objects.create(sku="a", name="a", price=2)
    Tag.objects.create(pk=1, label="t")
    for number in (1, 2, 3):
        Customer.objects.create(pk=number, name=str(number), region=region)
        order(number)
    yield
    for view in (CustomerTotal, QuantityTotal, SlotRegion, DayRegion):
        view.query = Query()


def order(customer: int | None, **values: Any) -> Order:
    return Order.objects.create(
        customer_id=customer, product_id="a", quantity=customer, price=1, paid=False, **values
    )


def batches(view: type[Any]) -> int:
    """Refresh a view, and count the batches that looked at anything."""
    refresh = run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    return sum(each.batches for each in refresh.runs.all())


def why(view: type[Any]) -> str:
    """Refresh a view, which has to look at all keys, and tell why."""
    refresh = run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert {each.dirty_after for each in refresh.runs.all()} == {None}
    [reason] = {each.full_refresh_reason for each in refresh.runs.all()}
    return reason


def move_by_ranges(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Take more than so many entries for a bulk load, and ten for what is moved at once."""
    monkeypatch.setattr(change_log, "MAX_MOVED_ENTRIES", 10)
    monkeypatch.setattr(change_log, "MAX_DISTINCT_CHANGES", limit)
    monkeypatch.setattr(change_log, "FEW_ENTRIES", 0)
    monkeypatch.setattr(log_spans, "MIN_SPAN", 5)


def at_rest(view: type[Any]) -> None:
    """Bring a view to where a refresh has nothing to do, and is known to have nothing."""
    run(view)
    batches(view)
    assert batches(view) == 0


def logged(model: type[Any]) -> int:
    return Change.objects.filter(table=model._meta.db_table).count()


def links_of_orders() -> list[Any]:
    """What is logged of orders, in order."""
    entries = Change.objects.filter(table=Order._meta.db_table).order_by("pk")
    return list(entries.values_list("links", flat=True))


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def price_saved() -> None:
    each = Order.objects.filter(customer=1).get()
    each.price += 1
    each.save()


WRITES: dict[str, Callable[[], object]] = {
    "save": price_saved,
    "create": lambda: order(1),
    "bulk_create": lambda: Order.objects.bulk_create(
        [Order(customer_id=2, product_id="a", price=3, paid=True, quantity=2)]
    ),
    "bulk_create with conflicts": lambda: Order.objects.bulk_create(
        [
            Order(
                pk=Order.objects.earliest("pk").pk,
                customer_id=2,
                product_id="a",
                price=8,
                paid=True,
            )
        ],
        update_conflicts=True,
        update_fields=["price"],
        unique_fields=[] if connection.vendor == "mysql" else ["pk"],
    ),
    "bulk_update": lambda: Order.objects.bulk_update(
        [Order(pk=each.pk, price=each.price + 1) for each in Order.objects.all()], ["price"]
    ),
    "update": lambda: Order.objects.filter(customer=1).update(price=7),
    "to another key": lambda: Order.objects.filter(customer=1).update(customer=2),
    "NULL": lambda: Order.objects.filter(customer=1).update(customer=None),
    "delete": lambda: Order.objects.filter(customer=1).delete(),
    "raw SQL": lambda: execute("UPDATE shapes_order SET price = price + 1"),
    "raw delete": lambda: execute("DELETE FROM shapes_order WHERE customer_id = 3"),
    "insert of a select": lambda: execute(
        "INSERT INTO shapes_order (customer_id, product_id, price, paid, status, note, quantity) "
        "SELECT customer_id, product_id, price, paid, status, note, quantity FROM shapes_order"
    ),
}


# Orders of a quantity are as many, and cost as much, whoever has ordered.
UNSEEN_BY_QUANTITY = {"to another key", "NULL"}


class TestEveryWayOfWriting:
    @pytest.mark.parametrize("name", list(WRITES))
    @pytest.mark.parametrize("view", [CustomerTotal, QuantityTotal], ids=["windowed", "staged"])
    def test_is_seen_and_then_nothing_is_left_to_do(self, view: type[Any], name: str) -> None:
        at_rest(view)

        WRITES[name]()

        unseen = name in UNSEEN_BY_QUANTITY and view is QuantityTotal
        assert unseen == (differences(view) == [])
        assert unseen == (batches(view) == 0)
        assert differences(view) == []
        at_rest(view)

    @only_postgres
    def test_truncate_is_seen(self) -> None:
        at_rest(CustomerTotal)

        execute("TRUNCATE shapes_order CASCADE")

        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    @only_postgres
    def test_a_session_that_writes_as_a_replica_is_seen(self) -> None:
        at_rest(CustomerTotal)

        execute("SET session_replication_role = replica")
        execute("UPDATE shapes_order SET price = price + 1")
        execute("RESET session_replication_role")

        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    @pytest.mark.only_on("sqlite", reason="SQLite's own")
    def test_replace_is_seen(self) -> None:
        """It fires no trigger for the row that goes."""
        at_rest(CustomerTotal)
        pk = Order.objects.earliest("pk").pk

        execute(
            "REPLACE INTO shapes_order (id, customer_id, product_id, price, paid, status, note) "
            f"VALUES ({pk}, 3, 'a', 9, 0, '', '')"
        )

        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    def test_another_letter_is_seen(self) -> None:
        """Which most collations of MariaDB take for no change."""
        CustomerTotal.query = Query(rows=2)
        changes.install(engine.alias())
        Order.objects.update(status="b")
        at_rest(CustomerTotal)

        Order.objects.update(status="B")

        assert logged(Order)

    def test_a_number_of_the_same_value_is_not(self) -> None:
        at_rest(CustomerTotal)

        Order.objects.update(price=F("price") + 0)

        assert not logged(Order)


class TestWhatIsNoChange:
    def test_a_column_that_no_view_reads(self) -> None:
        at_rest(CustomerTotal)

        Tag.objects.update(label="x")

        assert not logged(Tag)
        assert batches(CustomerTotal) == 0

    def test_a_table_that_it_does_not_read(self) -> None:
        at_rest(CustomerTotal)

        Region.objects.update(name="there")

        assert logged(Region)  # other views read it
        assert CustomerTotal.is_fresh()
        assert batches(CustomerTotal) == 0

    def test_a_statement_that_finds_no_row(self) -> None:
        at_rest(CustomerTotal)

        Order.objects.filter(pk=-5).update(price=3)
        Order.objects.filter(pk=-5).delete()

        assert not logged(Order)

    def test_what_was_rolled_back(self) -> None:
        at_rest(CustomerTotal)

        with transaction.atomic():
            order(1)
            transaction.set_rollback(True)
        with transaction.atomic(), transaction.atomic():
            order(2)
            transaction.set_rollback(True)

        assert batches(CustomerTotal) == 0

    def test_it_is_known_to_be_fresh_without_a_look_at_the_source(self) -> None:
        at_rest(CustomerTotal)

        with CaptureQueriesContext(connection) as captured:
            assert CustomerTotal.is_fresh()

        assert len(captured) == 1

    def test_a_refresh_of_it_has_succeeded_when_it_is_asked_for(self) -> None:
        at_rest(CustomerTotal)
        before, told = shard_of(CustomerTotal).view, []

        def receiver(refresh: Refresh, **_others: Any) -> None:
            told.append((refresh.pk, refresh.state))

        for signal in (signals.refresh_requested, signals.refresh_finished):
            signal.connect(receiver)
        try:
            with statements() as found:
                refresh = CustomerTotal.refresh()
        finally:
            for signal in (signals.refresh_requested, signals.refresh_finished):
                signal.disconnect(receiver)

        # two that set limits, and set them back, where BEGIN cannot bring them
        assert len(found) <= (5 if connection.vendor == "mysql" else 3), found
        assert told == 2 * [(refresh.pk, RefreshState.SUCCEEDED)]
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED
        assert not refresh.runs.exists()
        after = shard_of(CustomerTotal).view
        assert after.last_insert == after.last_update == after.last_delete == refresh.finished_at
        assert before.last_insert
        assert refresh.finished_at
        assert before.last_insert < refresh.finished_at

    def test_a_phase_of_it_alone(self) -> None:
        at_rest(CustomerTotal)
        before = shard_of(CustomerTotal).view

        assert run(CustomerTotal, phases=[Phase.UPDATE]).finished_at

        after = shard_of(CustomerTotal).view
        assert after.last_insert == before.last_insert
        assert after.last_update != before.last_update

    def test_nothing_is_believed_within_a_transaction_whose_view_may_be_old(self) -> None:
        at_rest(CustomerTotal)

        with transaction.atomic():
            refresh = engine.request(CustomerTotal)

        assert refresh.state == RefreshState.OPEN
        inline.run_to_end(refresh)

    def test_it_may_still_be_disabled(self) -> None:
        at_rest(CustomerTotal)
        ViewControl.objects.filter(label="shapes.CustomerTotal").update(enabled=False)

        with pytest.raises(ViewDisabled):
            engine.request(CustomerTotal)


class TestTransactionsBetweenTransactions:
    @without_sqlite
    def test_a_change_that_commits_after_the_refresh_is_seen_by_the_next(self) -> None:
        at_rest(CustomerTotal)
        written, refreshed = threading.Event(), threading.Event()

        def write_slowly() -> None:
            with transaction.atomic():
                order(1)
                written.set()
                assert refreshed.wait(20)

        thread = in_another_connection(write_slowly)
        assert written.wait(20)
        order(2)
        assert batches(CustomerTotal) > 0
        refreshed.set()
        thread.join()

        assert differences(CustomerTotal) != []
        assert batches(CustomerTotal) > 0
        assert differences(CustomerTotal) == []

    @pytest.mark.parametrize("settled", [False, True])
    def test_what_was_changed_before_a_request_is_not_left_to_the_next(
        self, settled: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The request comes while a batch for an earlier one moves the log.

        It may be settled before that batch goes on.
        """
        at_rest(CustomerTotal)
        order(1)
        refresh = engine.request(CustomerTotal)
        asked: list[Refresh] = []

        def move_and_write(*_tables: Any) -> None:
            engine.move_log()
            if not asked:
                order(2)
                asked.append(engine.request(CustomerTotal))
                if settled:
                    engine.close_finished_in_view(refresh.view_id)

        before_the_batch = (lambda *_tables: None) if settled else move_and_write
        monkeypatch.setattr("matviews.engine.batches.batch.move_log", before_the_batch)
        monkeypatch.setattr("matviews.engine.tracking.queues.move_log", move_and_write)
        inline.run_until_idle([shard_of(CustomerTotal).pk])

        for each in (refresh, *asked):
            each.refresh_from_db()
            assert each.state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) == []

    @without_sqlite
    @pytest.mark.parametrize("long", [False, True])
    def test_changes_that_are_not_committed_hold_nobody_up(
        self, long: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MariaDB waits for a row of another transaction where it only comes across it."""
        if long:
            move_by_ranges(monkeypatch, 20)
        at_rest(CustomerTotal)
        written, done = threading.Event(), threading.Event()
        control = shard_of(CustomerTotal).view_id

        def write_slowly() -> None:
            with transaction.atomic():
                for number in range(40):
                    Change.objects.create(table="held")
                    ViewChange.objects.create(view_id=control)
                    if number == 20:
                        written.set()
                        assert done.wait(20)

        thread = in_another_connection(write_slowly)
        assert written.wait(20)
        try:
            for count in (1, 3, 50):
                order(1)
                Change.objects.bulk_create([Change(table=Order._meta.db_table)] * count)
                ViewChange.objects.bulk_create([ViewChange(view_id=control)] * count)
                with limited_waiting():
                    engine.move_log()
                    assert batches(CustomerTotal) > 0
                    engine.collapse_long_queues()
        finally:
            done.set()
            thread.join()

        assert not logged(Order)
        assert ViewChange.objects.filter(view=control).count() == 40

    def test_a_change_between_two_batches_is_for_the_next_refresh(self) -> None:
        run(CustomerTotal)
        Order.objects.update(price=4)
        refresh = engine.request(CustomerTotal, batch_size=1)
        shard = shard_of(CustomerTotal)
        message = engine.close_finished(shard.pk).message
        for _number in range(3):
            assert message is not None
            engine.run_batch(message)
            message = engine.close_finished(shard.pk).message
        Order.objects.update(price=50)
        Order.objects.filter(customer=1).delete()
        inline.run_until_idle([shard.pk])

        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED
        assert batches(CustomerTotal) > 0
        assert differences(CustomerTotal) == []

    def test_a_batch_that_fails_takes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(CustomerTotal)
        order(1)

        def broken(*_arguments: Any) -> Any:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr("matviews.engine.batches.step.do_derived", broken)
            assert run(CustomerTotal).state == RefreshState.FAILED

        assert not CustomerTotal.is_fresh()
        assert batches(CustomerTotal) > 0
        assert differences(CustomerTotal) == []

    def test_one_phase_alone_is_covered_alone(self) -> None:
        at_rest(CustomerTotal)
        Order.objects.filter(customer=1).update(price=5)

        run(CustomerTotal, phases=[Phase.INSERT])

        assert CustomerTotal.is_fresh(phases=[Phase.INSERT])
        assert not CustomerTotal.is_fresh(phases=[Phase.UPDATE])
        run(CustomerTotal)
        assert differences(CustomerTotal) == []


class TestSharing:
    def test_a_view_that_reads_a_view_follows_it(self) -> None:
        at_rest(CustomerTotal)
        at_rest(ViewOfView)
        order(1)

        run(CustomerTotal)

        assert not ViewOfView.is_fresh()
        assert batches(ViewOfView) > 0
        assert differences(ViewOfView) == []
        at_rest(ViewOfView)

    def test_a_refresh_of_one_view_leaves_the_change_to_the_others(self) -> None:
        at_rest(CustomerTotal)
        at_rest(QuantityTotal)
        order(1)

        assert batches(CustomerTotal) > 0

        assert batches(QuantityTotal) > 0
        assert differences(QuantityTotal) == []

    def test_a_row_is_logged_once_however_many_views_read_it(self) -> None:
        engine.move_log()

        Order.objects.update(price=9)

        links = [link for _names, *links in links_of_orders() for link in links]
        assert len(links) == len({json.dumps(link) for link in links}) == 3

    @only_postgres
    def test_a_statement_that_changes_very_many_rows_names_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matviews.databases.postgresql.trigger_sql.MAX_DISTINCT_CHANGES", 2)
        changes.install(engine.alias())
        at_rest(CustomerTotal)

        Order.objects.update(price=9)

        assert why(CustomerTotal) == "more than 50,000 rows have changed at once"
        assert differences(CustomerTotal) == []
        Order.objects.filter(customer__in=(1, 2)).update(price=10)
        assert TestKeys().keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 2)

    @pytest.mark.only_on("sqlite", "postgres", reason="MariaDB logs rows one by one")
    def test_a_statement_is_logged_once_where_no_key_is_to_be_known(self) -> None:
        with registry.preserved():
            for each in [each for each in registry if each.model is not Overall]:
                registry.unregister(each.label)
            changes.install(engine.alias())
            engine.move_log()

            Order.objects.update(price=9)

            assert logged(Order) == 1

    def test_the_queue_of_a_view_that_nobody_refreshes_stays_short(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matviews.changes.long_queues.MAX_QUEUED_CHANGES", 10)
        at_rest(CustomerTotal)
        control = shard_of(CustomerTotal).view_id
        ViewChange.objects.bulk_create([ViewChange(view_id=control)] * 11)

        engine.collapse_long_queues()

        assert ViewChange.objects.filter(view=control).count() == 1
        assert batches(CustomerTotal) > 0

    @pytest.mark.parametrize("place", ["log", "queue"])
    def test_very_many_changes_are_not_told_apart(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_rest(CustomerTotal)
        Order.objects.filter(customer=1).update(price=8)
        Order.objects.filter(customer=2).update(price=8)
        if place == "queue":
            engine.move_log()
        monkeypatch.setattr("matviews.changes.change_log.MAX_MOVED_ENTRIES", 1)
        monkeypatch.setattr("matviews.changes.change_log.MAX_DISTINCT_CHANGES", 1)

        refresh = run(CustomerTotal)

        assert {each.full_refresh_reason for each in refresh.runs.all()} == {
            "more than 1 changes were pending"
        }
        assert differences(CustomerTotal) == []
        assert not Change.objects.filter(table=Order._meta.db_table).exists()

    def test_a_short_log_is_moved_in_one_round_trip_on_postgresql(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_rest(CustomerTotal)
        monkeypatch.setattr(change_log, "FEW_ENTRIES", 3)
        for few in (True, False):
            for _number in range(3 if few else 4):
                order(1)
            with statements() as found:
                engine.move_log()
            assert not Change.objects.exists()
            assert (len(found) == 1) == (few and connection.vendor == "postgresql")
            batches(CustomerTotal)
            assert differences(CustomerTotal) == []

    def test_a_view_that_was_never_built_needs_no_entry(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given two views of the orders of which one was never built
        at_rest(QuantityTotal)
        control, other = shard_of(CustomerTotal).view_id, shard_of(QuantityTotal).view_id
        before = list(ViewChange.objects.filter(view=control).values_list("pk", "links"))
        # when many orders are logged, and moved
        monkeypatch.setattr(change_log, "FEW_ENTRIES", 2)
        for _number in range(4):
            order(1)
        engine.move_log()
        # then its queue says what it has said before; the other view gets what it needs
        assert list(ViewChange.objects.filter(view=control).values_list("pk", "links")) == before
        assert ViewChange.objects.filter(view=other).exists()
        assert not Change.objects.exists()
        # and from its first batch on, it gets every change
        run(CustomerTotal)
        for _number in range(4):
            order(2)
        engine.move_log()
        assert ViewChange.objects.filter(view=control, count__gt=0).exists()
        assert TestKeys().keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 1)
        assert differences(CustomerTotal) == []

    @pytest.mark.parametrize("built", [False, True])
    def test_the_log_of_a_bulk_load_is_deleted_by_ranges(
        self, built: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def statements_of_a_move(count: int) -> int:
            log = [Change(table=Order._meta.db_table, links=[[], []]) for _ in range(count)]
            Change.objects.bulk_create(log)
            with CaptureQueriesContext(connection) as queries:
                engine.move_log()
            assert not Change.objects.exists()
            return len(queries)

        if built:
            at_rest(CustomerTotal)
        move_by_ranges(monkeypatch, 500)
        engine.move_log()
        queued = ViewChange.objects.filter(view=shard_of(CustomerTotal).view_id)

        if not built:  # else the views get a copy of what is too little for a bulk load
            assert statements_of_a_move(450) == statements_of_a_move(250)
        of_one_step = statements_of_a_move(501)
        of_four = statements_of_a_move(4 * 501)
        assert of_four < 5 * of_one_step < 200
        if connection.vendor == "sqlite":  # where nobody else writes, one step takes all
            assert of_four <= of_one_step
        assert set(queued.values_list("count", flat=True)) == {0}
        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    def test_the_oldest_time_is_kept_of_changes_that_no_view_needs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(change_log, "FEW_ENTRIES", 0)
        long_ago = timezone.now() - timedelta(days=400)
        order(1)
        Change.objects.update(logged_at=long_ago)

        engine.move_log()

        queued = ViewChange.objects.filter(view=shard_of(CustomerTotal).view_id)
        assert abs(queued.earliest("logged_at").logged_at - long_ago) < timedelta(seconds=1)

    def test_a_refresh_that_waits_for_the_log_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matviews.engine.status.progress.MIN_TO_MOVE", 3)
        at_rest(CustomerTotal)
        Change.objects.bulk_create([Change(table=Order._meta.db_table)] * 2)
        Change.objects.create(table="of another view")
        refresh = engine.request(CustomerTotal)
        assert not any(each.to_move for each in engine.progress_of(refresh))
        order(1)

        words = live.refresh_progress(refresh)["words"]

        assert words == "insert: moving 3 entries of the change log"
        assert [each.to_move for each in engine.progress_of(refresh)] == [3, 0, 0]
        assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
        assert not any(each.to_move for each in engine.progress_of(refresh))

    def test_a_long_log_is_moved_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("matviews.changes.change_log.MAX_MOVED_ENTRIES", 2)
        table = Order._meta.db_table
        Change.objects.bulk_create([Change(table=table, links={}) for _ in range(5)])

        engine.move_log()

        assert not Change.objects.exists()
        assert ViewChange.objects.filter(view=shard_of(CustomerTotal).view_id).exists()


class TestWhatForcesAFullPass:
    def test_somebody_who_asks_for_it(self) -> None:
        at_rest(CustomerTotal)
        CustomerTotal.objects.filter(customer=1).update(money=-1)
        assert batches(CustomerTotal) == 0

        mark_dirty("shapes.CustomerTotal")

        assert not CustomerTotal.is_fresh()
        assert why(CustomerTotal) == "all keys were marked as dirty"
        assert differences(CustomerTotal) == []

    def test_another_definition(self) -> None:
        at_rest(CustomerTotal)

        CustomerTotal.query = Query(money=1)

        assert why(CustomerTotal) == OTHER_QUERY
        assert differences(CustomerTotal) == []

    def test_a_definition_that_came_and_went(self) -> None:
        at_rest(CustomerTotal)
        CustomerTotal.query = Query(money=1)
        engine.request(CustomerTotal, batch_size=1, phases=[Phase.UPDATE])
        message = engine.close_finished(shard_of(CustomerTotal).pk).message
        engine.run_batch(message)  # type: ignore[arg-type]
        CustomerTotal.query = Query()

        inline.run_until_idle([shard_of(CustomerTotal).pk])
        run(CustomerTotal)

        assert differences(CustomerTotal) == []

    def test_a_moment_that_moves_on(self, own_views: None) -> None:
        since = [timezone.now()]
        view = sourced(
            lambda: Order.objects.filter(placed_at__gt=since[0]).values(
                key=F("pk"), value=F("customer")
            )
        )
        changes.install(engine.alias())
        Order.objects.update(placed_at=timezone.now() + timedelta(days=1))
        at_rest(view)
        assert view.objects.count() == 3

        since[0] += timedelta(days=2)

        assert not view.is_fresh()
        assert why(view) == OTHER_QUERY
        assert not view.objects.exists()

    def test_triggers_that_somebody_has_removed(self) -> None:
        at_rest(CustomerTotal)
        table = Order._meta.db_table
        name = TrackedTable.objects.get(table=table).triggers[0].partition(":")[0]
        on = f" ON {table}" if connection.vendor == "postgresql" else ""
        execute(f"DROP TRIGGER {name}{on}")

        assert why(CustomerTotal) == f"no triggers log all changes of {table}"
        assert why(CustomerTotal) == f"no triggers log all changes of {table}"
        assert problems() == [
            f"The triggers on {table} (read by {readers(table)}) are out of date."
        ]
        changes.install(engine.alias())

        assert problems() == []
        assert why(CustomerTotal) == f"the triggers of {table} were installed or replaced"
        at_rest(CustomerTotal)

    @pytest.mark.only_on("postgres", "mariadb", reason="SQLite knows no trigger but its name")
    def test_triggers_that_somebody_has_removed_and_made_again(self) -> None:
        at_rest(CustomerTotal)
        table, dialect = Order._meta.db_table, triggers_of(engine.alias())
        spec = union(tracked_tables(engine.alias())[table].values())
        dialect.execute(dialect.drop(table, dialect.names(table, spec)))
        order(1)
        dialect.execute(dialect.create(table, spec))

        assert not CustomerTotal.is_fresh()
        assert problems() == [
            (
                f"The triggers on {table} (read by {readers(table)}) "
                f"are not the ones that matviews recorded."
            )
        ]
        reasons = [each.full_refresh_reason for each in run(CustomerTotal).runs.order_by("pk")]
        assert reasons[0] == f"no triggers log all changes of {table}"
        assert "" not in reasons
        assert differences(CustomerTotal) == []
        assert problems() == []
        at_rest(CustomerTotal)

    @only_postgres
    def test_triggers_that_were_disabled_for_a_while(self) -> None:
        at_rest(CustomerTotal)
        execute("ALTER TABLE shapes_order DISABLE TRIGGER ALL")
        order(1)
        execute("ALTER TABLE shapes_order ENABLE TRIGGER ALL")

        assert not CustomerTotal.is_fresh()
        assert "" not in [each.full_refresh_reason for each in run(CustomerTotal).runs.all()]
        assert differences(CustomerTotal) == []
        at_rest(CustomerTotal)

    @only_postgres
    def test_triggers_that_somebody_has_disabled(self) -> None:
        at_rest(CustomerTotal)
        execute("ALTER TABLE shapes_order DISABLE TRIGGER ALL")
        order(1)

        assert why(CustomerTotal) == "no triggers log all changes of shapes_order"

        execute("ALTER TABLE shapes_order ENABLE TRIGGER ALL")
        changes.install(engine.alias())
        at_rest(CustomerTotal)

    @only_postgres
    def test_triggers_that_stay_disabled_are_recreated(self) -> None:
        at_rest(CustomerTotal)
        execute("ALTER TABLE shapes_order DISABLE TRIGGER USER")
        order(1)

        changes.install(engine.alias())

        assert problems() == []
        assert why(CustomerTotal) == "the triggers of shapes_order were installed or replaced"
        assert differences(CustomerTotal) == []
        order(1)
        assert logged(Order)

    def test_a_record_that_knows_another_view(self) -> None:
        """As where an older version of the code has installed the triggers."""
        at_rest(CustomerTotal)
        record = TrackedTable.objects.get(table=Order._meta.db_table)
        record.views.remove(shard_of(CustomerTotal).view_id)
        record.save()
        order(1)

        assert batches(CustomerTotal) > 0
        assert batches(CustomerTotal) > 0
        order(2)
        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    def test_a_shard_that_is_new(self) -> None:
        at_rest(CustomerTotal)
        shard = shard_of(CustomerTotal)
        shard.delete()

        engine.sync_controls()

        assert ViewShard.objects.get(view=shard.view_id).checkpoints == {}
        assert why(CustomerTotal) == "it has not succeeded since tracking began"


@contextmanager
def limited_waiting() -> Iterator[None]:
    """Who waits for a lock fails."""
    names = {"postgresql": "lock_timeout = '1s'", "mysql": "innodb_lock_wait_timeout = 1"}
    execute(f"SET {names[connection.vendor]}")
    try:
        yield
    finally:
        connection.close()


def problems() -> list[str]:
    return list(changes.find_problems(engine.alias()))


def readers(table: str) -> str:
    """The labels of the views that read a table."""
    return ", ".join(sorted(tracked_tables(engine.alias())[table]))


class TestKeys:
    """What changed leads to keys, and a refresh looks at these alone."""

    @staticmethod
    def keys_scanned(view: type[Any], **options: Any) -> dict[str, int]:
        refresh = run(view, **options)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        runs = refresh.runs.filter(batches__gt=0)
        assert all(each.dirty_after is not None for each in runs)
        return {each.phase: each.keys_scanned for each in runs}

    def test_only_what_changed_is_looked_at(self) -> None:
        at_rest(CustomerTotal)
        order(1)

        assert self.keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 1)
        assert differences(CustomerTotal) == []
        Order.objects.filter(customer=2).update(customer=3)
        assert self.keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 2)
        assert differences(CustomerTotal) == []

    def test_by_way_of_a_table_in_between(self) -> None:
        Region.objects.create(pk=2, name="there")
        Region.objects.create(pk=3, name="nowhere")
        at_rest(RegionTotal)

        order(1)
        assert self.keys_scanned(RegionTotal) == dict.fromkeys(Phase, 1)
        Customer.objects.filter(pk=1).update(region=2)
        assert self.keys_scanned(RegionTotal) == dict.fromkeys(Phase, 2)
        Order.objects.filter(customer=1).update(customer=2)
        assert self.keys_scanned(RegionTotal) == dict.fromkeys(Phase, 2)
        assert differences(RegionTotal) == []

    def test_batch_by_batch(self) -> None:
        at_rest(CustomerTotal)
        Order.objects.update(price=4)

        refresh = run(CustomerTotal, batch_size=2)

        runs = {each.phase: each for each in refresh.runs.all()}
        assert {phase: each.batches for phase, each in runs.items()} == dict.fromkeys(Phase, 2)
        assert runs[Phase.UPDATE].rows == 3
        assert differences(CustomerTotal) == []

    @pytest.mark.parametrize(
        ("phase", "other", "change"),
        [
            (Phase.INSERT, Phase.UPDATE, lambda: CustomerTotal.objects.all().delete()),
            (Phase.UPDATE, Phase.INSERT, lambda: Order.objects.update(price=4)),
            (Phase.DELETE, Phase.INSERT, lambda: Order.objects.all().delete()),
        ],
    )
    def test_a_change_of_any_key_takes_none_from_a_refresh_on_its_way(
        self, phase: Phase, other: Phase, change: Callable[[], object]
    ) -> None:
        # given a refresh that has done the first of three keys
        at_rest(CustomerTotal)
        change()
        CustomerTotal.mark_dirty([1, 2, 3])
        first = engine.request(CustomerTotal, phases=[phase], batch_size=1)
        engine.run_batch(due(CustomerTotal))

        # when the changes that another takes may concern any key
        CustomerTotal.mark_dirty()
        engine.request(CustomerTotal, phases=[other], batch_size=1)
        closed: tuple[Refresh, ...] = ()
        while first not in closed:
            engine.run_batch(due(CustomerTotal))
            closed = engine.close_finished(shard_of(CustomerTotal).pk).closed

        # then the first succeeds with all of its keys done
        refresh = closed[closed.index(first)]
        assert refresh.state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) == []
        assert refresh.runs.get().full_refresh_reason == "all keys were marked as dirty"

    def test_a_phase_that_ends_late_leaves_no_key_to_nobody(self) -> None:
        # given a first build before its last phase, which skips what the first one inserted
        first = engine.request(CustomerTotal)
        for _phase in (Phase.INSERT, Phase.UPDATE):
            engine.run_batch(due(CustomerTotal))
        gone = CustomerTotal.objects.earliest("pk").customer_id
        Order.objects.filter(customer=gone).delete()

        # when the phases before it have done a later change already
        second = engine.request(CustomerTotal)
        for phase in (Phase.INSERT, Phase.UPDATE):
            engine.run_batch(replace(due(CustomerTotal), phase=phase))
        inline.run_until_idle([shard_of(CustomerTotal).pk])

        # then it does that change as well
        for each in (first, second):
            each.refresh_from_db()
            assert each.state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) == []

    def test_few_keys_are_done_by_one_message(self) -> None:
        at_rest(CustomerTotal)
        order(4 - Order.objects.filter(customer=1).delete()[0])
        shard = shard_of(CustomerTotal)
        engine.request(CustomerTotal)
        message = engine.close_finished(shard.pk).message
        assert message is not None

        assert engine.run_batch(message).rows == 2

        settled = engine.close_finished(shard.pk)
        assert (settled.message, len(settled.closed)) == (None, 1)
        assert not DirtyKeys.objects.exists()
        assert differences(CustomerTotal) == []

    def test_a_phase_that_fails_holds_up_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(CustomerTotal)
        CustomerTotal.objects.filter(customer=1).delete()
        CustomerTotal.mark_dirty([1, 2])
        Order.objects.filter(customer=2).update(price=9)

        def broken(*_arguments: Any) -> Any:
            raise DatabaseError("broken")

        with monkeypatch.context() as patch:
            patch.setattr("matviews.queryset.sql.statements.Statements.update", broken)
            plan_module._plan_of.cache_clear()
            refresh = run(CustomerTotal)

        states = dict(refresh.runs.values_list("phase", "state"))
        assert states == {
            Phase.INSERT: RunState.SUCCEEDED,
            Phase.UPDATE: RunState.FAILED,
            Phase.DELETE: RunState.SUCCEEDED,
        }
        assert CustomerTotal.objects.filter(customer=1).exists()
        plan_module._plan_of.cache_clear()
        assert self.keys_scanned(CustomerTotal) == {Phase.UPDATE: 2}
        assert differences(CustomerTotal) == []

    def test_a_refresh_of_few_keys_costs_few_statements(self) -> None:
        """Without BEGIN and COMMIT: 3 and 4 of them write and move the log, 3 write the view."""
        at_rest(CustomerTotal)
        Order.objects.filter(customer=1).update(price=9)
        self.keys_scanned(CustomerTotal)
        Order.objects.filter(customer=1).update(price=8)

        with statements() as found:
            inline.run_to_end(engine.request(CustomerTotal))

        at_most = {"sqlite": 25, "postgresql": 24, "mysql": 40}
        assert len(found) <= at_most[connection.vendor], "\n".join(found)

    @pytest.mark.parametrize("sku", ['"', "\\", "{a,b}", "NULL", "%s", 'ä"\\"\'', " "])
    def test_a_key_of_any_text(self, sku: str) -> None:
        at_rest(ProductTotal)
        Product.objects.create(sku=sku, name="x", price=1)
        Order.objects.create(customer_id=1, product_id=sku, price=1, quantity=1, paid=False)

        assert self.keys_scanned(ProductTotal)[Phase.INSERT] == 1
        assert ProductTotal.objects.filter(product=sku).count() == 1
        Order.objects.filter(product=sku).update(price=5)
        self.keys_scanned(ProductTotal)
        assert differences(ProductTotal) == []
        Product.objects.filter(sku=sku).delete()
        self.keys_scanned(ProductTotal)
        assert not ProductTotal.objects.filter(product=sku).exists()

    def test_each_phase_has_its_own_to_do(self) -> None:
        at_rest(CustomerTotal)
        Order.objects.filter(customer=1).update(price=4)
        assert self.keys_scanned(CustomerTotal, phases=[Phase.INSERT]) == {Phase.INSERT: 1}
        Order.objects.filter(customer=2).update(price=4)

        assert self.keys_scanned(CustomerTotal) == {
            Phase.INSERT: 1,
            Phase.UPDATE: 2,
            Phase.DELETE: 2,
        }

        assert differences(CustomerTotal) == []
        assert not DirtyKeys.objects.exists()

    def test_a_change_without_a_key_leaves_nothing_to_do(self) -> None:
        at_rest(CustomerTotal)

        Order.objects.create(product_id="a", price=1, paid=False)

        assert self.keys_scanned(CustomerTotal) == {}
        assert CustomerTotal.is_fresh()

    @pytest.mark.only_on("postgres", reason="the others read any text")
    def test_a_value_that_cannot_be_read_is_a_full_pass(self) -> None:
        """Such as one of a column with another type: a refresh must not fail over it for ever."""
        at_rest(DayStatus)
        order(1, shipped_on=date(2024, 2, 29), status="x")
        entry = Change.objects.get(table=Order._meta.db_table)
        names, link = entry.links  # type: ignore[misc]
        link[names.index("shipped_on")] = "0000-00-00"
        entry.save()

        assert run(DayStatus).state == RefreshState.FAILED
        assert run(DayStatus).state == RefreshState.SUCCEEDED
        assert differences(DayStatus) == []

    def test_too_many_keys_are_a_full_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(CustomerTotal)
        monkeypatch.setattr(
            "matviews.engine.tracking.dirty_keys.max_worthwhile_keys", lambda _work: 1
        )
        Order.objects.filter(customer=1).update(price=4)
        assert self.keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 1)
        Order.objects.update(price=5)

        assert why(CustomerTotal).startswith("more than 1 dirty keys would take longer")
        assert not DirtyKeys.objects.exists()
        assert differences(CustomerTotal) == []
        at_rest(CustomerTotal)

    def test_keys_that_wait_are_never_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(CustomerTotal)
        monkeypatch.setattr(
            "matviews.engine.tracking.dirty_keys.max_worthwhile_keys", lambda _work: 2
        )
        for customer in (1, 2, 3):
            Order.objects.filter(customer=customer).update(price=4)
            run(CustomerTotal, phases=[Phase.INSERT])

        assert not DirtyKeys.objects.exists()
        run(CustomerTotal)
        assert differences(CustomerTotal) == []

    def test_by_a_way_that_is_looked_up_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(RegionTotal)
        monkeypatch.setattr(
            "matviews.engine.tracking.dirty_keys.max_worthwhile_keys", lambda _work: 0
        )
        for price in (4, 5, 6):
            Order.objects.filter(customer=1).update(price=price)
            run(RegionTotal, phases=[Phase.INSERT])

        assert not DirtyKeys.objects.exists()
        run(RegionTotal)
        assert differences(RegionTotal) == []

    def test_what_is_marked_does_not_pile_up_where_it_makes_no_difference(self) -> None:
        mark_dirty("sample.Limited")

        assert not ViewChange.objects.filter(view=shard_of(Limited).view_id).exists()

    def test_a_killed_run_does_them_again(self) -> None:
        at_rest(CustomerTotal)
        Order.objects.update(price=4)
        engine.request(CustomerTotal, batch_size=2, phases=[Phase.UPDATE])
        shard = shard_of(CustomerTotal)
        report = engine.run_batch(engine.close_finished(shard.pk).message)  # type: ignore[arg-type]
        assert report.rows == 2

        inline.run_until_idle([shard.pk])
        run(CustomerTotal)

        assert differences(CustomerTotal) == []

    def test_marked_keys(self) -> None:
        at_rest(CustomerTotal)
        CustomerTotal.objects.update(money=-1)

        CustomerTotal.mark_dirty([1])
        assert self.keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 1)
        assert CustomerTotal.objects.exclude(money=-1).count() == 1
        CustomerTotal.mark_dirty(Customer.objects.exclude(pk=1).values_list("pk"))
        assert self.keys_scanned(CustomerTotal) == dict.fromkeys(Phase, 2)

        assert differences(CustomerTotal) == []

    @pytest.mark.parametrize("key", ["x", (1, 2), None])
    def test_what_is_no_key_is_refused(self, key: Any) -> None:
        with pytest.raises(
            InvalidRequest, match=r"shapes\.CustomerTotal: .* is not a valid key \(customer\)"
        ):
            CustomerTotal.mark_dirty([1, key])

        queue = ViewChange.objects.filter(view=shard_of(CustomerTotal).view_id)
        assert not any(isinstance(each.links, list) for each in queue)


class TestMigrations:
    def test_triggers_of_a_migrated_app_go_before_and_come_back_after(self) -> None:
        at_rest(CustomerTotal)
        migration = type("Migration", (), {"app_label": "shapes", "operations": []})()
        options = {"using": engine.alias(), "verbosity": 0, "interactive": False}
        sender = real_apps.get_app_config("matviews")

        pre_migrate.send(
            sender, app_config=sender, apps=real_apps, plan=[(migration, False)], **options
        )

        assert {
            tuple(each) for each in TrackedTable.objects.values_list("triggers", flat=True)
        } == {()}
        assert len(problems()) == TrackedTable.objects.count()
        order(1)
        post_migrate.send(sender, app_config=sender, **options)
        assert problems() == []
        assert batches(CustomerTotal) > 0
        assert differences(CustomerTotal) == []
        at_rest(CustomerTotal)

    def test_a_migration_of_another_app_leaves_them_alone(self) -> None:
        at_rest(CustomerTotal)
        migration = type("Migration", (), {"app_label": "auth", "operations": []})()
        options = {"using": engine.alias(), "verbosity": 0, "interactive": False}
        sender = real_apps.get_app_config("matviews")

        pre_migrate.send(
            sender, app_config=sender, apps=real_apps, plan=[(migration, False)], **options
        )
        post_migrate.send(sender, app_config=sender, **options)

        assert batches(CustomerTotal) == 0

    def test_taking_our_own_back_removes_every_trigger(self) -> None:
        engine.move_log()
        migration = type("Migration", (), {"app_label": "matviews", "operations": []})()
        sender = real_apps.get_app_config("matviews")

        pre_migrate.send(
            sender, app_config=sender, apps=real_apps, plan=[(migration, True)],
            using=engine.alias(), verbosity=0, interactive=False,
        )  # fmt: skip

        assert changes.remove(engine.alias()) == []
        order(1)
        assert not Change.objects.exists()

    @pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
    def test_a_transaction_under_way_is_not_committed(self) -> None:
        changes.remove(engine.alias())

        @transaction.atomic
        def write() -> None:
            order(1)
            changes.install(engine.alias())

        with pytest.raises(TransactionManagementError):
            write()

        assert Order.objects.count() == 3

    def test_a_database_that_refuses_is_told_of_and_stops_no_migration(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(using: str) -> None:
            raise DatabaseError("permission denied for table shapes_order")

        monkeypatch.setattr(changes, "install", refused)
        sender, out = real_apps.get_app_config("matviews"), StringIO()

        post_migrate.send(sender, app_config=sender, using=engine.alias(), verbosity=1, stdout=out)

        assert "permission denied for table shapes_order" in out.getvalue()
        assert "--triggers sql" in out.getvalue()


MOMENTS = [
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 3, 10, 4, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 3, 10, 5, 0, tzinfo=UTC),
    datetime(2024, 11, 3, 3, 59, 59, tzinfo=UTC),
    datetime(2024, 11, 3, 4, 0, tzinfo=UTC),
]


class TestKeysOfSeveralTables:
    @pytest.fixture(autouse=True)
    def _slots(self, _filled: None) -> None:
        Region.objects.create(pk=2, name="there")
        Order.objects.update(slot=F("customer"))

    def keys_looked_at(self, view: type[Any]) -> int:
        refresh = run(view)
        assert {each.dirty_after for each in refresh.runs.all()} != {None}
        assert differences(view) == []
        assert view.is_fresh()
        return max(each.keys_scanned for each in refresh.runs.all())

    def test_a_row_that_has_links_to_all_parts_leads_to_one_key(self) -> None:
        at_rest(SlotRegion)

        Order.objects.filter(customer=1).update(price=8)
        assert self.keys_looked_at(SlotRegion) == 1
        Order.objects.filter(customer=1).update(slot=7)
        assert self.keys_looked_at(SlotRegion) == 2
        order(2, slot=2)
        assert self.keys_looked_at(SlotRegion) == 1

    def test_a_row_on_the_way_to_a_part_leads_to_all_keys_with_that_part(self) -> None:
        order(3, slot=None)
        Customer.objects.filter(pk=3).update(region=2)
        at_rest(SlotRegion)

        Customer.objects.filter(pk=3).update(region=1)
        assert self.keys_looked_at(SlotRegion) == 4
        Region.objects.filter(pk=1).update(name="elsewhere")
        assert self.keys_looked_at(SlotRegion) == 6
        Customer.objects.create(pk=4, name="4", region_id=2)
        assert batches(SlotRegion) == 0

    def test_a_key_that_no_row_names_any_more_is_found_in_the_view(self) -> None:
        at_rest(SlotRegion)

        Customer.objects.filter(pk=1).update(region=2)
        Order.objects.filter(customer=1).delete()

        assert self.keys_looked_at(SlotRegion) == 4

    def test_one_that_having_keeps_out_of_the_view_is_found_in_the_source(self) -> None:
        SlotRegion.query = Query(form=1, bound=1)
        Order.objects.filter(customer=1).update(slot=2)
        at_rest(SlotRegion)
        assert not SlotRegion.objects.filter(slot=2).exists()

        Customer.objects.filter(pk=1).update(region=2)
        Order.objects.filter(customer=1).delete()

        self.keys_looked_at(SlotRegion)
        assert SlotRegion.objects.filter(slot=2).exists()

    def test_keys_with_a_part_may_be_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        at_rest(SlotRegion)
        monkeypatch.setattr(
            "matviews.engine.tracking.dirty_keys.max_worthwhile_keys", lambda _work: 2
        )

        Customer.objects.filter(pk=1).update(region=2)

        assert why(SlotRegion).startswith("more than 2 dirty keys would take longer")
        assert differences(SlotRegion) == []

    @pytest.mark.parametrize("bound", range(3))
    def test_a_day_is_that_of_the_moment_that_was_logged(self, bound: int) -> None:
        DayRegion.query = Query(bound=bound)
        at_rest(DayRegion)

        for before, after in zip([None, *MOMENTS], MOMENTS, strict=False):
            Order.objects.filter(customer=1).update(placed_at=after)
            days = {
                each.astimezone(DayRegion.query.zone()).date() for each in (before, after) if each
            }
            assert self.keys_looked_at(DayRegion) == len(days)

    @pytest.fixture
    def few_rows_of_three_tables(self) -> None:
        """So few that MariaDB 10.11 plans as it must not: see `opaque` of its dialect."""
        DayRegion.query = Query(count=3)
        changes.install(engine.alias())
        Order.objects.exclude(customer=1).update(customer=None)
        Customer.objects.filter(pk=2).delete()
        Customer.objects.filter(pk=3).update(region=2)
        Order.objects.filter(customer=1).update(placed_at=MOMENTS[-1])
        order(None)
        order(None)

    @pytest.mark.usefixtures("few_rows_of_three_tables")
    def test_a_row_that_moves_is_found_by_a_day_and_a_column_of_another_table(self) -> None:
        at_rest(DayRegion)

        Order.objects.filter(customer=1).update(customer=3)

        assert self.keys_looked_at(DayRegion) == 2
        assert DayRegion.objects.get().region_id == 2

    @pytest.mark.usefixtures("few_rows_of_three_tables")
    def test_so_is_one_whose_value_changes(self) -> None:
        order(3, placed_at=MOMENTS[-1])
        at_rest(DayRegion)

        Order.objects.exclude(customer=None).update(quantity=9)

        assert self.keys_looked_at(DayRegion) == 2
        assert set(DayRegion.objects.values_list("total", flat=True)) == {9}

    @override_settings(USE_TZ=False, TIME_ZONE="America/New_York")
    def test_so_it_is_without_time_zones(self) -> None:
        at_rest(DayRegion)

        # In the last hour of summer time, and the first after it.
        for hour, keys_scanned in ((0, 1), (1, 1), (23, 1)):
            last = datetime(2024, 11, 3, hour, 59, 59, 999999)  # noqa: DTZ001
            Order.objects.update(placed_at=last)
            assert self.keys_looked_at(DayRegion) == keys_scanned

    @pytest.mark.parametrize(
        "column", ["slot", "status", "basket", "placed_at", "shipped_on", "product_id"]
    )
    def test_what_is_logged_is_what_the_table_has(self, column: str) -> None:
        values = COLUMNS[Order].get(column, ["a"])
        with everything_tracked():
            Order.objects.all().delete()
            Change.objects.all().delete()
            for value in values:
                fields = {"product_id": "a", "price": 1, "paid": False, column: value}
                Order.objects.create(**fields)
            links = [
                (link[names.index(column)],)
                for names, *links in links_of_orders()
                for link in links
            ]
        logged_rows = dialect_of(engine.alias()).logged(Order._meta.db_table, [column], links)

        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH logged (c) AS ({logged_rows.text}) SELECT COUNT(*) FROM shapes_order "
                f"WHERE EXISTS (SELECT 1 FROM logged WHERE shapes_order.{column} = logged.c)",
                logged_rows.params,
            )
            assert cursor.fetchone() == (len([each for each in values if each is not None]),)

    def test_one_that_is_staged_and_not_in_the_view_yet(self) -> None:
        """A full pass is about to write what another refresh has to find."""
        at_rest(SlotRegion)
        Customer.objects.create(pk=4, name="4", region_id=1)
        for slot in range(4, 10):
            order(4 if slot == 9 else 3, slot=slot)
        SlotRegion.mark_dirty()
        # Given a refresh that has begun to insert, and one that must delete before that ends
        for phases in ([Phase.UPDATE, Phase.DELETE], list(Phase)):
            refresh = engine.request(SlotRegion, phases=phases, batch_size=1)
            while refresh.pk not in stages(engine.alias()):
                engine.run_batch(due(SlotRegion))
        # When the last key to be inserted goes, and no row names it any more
        Customer.objects.filter(pk=4).update(region=2)
        Order.objects.filter(customer=4).delete()
        inline.run_until_idle([shard_of(SlotRegion).pk])
        # Then it does not stay
        run(SlotRegion)
        assert differences(SlotRegion) == []

    def test_what_another_phase_has_seen_is_not_known_of_rows_that_are_staged(self) -> None:
        at_rest(QuantityTotal)
        QuantityTotal.objects.all().delete()
        QuantityTotal.mark_dirty()
        engine.request(QuantityTotal, phases=[Phase.INSERT], batch_size=1)
        engine.run_batch(due(QuantityTotal))
        Order.objects.filter(quantity=3).delete()
        engine.request(QuantityTotal, phases=[Phase.DELETE])

        inline.run_until_idle([shard_of(QuantityTotal).pk])
        run(QuantityTotal)

        assert differences(QuantityTotal) == []


class TestCommand:
    def test_install_and_remove(self, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("update_materialized_views", triggers="remove")
        assert "removed. Every refresh is full" in capsys.readouterr().out
        assert problems() != []

        call_command("update_materialized_views", triggers="install")

        assert capsys.readouterr().out == "All triggers are installed.\n"
        assert problems() == []

    def test_sql_makes_what_is_lacking_and_install_takes_it_up(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes.remove(engine.alias())
        call_command("update_materialized_views", triggers="sql")
        script = capsys.readouterr().out

        for statement in pieces_of(script):
            execute(statement)

        assert [
            each for each in problems() if "not the ones that matviews recorded" not in each
        ] == []
        with CaptureQueriesContext(connection) as captured:
            changes.install(engine.alias())
        assert not any(each["sql"].startswith("CREATE") for each in captured)
        assert problems() == []
        order(1)
        assert logged(Order)
        call_command("update_materialized_views", triggers="sql")
        assert capsys.readouterr().out == "-- All triggers are installed.\n"

    def test_explain_tells_what_leads_where(self, capsys: pytest.CaptureFixture[str]) -> None:
        changes.drop_before_migrate(engine.alias(), [Region._meta.db_table])

        call_command(
            "update_materialized_views",
            models=["RegionTotal", "TagTotal", "SlotRegion", "Overall"],
            explain=True,
        )

        told = [line for line in capsys.readouterr().out.splitlines() if "change" in line]
        strategy = plan_of(registry.find(Overall), "default").strategy
        assert told == [
            "  changes of shapes_customer (id, region_id): keys, from region_id; logged",
            (
                "  changes of shapes_order (customer_id, id, paid, price, quantity): "
                "keys, from customer_id through shapes_customer; logged"
            ),
            "  changes of shapes_region (id): keys, from id; not logged, so every refresh is full",
            (
                "  changes of shapes_order (id, price, quantity): "
                "keys, from id through shapes_order_tags; logged"
            ),
            "  changes of shapes_order_tags (order_id, tag_id): keys, from tag_id; logged",
            "  changes of shapes_tag (id): keys, from id; logged",
            (
                "  changes of shapes_customer (id, region_id): "
                "keys by name, from region_id through shapes_region; logged"
            ),
            (
                "  changes of shapes_order (customer_id, id, price, quantity, slot): "
                "keys, from slot, customer_id through shapes_customer, shapes_region; logged"
            ),
            (
                "  changes of shapes_region (id, name): "
                "keys by name, from name; not logged, so every refresh is full"
            ),
            (
                f"  every change causes a full refresh: "
                f"{strategy.incremental_obstacle}. {strategy.way_out}"
            ),
            "  changes of shapes_order (id, price, quantity): a full refresh; logged",
        ]

    def test_the_check_tells_of_what_is_missing(self) -> None:
        def found() -> list[str]:
            messages = run_checks(tags=[Tags.database], databases=["default"])
            return [each.msg for each in messages if each.id == "matviews.W011"]

        assert found() == []
        changes.drop_before_migrate(engine.alias(), [Order._meta.db_table])

        table = Order._meta.db_table
        assert found() == [f"The triggers on {table} (read by {readers(table)}) are missing."]

    def test_triggers_of_a_table_that_no_view_reads_are_removed(self) -> None:
        with registry.preserved():
            for each in list(registry):
                registry.unregister(each.label)
            assert any(each.endswith("has triggers, but no view reads it.") for each in problems())

            changes.install(engine.alias())

            assert problems() == []
        assert not TrackedTable.objects.exists()


def pieces_of(script: str) -> list[str]:
    """What a client of the database would run."""
    if connection.vendor == "mysql":
        pieces = (
            script.removeprefix("DELIMITER //\n").removesuffix("DELIMITER ;\n\n").split("\n//\n")
        )
    else:
        pieces = script.split(";\n")
    return [piece for piece in pieces if piece.strip() and "DELIMITER" not in piece]


def reading(rows: QuerySet[Any, Any]) -> dict[str, Any]:
    """What a view of a queryset reads, by table without the app's name."""
    from matviews.queryset.analysis.source_query import SourceQuery

    read = SourceQuery(rows, "default").columns_read()
    names = {Product._meta.db_table: "product"}
    return {
        names.get(table, table.removeprefix("shapes_")): columns for table, columns in read.items()
    }


ORDERS = Order.objects.values("pk")
SUB = Order.objects.filter(customer=OuterRef("pk"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ORDERS, {"order": {"id"}}),
        (Order.objects.filter(paid=True).values("pk"), {"order": {"id", "paid"}}),
        (
            Order.objects.values("customer__name").annotate(n=Sum("price")),
            {"order": {"customer_id", "price"}, "customer": {"id", "name"}},
        ),
        (
            Customer.objects.values("pk").annotate(
                n=Count("order", filter=models.Q(order__note=""))
            ),
            {"customer": {"id"}, "order": {"id", "customer_id", "note"}},
        ),
        (
            Customer.objects.values("pk").annotate(has=Exists(SUB)),
            {"customer": {"id"}, "order": {"customer_id"}},
        ),
        (
            Customer.objects.filter(Exists(SUB.filter(product__price__gt=F("price")))).values("pk"),
            {
                "customer": {"id"},
                "order": {"customer_id", "product_id", "price"},
                "product": {"stock keeping unit", "Größe"},
            },
        ),
        (
            Customer.objects.values("pk").annotate(
                last=Subquery(SUB.order_by("-slot").values("price")[:1])
            ),
            {"customer": {"id"}, "order": {"customer_id", "slot", "price"}},
        ),
        (
            Customer.objects.values("pk").annotate(
                last=Subquery(SUB.order_by("product__name").values("price")[:1])
            ),
            {
                "customer": {"id"},
                "order": {"customer_id", "product_id", "price"},
                "product": {"stock keeping unit", "select"},
            },
        ),
        (
            Order.objects.filter(quantity__in=[F("slot"), 3]).values("pk"),
            {"order": {"id", "quantity", "slot"}},
        ),
        (
            Order.objects.filter(quantity__range=(F("slot"), 3)).values("pk"),
            {"order": {"id", "quantity", "slot"}},
        ),
        (
            Order.objects.filter(customer__in=Customer.objects.filter(active=True)).values("pk"),
            {"order": {"id", "customer_id"}, "customer": {"id", "active"}},
        ),
        (
            Order.objects.order_by("customer__name").values("pk")[:5],
            {"order": {"id", "customer_id"}, "customer": {"id", "name"}},
        ),
        (Order.objects.values("pk")[:5], {"order": {"id", "placed_at"}}),
        (Order.objects.values("pk").distinct("customer"), {"order": None}),
        (
            Customer.objects.values("pk").filter(Exists(SUB.order_by("slot")[:1])),
            {"customer": {"id"}, "order": {"customer_id"}},
        ),
        (
            ORDERS.union(Product.objects.values("sku")),
            {"order": {"id"}, "product": {"stock keeping unit"}},
        ),
        (
            Order.objects.values("pk").annotate(n=Window(RowNumber(), order_by="slot")),
            {"order": {"id", "slot"}},
        ),
        (Order.objects.filter(tags__label="t").values("pk"), {
            "order": {"id"}, "order_tags": {"order_id", "tag_id"}, "tag": {"id", "label"},
        }),
    ],
)  # fmt: skip
def test_the_columns_that_count(rows: QuerySet[Any, Any], expected: dict[str, Any]) -> None:
    assert reading(rows) == expected


@pytest.mark.parametrize(
    ("source", "options", "members", "reason"),
    [
        (lambda: Order.objects.values("quantity", key=F("pk")), {}, {}, ""),
        (
            lambda: Order.objects.values("quantity", key=F("pk")), {"tracking": False}, {},
            "MatviewMeta.tracking is False",
        ),
        (
            lambda: Order.objects.values("quantity", key=F("pk")), {},
            {
                "needs_delete": classmethod(lambda cls: False),
                "do_delete": classmethod(lambda cls: 0),
            },
            "the phase delete has hooks, which may read anything",
        ),
        (
            lambda: Order.objects.filter(placed_at__lt=Now()).values("quantity", key=F("pk")),
            {}, {},
            "the filter of source() changes by itself (Now)",
        ),
        (
            lambda: Order.objects.values(key=F("pk")).annotate(
                quantity=models.Func(function="RANDOM", output_field=models.IntegerField())
            ), {}, {},
            "the column quantity of source() changes by itself (random)",
        ),
    ],
)  # fmt: skip
def test_why_changes_are_not_tracked(
    source: Any, options: dict[str, Any], members: dict[str, Any], reason: str, own_views: None
) -> None:
    from tests.helpers.view_classes import make_view

    view = ready(
        make_view(
            options=options,
            key=models.BigIntegerField(unique=True),
            quantity=models.IntegerField(null=True),
            source=classmethod(lambda cls: source()),
            **members,
        )
    )

    assert tracking_of(plan_of(registry.find(view), engine.alias())).reason == reason


class TestUntracked:
    def test_logs_that_any_row_may_have_changed_and_nothing_else(self) -> None:
        at_rest(CustomerTotal)
        with untracked(Order):
            order(1)
            order(2)
            Product.objects.update(name="b")
            assert logged(Order) == 0

        assert links_of_orders() == [None]
        assert logged(Product) > 0
        assert why(CustomerTotal) == (
            "all rows of shapes_order may have changed, as after TRUNCATE or untracked()"
        )
        assert differences(CustomerTotal) == []
        at_rest(CustomerTotal)

    def test_what_comes_after_it_is_logged(self) -> None:
        with untracked("shapes.Order"), untracked(Order, Product):
            order(1)
        at_rest(CustomerTotal)
        order(2)

        assert logged(Order) == 1
        assert problems() == []

    def test_an_error_takes_it_all_back(self) -> None:
        at_rest(CustomerTotal)
        with suppress(RuntimeError), untracked(Order):
            order(1)
            raise RuntimeError

        assert logged(Order) == 0
        assert CustomerTotal.is_fresh()
        order(1)
        assert logged(Order) == 1

    def test_it_ends_if_the_transaction_is_broken(self) -> None:
        at_rest(CustomerTotal)
        with suppress(DatabaseError), transaction.atomic(), untracked(Order):
            with suppress(DatabaseError), transaction.atomic(savepoint=False):
                Order.objects.raw("SELECT nothing FROM nowhere")[0]
            order(1)  # Django refuses it

        order(1)
        assert logged(Order) == 1

    def test_within_a_transaction(self) -> None:
        at_rest(CustomerTotal)
        with transaction.atomic():
            with suppress(RuntimeError), untracked(Order):
                raise RuntimeError
            order(1)
            with untracked(Order):
                order(2)
            order(3)

        assert [each is None for each in links_of_orders()] == [False, True, False]

    @without_sqlite
    def test_others_are_logged_meanwhile(self) -> None:
        def other() -> None:
            order(2)

        at_rest(CustomerTotal)
        with untracked(Order):
            order(1)
            in_another_connection(other).join()

        assert [each is None for each in links_of_orders()] == [False, True]

    def test_a_model_has_to_be_named(self) -> None:
        with pytest.raises(TypeError, match="Name the models"), untracked():
            pass
        with pytest.raises(LookupError), untracked("shapes.Nothing"):
            pass


class TestDeclared:
    """`MatviewMeta.depends_on`: what the queryset does not tell."""

    @pytest.fixture(autouse=True)
    def _own(self, own_views: None) -> None: ...

    def view(self, source: Any, **depends_on: Any) -> type[Any]:
        view = sourced(
            source, options={"depends_on": {f"shapes.{to}": on for to, on in depends_on.items()}}
        )
        changes.install(engine.alias())
        run(view)
        at_rest(view)
        return view

    def with_open_orders(self) -> QuerySet[Any, Any]:
        """An uncorrelated subquery: its table leads to no key in particular."""
        someone = Order.objects.order_by().filter(paid=False).values("customer")
        return Customer.objects.filter(pk__in=someone).values(key=F("pk"), value=F("region"))

    def keys_scanned(self, view: type[Any]) -> set[int | None]:
        refresh = run(view)
        assert view.verify().equal
        return {
            each.keys_scanned if each.full_refresh_reason == "" else None
            for each in refresh.runs.all()
        }

    def test_nothing_declared_is_the_whole_view(self) -> None:
        view = self.view(self.with_open_orders)
        Order.objects.filter(customer=2).update(paid=True)

        assert why(view) == ("changes of shapes_order cannot be mapped to keys")

    def test_fields_that_are_the_key(self) -> None:
        view = self.view(self.with_open_orders, Order="customer")
        Order.objects.filter(customer=2).update(paid=True)
        assert self.keys_scanned(view) == {1}
        Order.objects.filter(customer=1).update(customer=2)
        assert self.keys_scanned(view) == {2}
        Order.objects.all().delete()
        assert self.keys_scanned(view) == {2}
        assert not view.objects.exists()

    def test_a_callable_is_given_the_rows_that_are_there(self) -> None:
        view = self.view(
            self.with_open_orders, Order=lambda rows: rows.values_list("customer", flat=True)
        )
        new = Customer.objects.create(pk=4, name="4", region_id=1)
        run(view)
        order(new.pk)
        assert self.keys_scanned(view) == {1}
        assert view.objects.filter(key=4).exists()
        Order.objects.filter(customer=4).delete()
        assert self.keys_scanned(view) == {None}
        assert not view.objects.filter(key=4).exists()

    def test_a_callable_that_gives_no_keys_fails_the_refresh(self) -> None:
        view = self.view(self.with_open_orders, Order=lambda rows: ["x"])
        order(1)

        refresh = run(view)

        assert (
            "depends_on of shapes.Order returned an invalid key: 'x' is not a valid key (key)."
            in refresh.error
        )

    def test_explain_tells_that_it_is_declared(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.view(self.with_open_orders, Order="customer")

        call_command("update_materialized_views", models=["Sourced"], explain=True)

        told = capsys.readouterr().out
        assert (
            "shapes_order (any column): keys given by depends_on, from customer_id; logged" in told
        )

    def test_in_a_refresh_of_all_a_view_comes_after_one_that_it_depends_on(self) -> None:
        def view(name: str, **options: Any) -> type[Any]:
            return make_view(
                name, options=options, source=classmethod(lambda cls: staged()),
                key=models.BigIntegerField(unique=True), value=models.IntegerField(),
            )  # fmt: skip

        latter = view("Latter")
        former = view("Former", depends_on={latter: None})
        for each in (former, latter):
            ready(each)

        labels = engine.views_to_refresh()

        assert labels.index("sample.Latter") < labels.index("sample.Former")

    def test_none_is_the_whole_view(self) -> None:
        def source() -> QuerySet[Any, Any]:
            return Customer.objects.values(key=F("pk"), value=F("region"))

        view = self.view(source, Tag=None)
        Tag.objects.update(label="other")

        assert why(view) == "changes of shapes_tag cannot be mapped to keys"

    def test_tables_that_raw_sql_reads(self) -> None:
        """And any column of those that the queryset reads itself."""
        quote = connection.ops.quote_name
        dearest = RawSQL(
            f"slot * (SELECT COUNT(*) FROM {quote(Tag._meta.db_table)})", [], models.IntegerField()
        )
        Order.objects.update(slot=1)
        view = self.view(lambda: Order.objects.values(key=F("pk"), value=dearest), Tag=None)
        assert view.is_fresh()
        Order.objects.update(slot=3)
        assert not view.is_fresh()
        assert self.keys_scanned(view) == {None}
        Tag.objects.create(pk=2, label="second")
        assert self.keys_scanned(view) == {None}
        assert set(view.objects.values_list("value", flat=True)) == {6}
        assert view.is_fresh()


class TestWhatAPersonSees:
    def listed(self, capsys: pytest.CaptureFixture[str]) -> Any:
        call_command(
            "update_materialized_views", "--list", "--models", "CustomerTotal", "--format", "json"
        )
        views = json.loads(capsys.readouterr().out)["views"]
        return next(each for each in views if each["view"] == "shapes.CustomerTotal")

    def test_the_command_says_that_nothing_has_changed(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        at_rest(CustomerTotal)

        for where in ([], ["--enqueue"]):
            call_command("update_materialized_views", "--models", "shapes.CustomerTotal", *where)

        assert capsys.readouterr().out == 2 * "shapes.CustomerTotal: nothing has changed\n"

    def test_the_oldest_change_is_told_until_it_is_applied(
        self, capsys: pytest.CaptureFixture[str], admin_client: Client
    ) -> None:
        """Wherever it is: in the log, the queue, or among what one phase has yet to do."""
        page = reverse("admin:matviews_viewcontrol_changelist")
        at_rest(CustomerTotal)
        assert self.listed(capsys)["change_lag"] is None
        begun = time.monotonic()
        order(1)
        time.sleep(0.3)
        ages = [self.listed(capsys)["change_lag"]]
        engine.move_log()
        ages.append(self.listed(capsys)["change_lag"])
        run(CustomerTotal, phases=[Phase.INSERT])
        order(2)
        ages.append(self.listed(capsys)["change_lag"])
        assert NOTHING_PENDING not in admin_client.get(page).content.decode()
        taken = time.monotonic() - begun
        run(CustomerTotal)

        assert self.listed(capsys)["change_lag"] is None
        assert 0.2 < ages[0] <= ages[1] <= ages[2] < taken + CLOCKS_DIFFER

    def test_the_oldest_change_of_a_full_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        at_rest(CustomerTotal)
        order(1)
        time.sleep(0.3)
        CustomerTotal.mark_dirty()
        run(CustomerTotal, phases=[Phase.INSERT, Phase.DELETE])

        assert self.listed(capsys)["change_lag"] > 0.2
        run(CustomerTotal, phases=[Phase.UPDATE])
        assert self.listed(capsys)["change_lag"] is None

    def test_the_page_of_a_refresh_tells_why_it_looked_at_all_keys(
        self, admin_client: Client, capsys: pytest.CaptureFixture[str]
    ) -> None:
        at_rest(CustomerTotal)
        CustomerTotal.mark_dirty()
        command = ["update_materialized_views", "--models", "shapes.CustomerTotal"]
        call_command(*command, "--format", "json")
        refresh = Refresh.objects.latest("pk")
        page = reverse("admin:matviews_refresh_change", args=[refresh.pk])

        [entry] = json.loads(capsys.readouterr().out)["views"]
        assert {each["full_refresh_reason"] for each in entry["phases"]} == {
            "all keys were marked as dirty"
        }
        assert admin_client.get(page).content.decode().count("all keys were marked as dirty") == 3

    def test_the_page_of_a_refresh_for_which_nothing_had_changed(
        self, admin_client: Client
    ) -> None:
        at_rest(CustomerTotal)
        page = reverse("admin:matviews_refresh_change", args=[CustomerTotal.refresh().pk])

        assert "Nothing had changed since" in admin_client.get(page).content.decode()
