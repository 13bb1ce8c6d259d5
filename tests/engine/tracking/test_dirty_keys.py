"""Dirty keys that overlapping refreshes have left behind."""

from typing import Any

import pytest
from django.db.models import Sum

from matviews import engine, tasks
from matviews.models import DirtyKeys
from tests.helpers.engine import shard_of
from tests.helpers.view_classes import run
from tests.shapes.models import Customer
from tests.shapes.models.grouped import CustomerTotal, OrdersOfCustomer

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _built(tracked: Any) -> None:
    Customer.objects.create(pk=1, name="a")
    run(CustomerTotal)


def leave_keys() -> dict[int, DirtyKeys]:
    """Keys of the drains up to the last one that each phase has processed, and of the next."""
    shard = shard_of(CustomerTotal)
    done = min(checkpoint.drain_number for checkpoint in shard.checkpoints.values())
    return {
        number - done: DirtyKeys.objects.create(
            shard=shard, drain_number=number, keys=[[1]], count=1
        )
        for number in (done - 1, done, done + 1)
    }


def test_that_every_phase_has_processed_are_swept() -> None:
    left = leave_keys()
    tasks.maintain()
    assert list(DirtyKeys.objects.all()) == [left[1]]


def test_stay_while_a_refresh_is_open() -> None:
    leave_keys()
    CustomerTotal.mark_dirty()
    assert engine.request(CustomerTotal).finished_at is None
    engine.sweep_dirty_keys()
    assert DirtyKeys.objects.count() == 3


def test_none_is_skipped_where_others_of_an_earlier_drain_are_dirty_again() -> None:
    # given keys of two drains, whose rows are not as in the source
    Customer.objects.bulk_create(Customer(pk=pk, name="a") for pk in (2, 3, 4))
    run(OrdersOfCustomer)
    wrong = OrdersOfCustomer._base_manager.exclude(orders=0)
    OrdersOfCustomer._base_manager.update(orders=99)
    for keys in ([1, 2, 3], [4]):
        OrdersOfCustomer.mark_dirty(keys)
        run(OrdersOfCustomer, phases=["insert"])
    assert wrong.count() == DirtyKeys.objects.aggregate(keys=Sum("count"))["keys"] == 4
    # when the batch that begins to process them finds one of the first again
    OrdersOfCustomer.mark_dirty([1])
    run(OrdersOfCustomer, phases=["update"], batch_size=1)

    assert list(wrong) == []
