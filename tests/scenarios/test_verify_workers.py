"""Verifications by real workers that are killed in the middle: they go on, and end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matviews import engine
from matviews.models import VerifyRun, ViewControl
from matviews.tasks import verifications
from tests.helpers.freezing import VARIABLE, Freezer
from tests.helpers.processes import Workers
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerTotal

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LIMIT = 1.0  # seconds


@pytest.fixture(autouse=True)
def _shop(tracked: None, settings: Any) -> None:
    settings.MATVIEWS = {"LEASE": LIMIT, "STATEMENT_TIMEOUT": LIMIT}
    Region.objects.create(pk=1, name="1")
    Product.objects.create(sku="a", name="a", price=2)
    for number in range(1, 6):
        Customer.objects.create(pk=number, name=str(number), region_id=1)
        Order.objects.create(customer_id=number, product_id="a", price=1, paid=False)
    run(CustomerTotal)
    CustomerTotal.objects.filter(customer_id=3).update(orders=70)


@pytest.fixture
def freezer(redis_environment: dict[str, str], tmp_path: Path) -> Iterator[Freezer]:
    path = tmp_path / "orders"
    redis_environment[VARIABLE] = str(path)
    freezer = Freezer(path)
    yield freezer
    freezer.withdraw()


@pytest.mark.parametrize(
    ("function", "repair"),
    [
        ("repair_part", True),
        pytest.param("compare_without_pending", False, marks=pytest.mark.long),
        pytest.param("_end", False, marks=pytest.mark.long),
    ],
)
def test_a_worker_killed_in_a_verification_is_followed_by_another(
    workers: Workers, freezer: Freezer, function: str, repair: bool
) -> None:
    # given a worker that stops between two statements, and is killed there
    workers.start(2)
    freezer.order(function, 2)
    verifications.send(
        verifications.request(CustomerTotal._meta.label, repair=repair, requested_by="ann")
    )
    workers.wait_for(lambda: freezer.frozen)
    os.kill(freezer.frozen or 0, signal.SIGKILL)
    assert VerifyRun.objects.get().worker
    # when nothing happens but maintenance
    workers.wait_for(lambda: not VerifyRun.objects.exists(), meanwhile=workers.maintain)
    # then the other one has ended it, and each row was compared
    control = ViewControl.objects.get(label=CustomerTotal._meta.label)
    found: Any = control.verification
    assert (found["rows_compared"], found["differing"], found["error"]) == (5, 1, "")
    assert found["requested_by"] == "ann"
    assert engine.verify(CustomerTotal).equal == repair
    assert (control.differing is None) == repair
