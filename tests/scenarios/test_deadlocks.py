"""Writers and refreshes at the same rows at the same time: none of them ends in a deadlock."""

import random
import time
from functools import partial
from itertools import count
from typing import Any

import pytest
from django.db import DatabaseError, transaction
from django.db.models import F

from matviews import engine
from matviews.states import RefreshState
from tests.helpers.engine import in_another_connection, shard_of, without_sqlite
from tests.helpers.processes import DEADLINE
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal, RegionTotal, ViewOfView
from tests.shapes.oracle import differences

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    without_sqlite,  # it has one writer at a time
]

VIEWS = (CustomerTotal, RegionTotal, ViewOfView)
WRITERS, ORDERS, CUSTOMERS = 8, 200, 20
NEW = count(10 * ORDERS + 1)  # primary keys


@pytest.fixture(autouse=True)
def _shop(tracked: None) -> None:
    Product.objects.create(sku="a", name="a", price=1)
    for number in (1, 2, 3):
        Region.objects.create(pk=number, name=str(number))
    for number in range(1, CUSTOMERS + 1):
        Customer.objects.create(pk=number, name=str(number), region_id=1 + number % 3)
    Order.objects.bulk_create(
        Order(pk=number, customer_id=1 + number % CUSTOMERS, product_id="a", price=1, paid=False)
        for number in (*range(1, ORDERS + 1), next(NEW))  # beyond which others come
    )


def write(chance: random.Random) -> None:
    """Writes as an application has them, in an order in which without us nobody deadlocks.

    Orders are locked one after the other. A customer that an order is moved to is locked for a
    moment by its foreign key, so those that move to another region are others.
    """
    if chance.random() < 0.3:
        customer = Customer.objects.filter(pk=chance.randint(CUSTOMERS // 2 + 1, CUSTOMERS))
        customer.update(region_id=chance.randint(1, 3))
        return
    with transaction.atomic():
        for pk in sorted(chance.sample(range(1, ORDERS + 1), 4)):
            order = Order.objects.filter(pk=pk)
            match chance.randrange(8):
                case 0 | 1 | 2:
                    order.update(price=F("price") + 1)
                case 3 | 4 | 5:
                    order.update(customer_id=chance.randint(1, CUSTOMERS // 2))
                case 6:
                    order.delete()
                case _:
                    new = {"customer_id": 1, "product_id": "a", "price": 2, "paid": True}
                    Order.objects.create(pk=next(NEW), **new)


class Meeting:
    """Writers and workers at the same rows, until a time is over.

    They go on until each writer has written and each view was refreshed.

    Attributes:
        written: the numbers of the writers, for each of their transactions.
        refreshed: the views, for each of their refreshes that have succeeded.
        refused: the errors of writers.
        failed: the errors of batches.
    """

    def __init__(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        self.written: list[int] = []
        self.refreshed: list[type[Any]] = []
        self.refused: list[str] = []
        self.failed: list[str] = []

    def hold(self) -> None:
        works = [partial(self.write, number) for number in range(WRITERS)] + 2 * [self.refresh]
        for each in [in_another_connection(work) for work in works]:
            each.join()

    @property
    def goes_on(self) -> bool:
        all_met = set(self.refreshed) == set(VIEWS) and set(self.written) == set(range(WRITERS))
        longer = 0 if all_met else DEADLINE
        return time.monotonic() < self.ends_at + longer

    def write(self, number: int) -> None:
        chance = random.Random(number)
        while self.goes_on:
            try:
                write(chance)
            except DatabaseError as error:
                self.refused.append(str(error))
            else:
                self.written.append(number)

    def refresh(self) -> None:
        """What the tasks do."""
        while self.goes_on:
            for view in VIEWS:
                engine.request(view)
                while message := self._settle(view):
                    report = engine.run_batch(message)
                    self.failed += filter(None, [report.error])
                    if report.outcome.refused:
                        break

    def _settle(self, view: type[Any]) -> engine.Message | None:
        settled = engine.close_finished(shard_of(view).pk)
        succeeded = [each for each in settled.closed if each.state == RefreshState.SUCCEEDED]
        self.refreshed += [view] * len(succeeded)
        return settled.message


def test_nobody_deadlocks(request: pytest.FixtureRequest) -> None:
    meeting = Meeting(60 if request.config.getoption("--long") else 8)

    meeting.hold()

    assert meeting.refused == []
    assert meeting.failed == []
    assert set(meeting.written) == set(range(WRITERS))
    assert set(meeting.refreshed) == set(VIEWS)
    for view in VIEWS:
        assert run(view).state == RefreshState.SUCCEEDED
        assert differences(view) == []
