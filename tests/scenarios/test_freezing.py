"""Workers frozen between two statements of a transaction: what they hold is freed for others."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from matviews import engine
from matviews.changes.change_log import FEW_ENTRIES
from matviews.models import Refresh, ViewChange, ViewControl
from tests.helpers.engine import due, let_time_pass, shard_of
from tests.helpers.freezing import VARIABLE, Freezer
from tests.helpers.ledger import fault
from tests.helpers.processes import DEADLINE, Workers
from tests.helpers.view_classes import run
from tests.sample.models import Item, Limited
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal, RegionTotal
from tests.shapes.oracle import differences

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no server that could let go"),
]

LIMIT = 1.0  # seconds


class Transaction(NamedTuple):
    """A kind of transaction of ours.

    Attributes:
        function: whose it is.
        cause: has a worker come to it.
        statements: how many statements it may have, with the COMMIT.
    """

    function: str
    cause: Callable[[Workers], object]
    statements: int


def change_orders(_workers: Workers) -> None:
    """So many that the log is not moved by one statement."""
    for _entry in range(FEW_ENTRIES + 1):
        order(1)
    CustomerTotal.refresh()


def ask_when_nothing_has_changed(workers: Workers) -> None:
    workers.send_by_name("matviews.refresh", CustomerTotal._meta.label)


def fail(_workers: Workers) -> None:
    Item.objects.create(value=1)
    Limited.refresh()


def stop(workers: Workers) -> None:
    Item.objects.bulk_create(Item(value=number) for number in range(3))
    refresh = engine.request(Limited, batch_size=1)
    engine.run_batch(due(Limited))
    engine.request_stop(refresh.pk)
    let_time_pass()
    workers.send_by_name("matviews.maintain")


def age(workers: Workers) -> None:
    run(Limited)  # the last one of a view is kept
    Refresh.objects.update(finished_at=timezone.now() - timedelta(days=400))
    workers.send_by_name("matviews.maintain")


def change_shards(workers: Workers) -> None:
    shards = ViewControl.objects.filter(label="sample.Sharded")
    shards.update(shard_count=5 - shards.get().shard_count)
    workers.send_by_name("matviews.maintain")


def fill_a_queue(workers: Workers) -> None:
    ViewChange.objects.create(view_id=shard_of(CustomerTotal).view_id, count=1_000_000)
    workers.send_by_name("matviews.maintain")


def lose_periodic_tasks(workers: Workers) -> None:
    PeriodicTask.objects.all().delete()
    workers.send_by_name("matviews.maintain")


TRANSACTIONS = [
    Transaction("move_log", change_orders, 4),
    Transaction("_Attempt.run", change_orders, 20),
    Transaction("_save_closed", change_orders, 5),
    Transaction("_record_as_done", ask_when_nothing_has_changed, 3),
    Transaction("_Attempt.record_failure", fail, 7),
    Transaction("_stop", stop, 7),
    Transaction("_delete", age, 5),
    Transaction("_sync_shards", change_shards, 6),
    Transaction("collapse_long_queues", fill_a_queue, 4),
    Transaction("reconcile", lose_periodic_tasks, 8),
]


def order(number: int) -> None:
    Order.objects.create(
        customer_id=number, product_id="a", slot=number, price=1, paid=False, status="new", note=""
    )


@pytest.fixture(autouse=True)
def _shop(tracked: None, settings: Any) -> None:
    settings.MATVIEWS = {"LEASE": LIMIT, "STATEMENT_TIMEOUT": LIMIT}
    Region.objects.create(pk=1, name="1")
    Product.objects.create(sku="a", name="a", price=2)
    for number in (1, 2):
        Customer.objects.create(pk=number, name=str(number), region_id=1)
        order(number)
    for view in (CustomerTotal, RegionTotal, Limited):
        run(view)


@pytest.fixture
def freezer(redis_environment: dict[str, str], tmp_path: Path) -> Freezer:
    path = tmp_path / "orders"
    redis_environment[VARIABLE] = str(path)
    return Freezer(path)


@contextmanager
def frozen(
    workers: Workers, freezer: Freezer, transaction: Transaction, statement: int, seconds: float
) -> Iterator[bool]:
    """One worker is frozen until the end; false if none came to such a statement in time."""
    freezer.order(transaction.function, statement)
    fails = fault(Limited, "do_insert", "raise") if transaction.cause is fail else nullcontext()
    with fails, suppress(AssertionError):
        transaction.cause(workers)
        workers.wait_for(lambda: freezer.frozen, seconds=seconds)
    freezer.withdraw()
    process = freezer.frozen
    try:
        if process:
            workers.wait_for(lambda: any(w.pid == process and w.stopped for w in workers.all))
        yield process is not None
    finally:
        if process:
            os.kill(process, signal.SIGCONT)


def hold(
    workers: Workers,
    freezer: Freezer,
    transaction: Transaction,
    statement: int,
    within: float = DEADLINE,
) -> bool:
    """Freeze a worker there; the others bring all views up to date, and then it goes on.

    False if no worker came there: there are not so many statements.
    """
    with frozen(workers, freezer, transaction, statement, within) as is_frozen:
        if is_frozen:
            order(2)
            Item.objects.create(value=2)
            for view in (CustomerTotal, RegionTotal, Limited):
                engine.request(view)
            seconds = workers.wait_until_quiet(meanwhile=workers.send_maintain)
            print(f"{transaction.function} {statement}: {seconds:.1f} s")
            assert all(differences(view) == [] for view in (CustomerTotal, RegionTotal))
            assert Limited.is_fresh()
    workers.wait_until_quiet(meanwhile=workers.send_maintain)
    if is_frozen:
        assert all(differences(view) == [] for view in (CustomerTotal, RegionTotal))
    return is_frozen


def test_a_frozen_worker_keeps_no_view_from_being_refreshed(
    freezer: Freezer, workers: Workers
) -> None:
    workers.start(3)
    for transaction in TRANSACTIONS:
        assert hold(workers, freezer, transaction, 2), f"{transaction.function} was never reached"


@pytest.mark.long
@pytest.mark.parametrize("transaction", TRANSACTIONS, ids=lambda each: each.function)
def test_a_worker_may_freeze_at_any_statement(
    freezer: Freezer, workers: Workers, transaction: Transaction
) -> None:
    workers.start(3)
    reached = [
        hold(workers, freezer, transaction, statement, within=10)
        for statement in range(1, transaction.statements + 1)
    ]
    assert any(reached)
