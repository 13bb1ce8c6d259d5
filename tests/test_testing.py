"""`matviews.testing` in a project's tests: within `TestCase` and `django_db`, and without."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import TestCase

from matviews import changes, engine, testing
from matviews.exceptions import InvalidRequest, RefreshFailed, UnknownView
from matviews.models import Refresh, ViewControl
from matviews.pytest_plugin import refresh_views as refresh_views_fixture
from matviews.states import RefreshState
from matviews.testing import refresh_views
from tests.helpers import tables
from tests.sample.models import Fault, Item, Limited
from tests.shapes.models import Customer, CustomerTotal, Order, QuantityTotal, ViewOfView

pytestmark = pytest.mark.database


@pytest.fixture(scope="module", autouse=True)
def _tracked(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Triggers, as a project's test database has them; made before the transaction of any test."""
    with django_db_blocker.unblock():
        changes.install(engine.alias())
    yield
    with django_db_blocker.unblock():
        changes.remove(engine.alias())


def order(customer: Customer, quantity: int = 1) -> None:
    Order.objects.create(customer=customer, quantity=quantity, price=1, paid=True)


class InATestCase(TestCase):
    ann: Customer

    @classmethod
    def setUpTestData(cls) -> None:
        cls.ann = Customer.objects.create(name="Ann")
        order(cls.ann)
        refresh_views(CustomerTotal)

    def orders_of_ann(self) -> int:
        return CustomerTotal.objects.get(customer=self.ann).orders

    def test_a_view_follows_what_the_test_writes(self) -> None:
        assert self.orders_of_ann() == 1
        for orders in (2, 3):
            order(self.ann)
            (refresh,) = refresh_views(CustomerTotal)
            assert refresh.state == RefreshState.SUCCEEDED
            assert self.orders_of_ann() == orders
        Order.objects.all().delete()
        refresh_views(CustomerTotal)
        assert not CustomerTotal.objects.exists()

    def test_a_tracked_view_looks_at_what_has_changed_alone(self) -> None:
        order(Customer.objects.create(name="Bob"))
        (refresh,) = refresh_views(CustomerTotal)
        assert [run.dirty_after is not None for run in refresh.runs.all()] == [True, True, True]
        assert CustomerTotal.objects.count() == 2

    def test_a_view_comes_after_those_that_it_reads_however_they_are_named(self) -> None:
        order(self.ann)
        done = refresh_views(ViewOfView, "shapes.CustomerTotal", ViewOfView)
        assert [each.view.label for each in done] == ["shapes.CustomerTotal", "shapes.ViewOfView"]
        assert self.orders_of_ann() == 2

    def test_a_staged_view_can_be_refreshed_again_and_again(self) -> None:
        for quantity in (3, 4, 5):
            order(self.ann, quantity)
            QuantityTotal.mark_dirty()
            refresh_views(QuantityTotal)
            assert QuantityTotal.objects.filter(quantity=quantity).exists()

    def test_without_names_it_refreshes_what_the_command_would(self) -> None:
        Item.objects.create(value=1)
        done = refresh_views()
        assert {each.view.label for each in done} == set(engine.views_to_refresh())
        assert Limited.objects.count() == 1

    def test_a_failure_raises_with_the_views_own_error_and_leaves_the_test_usable(self) -> None:
        Fault.objects.create(view="Limited", hook="do_insert", action="raise")
        Item.objects.create(value=1)
        with pytest.raises(
            RefreshFailed, match=r"sample\.Limited: insert: .*told to fail"
        ) as raised:
            refresh_views(Limited)
        assert any("do_insert" in note for note in raised.value.__notes__)
        Fault.objects.all().delete()
        refresh_views(Limited)
        assert Limited.objects.count() == 1

    def test_a_paused_view_is_no_success(self) -> None:
        ViewControl.objects.filter(label="sample.Limited").update(paused=True)
        with pytest.raises(RefreshFailed, match=r"sample\.Limited: it is paused"):
            refresh_views(Limited)

    def test_a_disabled_view_is_refused_and_is_not_called_paused(self) -> None:
        refresh = Refresh(view=ViewControl(label="sample.Limited", enabled=False))
        assert testing._why_open(refresh) == "it is disabled"
        refresh.view.enabled = True
        assert testing._why_open(refresh) == "it waits: it has failed"

    def test_what_is_no_view_is_refused_before_anything_is_done(self) -> None:
        before = Refresh.objects.count()
        with pytest.raises(UnknownView, match="Customer is not a view"):
            refresh_views(CustomerTotal, Customer)
        assert Refresh.objects.count() == before

    def test_a_transaction_of_the_tests_own_is_refused_in_a_sentence(self) -> None:
        with (
            transaction.atomic(),
            pytest.raises(InvalidRequest, match="cannot run inside a transaction"),
        ):
            refresh_views(Limited)

    def test_refresh_says_that_nothing_will_come_of_it(self) -> None:
        with self.assertWarnsRegex(
            RuntimeWarning, r"sample\.Limited .*matviews\.testing\.refresh_views"
        ):
            Limited.refresh()

    def test_requests_that_wait_do_not_stand_in_the_way(self) -> None:
        Item.objects.create(value=1)
        for _request in range(3):
            Limited.refresh()
        (refresh,) = refresh_views(Limited)
        assert refresh.finished_at is not None
        assert Limited.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_requests_that_wait_are_done_with_it_where_transactions_are_real(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.sync_controls()
    monkeypatch.setattr("matviews.tasks.send", lambda messages: True)
    Item.objects.create(value=1)
    for _request in range(3):
        Limited.refresh()
    (refresh,) = refresh_views(Limited)
    assert refresh.finished_at is not None
    assert Limited.objects.count() == 1


@pytest.mark.django_db
def test_it_works_in_a_test_of_pytest_django() -> None:
    order(Customer.objects.create(name="Ann"), quantity=7)
    refresh_views(CustomerTotal, QuantityTotal)
    assert CustomerTotal.objects.get().orders == 1
    assert QuantityTotal.objects.get().quantity == 7


@pytest.mark.django_db(transaction=True)
def test_it_works_where_transactions_are_real_and_after_the_tables_were_flushed() -> None:
    ViewControl.objects.all().delete()
    order(Customer.objects.create(name="Ann"), quantity=7)
    refresh_views(CustomerTotal, QuantityTotal)
    assert CustomerTotal.objects.get().orders == 1
    assert QuantityTotal.objects.get().quantity == 7
    assert not connection.in_atomic_block


@pytest.mark.django_db
def test_staging_tables_that_earlier_tests_have_left_are_gone(
    left_behind: str,
) -> None:
    refresh_views(Limited)
    assert left_behind not in connection.introspection.table_names()


@pytest.fixture(scope="module")
def left_behind(django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """A staging table whose refresh was rolled back: MariaDB does not roll it back with it."""
    name = "matviews_stage_2000000"  # no refresh has this number
    with django_db_blocker.unblock():
        tables.execute(f"CREATE TABLE {name} (id integer)")
    yield name
    with django_db_blocker.unblock():
        tables.execute(f"DROP TABLE IF EXISTS {name}")


refresh_views_of_plugin = refresh_views_fixture


def test_the_fixture_gives_the_function_and_the_database(refresh_views_of_plugin: Any) -> None:
    Item.objects.create(value=1)
    refresh_views_of_plugin(Limited)
    assert Limited.objects.count() == 1


# The command in a transaction


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, {"verify": True, "repair": True}])
def test_the_command_in_a_transaction_says_what_to_do(options: dict[str, Any]) -> None:
    Item.objects.create(value=1)
    with transaction.atomic(), pytest.raises(CommandError, match="atomic = False") as raised:
        call_command("update_materialized_views", verbosity=0, **options)
    assert raised.value.returncode == 2
    assert not Refresh.objects.exists()


@pytest.mark.only_on("mariadb", reason="elsewhere triggers are transactional")
@pytest.mark.django_db(transaction=True)
def test_triggers_are_not_made_in_a_transaction_that_they_would_commit() -> None:
    changes.remove(engine.alias())
    with (
        transaction.atomic(),
        pytest.raises(CommandError, match=r"Call .* outside transaction.atomic\(\)") as raised,
    ):
        call_command("update_materialized_views", triggers="install", verbosity=0)
    assert raised.value.returncode == 2
    assert "--triggers sql" not in str(raised.value)
    changes.install(engine.alias())  # as the module has them


@pytest.mark.django_db(transaction=True)
def test_the_command_leaves_work_to_workers_once_the_transaction_has_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.sync_controls()
    sent: list[int] = []
    monkeypatch.setattr("matviews.tasks.dispatch", sent.append)  # as dispatch_on_commit calls it
    with transaction.atomic():
        call_command("update_materialized_views", models=["Limited"], enqueue=True, verbosity=0)
        assert not sent
    assert sent == [ViewControl.objects.get(label="sample.Limited").pk]
