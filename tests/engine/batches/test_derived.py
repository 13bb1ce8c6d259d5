"""What the engine keeps for phases that are derived from `source()`: what they may leave out, where
they start from scratch, what they leave behind.
"""

import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import connection, transaction
from django.db.models import Count
from django.test.utils import CaptureQueriesContext

from matviews import engine, tasks
from matviews.exceptions import InvalidRequest, ViewBusy
from matviews.models import PhaseRun, Refresh, ViewControl
from matviews.phases import Phase
from matviews.queryset import fill_stage, plan_of, stage_name, stages
from matviews.queryset import plan as plan_module
from matviews.registry import registry
from matviews.states import RefreshState, RunState, ViewState
from matviews.tasks import inline
from tests.helpers.engine import due, let_time_pass, shard_of, without_sqlite
from tests.helpers.view_classes import ready, run
from tests.shapes.models import Customer, Order, Product, grouped
from tests.shapes.models.base import Measured
from tests.shapes.query import Query

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

CustomerTotal, QuantityTotal = grouped.CustomerTotal, grouped.QuantityTotal
BOTH = pytest.mark.parametrize("view", [CustomerTotal, QuantityTotal], ids=["windowed", "staged"])


@pytest.fixture(autouse=True)
def _ready() -> Iterator[None]:
    engine.sync_controls()
    yield
    CustomerTotal.query = QuantityTotal.query = Query()
    engine.sweep_stages()


def order(customer: int, **values: Any) -> None:
    sku = Product.objects.get()
    Order.objects.create(customer_id=customer, product=sku, price=1, paid=False, **values)


def fill(keys: int = 6) -> None:
    """An order of each of so many customers, each of another quantity."""
    Product.objects.create(sku="a", name="a")
    for number in range(1, keys + 1):
        Customer.objects.create(pk=number, name=str(number))
        order(number, quantity=number)


def step(view: type[Any]) -> engine.BatchReport:
    """One batch of a view."""
    return engine.run_batch(due(view))


def work_off(view: type[Any]) -> None:
    inline.run_until_idle([shard_of(view).pk])


def rows_of(refresh: Refresh) -> dict[str, int]:
    refresh.refresh_from_db()
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    runs = refresh.runs.select_related("merged_into")
    return {run.phase: (run.merged_into or run).rows for run in runs}


def prices(view: type[Any]) -> set[Any]:
    return set(view.objects.values_list("money", flat=True))


def forget_how_many_keys() -> None:
    """On PostgreSQL, a refresh of few keys would be one statement."""
    Refresh.objects.all().delete()


class TestWhatHasJustBeenInserted:
    @BOTH
    def test_is_not_looked_through_again(self, view: type[Any]) -> None:
        fill()

        first = run(view, batch_size=2)

        assert rows_of(first) == {Phase.INSERT: 6, Phase.UPDATE: 0, Phase.DELETE: 0}
        batches = {each.phase: each.batches for each in first.runs.all()}
        assert batches[Phase.INSERT] > 1
        assert batches[Phase.UPDATE] == batches[Phase.DELETE] == 1

    @BOTH
    def test_is_looked_through_for_a_request_that_came_after_it(self, view: type[Any]) -> None:
        # Given a refresh that has inserted everything, and whose update has yet to begin
        fill()
        first = engine.request(view)
        while not first.runs.filter(phase=Phase.INSERT, state=RunState.SUCCEEDED).exists():
            step(view)
        assert prices(view) == {1}
        # When the source changes, and another refresh is asked for
        Order.objects.update(price=2)
        second = engine.request(view)
        work_off(view)
        # Then that one writes it, whatever the first had to leave out
        assert rows_of(second)[Phase.UPDATE] == 6
        assert prices(view) == {2}

    def test_is_left_out_where_the_rest_is_looked_through(self) -> None:
        # Given a view with the first keys, of which one row is wrong, and one too many
        fill()
        Order.objects.filter(quantity__gt=2).delete()
        run(CustomerTotal)
        forget_how_many_keys()
        Order.objects.filter(customer=1).update(price=7)
        Order.objects.filter(customer=2).delete()
        for number in (3, 4, 5, 6):
            order(number)
        # When a refresh inserts the others in windows of their own
        refresh = run(CustomerTotal, batch_size=2)
        # Then it also mends the first ones, and has left out the windows that it filled
        assert rows_of(refresh) == {Phase.INSERT: 4, Phase.UPDATE: 1, Phase.DELETE: 1}
        insert = refresh.runs.get(phase=Phase.INSERT)
        assert insert.inserted_ranges == [[[3], None]]
        assert refresh.runs.get(phase=Phase.UPDATE).keys_scanned == 3
        assert CustomerTotal.verify().equal


class TestAnotherDefinition:
    def changed(self, view: type[Any]) -> None:
        view.query = Query(money=3)  # price times quantity
        plan_module._fingerprint_of.cache_clear()

    def wanted(self) -> dict[int, Any]:
        return {number: number for number in range(1, 7)}

    @BOTH
    def test_starts_a_run_from_scratch(self, view: type[Any]) -> None:
        # Given a view whose rows are being updated, window by window
        fill()
        run(view)
        Order.objects.update(price=1)
        refresh = engine.request(view, phases=[Phase.UPDATE], batch_size=2)
        step(view)
        # When the code changes under it
        self.changed(view)
        work_off(view)
        # Then the windows that were done before are done again
        assert rows_of(refresh)[Phase.UPDATE] == 5
        assert sorted(view.objects.values_list("money", flat=True)) == [1, 2, 3, 4, 5, 6]
        assert refresh.runs.get().restarts == 1

    def test_that_changes_with_each_batch_fails(self) -> None:
        fill()
        refresh = engine.request(CustomerTotal, batch_size=1)
        for money in range(40):
            CustomerTotal.query = Query(money=money)
            refresh.refresh_from_db()
            if refresh.state != RefreshState.OPEN:
                break
            step(CustomerTotal)
            engine.close_finished(shard_of(CustomerTotal).pk)

        assert refresh.state == RefreshState.FAILED
        assert "the same query in every process" in refresh.error

    @BOTH
    @pytest.mark.usefixtures("tracked")
    def test_is_shown_until_each_phase_has_succeeded_with_it(self, view: type[Any]) -> None:
        def state() -> ViewState:
            [status] = engine.view_statuses([view._meta.label])
            return status.state

        fill()
        run(view)
        assert state() == ViewState.NO_TARGET
        self.changed(view)
        assert state() == ViewState.CHANGED
        run(view, phases=[Phase.INSERT, Phase.DELETE])
        assert state() == ViewState.CHANGED
        run(view, phases=[Phase.UPDATE])
        assert state() == ViewState.NO_TARGET


class TestStages:
    def test_are_dropped_at_the_end(self) -> None:
        fill()
        refresh = engine.request(QuantityTotal, batch_size=2)
        step(QuantityTotal)
        assert stages("default") == {refresh.pk: stage_name(refresh.pk)}
        work_off(QuantityTotal)
        assert rows_of(refresh)[Phase.INSERT] == 6
        assert stages("default") == {}

    def test_hold_one_moment_for_all_windows(self) -> None:
        fill()
        refresh = engine.request(QuantityTotal, batch_size=2)
        step(QuantityTotal)
        Order.objects.all().delete()
        work_off(QuantityTotal)
        assert QuantityTotal.objects.count() == 6
        assert rows_of(refresh)[Phase.DELETE] == 0

    @pytest.mark.parametrize("pinned", [None, 2])
    @pytest.mark.parametrize("phases", [tuple(Phase), (Phase.UPDATE, Phase.DELETE)])
    def test_of_an_older_refresh_undo_nothing_of_a_newer_one(
        self, phases: tuple[Phase, ...], pinned: int | None
    ) -> None:
        # Given a refresh that has read the source and goes on, window by window
        fill(12)
        run(QuantityTotal)
        Order.objects.update(price=2)
        first = engine.request(QuantityTotal, phases=phases, batch_size=2)
        while not first.runs.filter(phase=Phase.UPDATE, batches__gt=0).exists():
            step(QuantityTotal)
        # When rows are added, and another refresh is requested
        for number in range(13, 25):
            order(1, quantity=number)
        second = engine.request(QuantityTotal, batch_size=pinned)
        work_off(QuantityTotal)
        # Then they are there when both have ended
        assert rows_of(first)[Phase.DELETE] == 0
        assert rows_of(second)[Phase.INSERT] == 12
        assert QuantityTotal.verify().equal

    def test_keep_refreshes_waiting_that_have_not_begun(self) -> None:
        # Given a staged refresh, and another that is requested meanwhile
        fill()
        first = engine.request(QuantityTotal, phases=[Phase.INSERT], batch_size=2)
        step(QuantityTotal)
        second = engine.request(QuantityTotal, phases=[Phase.DELETE], batch_size=2)
        # When the first one goes on
        while first.runs.filter(state__in=(RunState.PENDING, RunState.RUNNING)).exists():
            assert not second.runs.filter(batches__gt=0).exists()
            assert set(stages("default")) == {first.pk}
            step(QuantityTotal)
        # Then the second one follows
        work_off(QuantityTotal)
        assert rows_of(second) == {Phase.DELETE: 0}

    def test_of_killed_workers_are_swept(self) -> None:
        fill()
        plan = plan_of(registry.find(QuantityTotal), "default")
        with transaction.atomic():
            fill_stage(stage_name(10**6), plan.source, plan.dialect)
        open_refresh = engine.request(QuantityTotal, batch_size=2)
        step(QuantityTotal)
        assert set(stages("default")) == {10**6, open_refresh.pk}

        tasks.maintain()

        assert set(stages("default")) == {open_refresh.pk}
        work_off(QuantityTotal)

    def test_of_a_stopped_refresh_are_dropped(self) -> None:
        fill()
        refresh = engine.request(QuantityTotal, batch_size=2)
        step(QuantityTotal)
        assert engine.request_stop(refresh.pk)
        engine.close_finished(shard_of(QuantityTotal).pk)
        assert stages("default") == {}

    def test_are_recreated_after_a_batch_that_was_rolled_back(self) -> None:
        fill()
        refresh = engine.request(QuantityTotal)
        with mock.patch("matviews.queryset.Plan.batch_runner", side_effect=MemoryError):
            step(QuantityTotal)
        let_time_pass()
        work_off(QuantityTotal)
        assert rows_of(refresh)[Phase.INSERT] == 6

    def test_are_not_taken_over_from_another_definition(self) -> None:
        """Two versions of the code are at work in one refresh, as while a new one is rolled out."""

        def batches_of(phase: Phase) -> None:
            while (message := due(QuantityTotal)).phase is phase:
                engine.run_batch(message)

        fill()
        run(QuantityTotal)
        forget_how_many_keys()
        refresh = engine.request(QuantityTotal, batch_size=100)
        batches_of(Phase.INSERT)
        # When another version, for which the source is empty, does the update
        QuantityTotal.query = Query(rows=1)
        batches_of(Phase.UPDATE)
        # Then the first does not take that one's table for its own
        QuantityTotal.query = Query()
        work_off(QuantityTotal)
        assert rows_of(refresh)[Phase.DELETE] == 0
        assert QuantityTotal.objects.count() == 6

    @pytest.mark.parametrize("built", [False, True])
    def test_two_rows_with_one_key_fail_with_the_way_out(self, *, built: bool) -> None:
        fill()
        Order.objects.update(quantity=1)
        if built:
            run(QuantityTotal)
        by_order = Order.objects.values("quantity", "pk").annotate(orders=Count("pk"))
        with mock.patch.object(
            QuantityTotal, "source", return_value=by_order.values("quantity", "orders")
        ):
            refresh = run(QuantityTotal)
        assert refresh.state == RefreshState.FAILED
        assert "Two rows of source() have the same key (quantity)" in refresh.error
        assert QuantityTotal.objects.count() == built


class TestOwnHooks:
    def test_win_phase_by_phase(self) -> None:
        class Picky(Measured):
            customer = CustomerTotal._meta.get_field("customer").clone()
            deleted: list[int] = []

            class Meta:
                app_label = "shapes"
                db_table = CustomerTotal._meta.db_table
                managed = False

            @classmethod
            def source(cls) -> Any:
                return CustomerTotal.source()

            @classmethod
            def needs_delete(cls) -> bool:
                return not cls.deleted

            @classmethod
            def do_delete(cls, limit: int) -> int:
                cls.deleted.append(limit)
                return 0

        with registry.preserved():
            ready(Picky)
            assert registry.find(Picky).derived == {Phase.INSERT, Phase.UPDATE}
            fill()
            refresh = run(Picky)
            Order.objects.all().delete()
            run(Picky, phases=[Phase.DELETE])

        assert rows_of(refresh)[Phase.INSERT] == 6
        assert Picky.deleted
        assert CustomerTotal.objects.count() == 6


class TestVerify:
    @BOTH
    def test_tells_what_differs_and_mends_only_that(self, view: type[Any]) -> None:
        # Given a view with a row too few, one with another value, one too many
        fill()
        run(view)
        assert view.verify().equal
        first, second, *_others = view.objects.order_by("pk")
        first.delete()
        view.objects.filter(pk=second.pk).update(money=99)
        name = "quantity" if view is QuantityTotal else "customer_id"
        view.objects.create(**{name: 77}, orders=1)

        found = view.verify()

        assert (found.missing, found.differing, found.surplus) == (1, 1, 1)
        by_kind = {each.kind.value: each for each in found.examples}
        assert by_kind["missing"].in_view is None
        assert (by_kind["differing"].in_view or {})["money"] == 99
        assert (by_kind["differing"].in_source or {})["money"] == 1
        assert 77 in by_kind["surplus"].key.values()
        assert by_kind["surplus"].in_source is None
        # When it is repaired
        mended = view.verify(repair=True)
        # Then three rows are written
        assert mended.repaired == 3
        assert view.verify().equal
        noted: Any = ViewControl.objects.get(label=view._meta.label).verification
        assert (noted["rows_compared"], noted["missing"], noted["repaired"]) == (6, 0, None)

    def test_looks_at_the_whole_of_view_and_source_in_ranges(self) -> None:
        fill()
        CustomerTotal.objects.bulk_create(
            CustomerTotal(customer_id=number, orders=1) for number in (-5, -4, -3, 90, 91, 92)
        )
        with mock.patch("matviews.engine.verification.key_parts.KEYS_PER_RANGE", 2):
            found = CustomerTotal.verify()
        assert (found.missing, found.surplus, found.rows_compared) == (6, 6, 6)

    def test_samples(self) -> None:
        fill()
        run(CustomerTotal)
        found = CustomerTotal.verify(sample=3)
        assert found.equal
        assert 0 < found.rows_compared <= 6
        with pytest.raises(InvalidRequest, match="Verify it without a sample"):
            QuantityTotal.verify(sample=3)
        with pytest.raises(InvalidRequest, match="at least 1"):
            CustomerTotal.verify(sample=0)

    @without_sqlite
    def test_does_not_mend_while_a_batch_runs(self) -> None:
        fill()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic():
                list(type(shard).objects.select_for_update().filter(pk=shard.pk))
                held.set()
                done.wait(30)
            connection.close()

        shard = shard_of(CustomerTotal)
        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(10)
            with (
                mock.patch("matviews.engine.verification.key_parts.REPAIR_TIMEOUT", 0.2),
                pytest.raises(ViewBusy, match="Pause it, or try again"),
            ):
                CustomerTotal.verify(repair=True)
        finally:
            done.set()
            thread.join()


@BOTH
@without_sqlite
def test_a_batch_blocks_no_writer_of_the_source(view: type[Any]) -> None:
    """Were the batch's source rows locked, the writer would wait until its lock times out."""
    fill()
    run(view)
    Order.objects.filter(quantity__lte=3).update(price=5)
    Order.objects.filter(quantity=6).delete()
    Customer.objects.create(pk=7, name="7")
    order(7, quantity=66)
    blocked: list[BaseException] = []

    def write() -> None:
        try:
            with connection.cursor() as cursor:
                if connection.vendor == "mysql":
                    cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")
                else:
                    cursor.execute("SET lock_timeout = '2s'")
            Order.objects.update(note="changed")
            Order.objects.filter(quantity=2).delete()
        except BaseException as error:  # noqa: BLE001 - told by the test
            blocked.append(error)
        finally:
            connection.close()

    plan = plan_of(registry.find(view), "default")
    stage = stage_name(10**6) if plan.strategy.staged else ""
    with engine.transactions.batch_transaction(30):
        if stage:
            fill_stage(stage, plan.source, plan.dialect)
        statements = plan.statements(stage)
        everything = (None, None)
        assert statements.run(*statements.delete(everything)) == 1
        assert statements.run(statements.update(everything)) > 0
        assert statements.run(statements.insert(everything, empty=False)) == 1
        writer = threading.Thread(target=write)
        writer.start()
        writer.join(20)
    assert not blocked


def test_asking_is_exact_without_doing_anything() -> None:
    fill()
    assert not CustomerTotal.is_fresh()
    run(CustomerTotal)
    with CaptureQueriesContext(connection) as queries:
        assert CustomerTotal.is_fresh()
    assert not any(query["sql"].startswith(("INSERT", "UPDATE", "DELETE")) for query in queries)
    Order.objects.filter(customer=3).update(price=9)
    assert CustomerTotal.is_fresh(phases=[Phase.INSERT, Phase.DELETE])
    assert not CustomerTotal.is_fresh(phases=[Phase.UPDATE])
    assert PhaseRun.objects.filter(state=RunState.SUCCEEDED).count() == 3


@BOTH
def test_a_run_that_takes_over_from_a_stopped_one_covers_only_what_it_can(view: type[Any]) -> None:
    # Given an update that fails for now, and a whole refresh whose update is merged into it
    fill()
    first = engine.request(view, phases=[Phase.UPDATE])
    engine.request(view)
    too_long = mock.patch("matviews.engine.batches.step.do_derived", side_effect=MemoryError)
    with too_long:
        step(view)
    step(view)
    assert prices(view) == {1}
    # And a change after the whole one has inserted, with a request for it
    Order.objects.update(price=2)
    last = engine.request(view, phases=[Phase.UPDATE])
    # When the failing one is stopped
    assert engine.request_stop(first.pk)
    engine.close_finished(shard_of(view).pk)
    work_off(view)
    # Then the last one has not been covered by a run that may leave out what was inserted
    last.refresh_from_db()
    assert last.state == RefreshState.SUCCEEDED
    assert prices(view) == {2}


@pytest.mark.only_on("sqlite", "mariadb", reason="on PostgreSQL it is a setting of superusers")
def test_a_key_whose_row_is_missing_where_it_points_to_is_inserted() -> None:
    fill()
    run(CustomerTotal)
    with connection.constraint_checks_disabled():
        order(77, quantity=1)
    try:
        refresh = run(CustomerTotal)
        assert rows_of(refresh)[Phase.INSERT] == 1
        assert CustomerTotal.verify().equal
    finally:
        Order.objects.filter(customer=77).delete()
