"""A refresh moves the entries of the tables that its view reads, and waits for no others."""

import pytest

from matviews.changes import change_log, log_spans
from matviews.models import Change, TrackedTable, ViewChange
from tests.helpers.engine import without_sqlite
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Region
from tests.shapes.models.grouped import CustomerTotal
from tests.shapes.oracle import differences

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True), without_sqlite]

ELSEWHERE, OTHER_VIEW = "elsewhere", 2**40


@pytest.fixture(autouse=True)
def _shop(tracked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that is up to date, and another table with a view of its own."""
    monkeypatch.setattr(change_log, "FEW_ENTRIES", 0)
    region = Region.objects.create(pk=1, name="here")
    Customer.objects.create(pk=1, name="1", region=region)
    change(1)
    run(CustomerTotal)
    TrackedTable.objects.create(table=ELSEWHERE, views=[OTHER_VIEW])


def change(times: int) -> None:
    """An order and an entry of the other table, so many times."""
    for number in range(times):
        Order.objects.create(customer_id=1, quantity=1, price=number, paid=True)
        Change.objects.create(table=ELSEWHERE, links=[["id"], [number]])


def logged(table: str) -> int:
    return Change.objects.filter(table=table).count()


@pytest.mark.parametrize("moved", [1, 2, 5_000])
def test_the_entries_of_other_tables_stay(monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    monkeypatch.setattr(change_log, "MAX_MOVED_ENTRIES", moved)
    change(4)

    run(CustomerTotal)

    assert differences(CustomerTotal) == []
    assert logged(ELSEWHERE) == 1 + 4
    assert logged(Order._meta.db_table) == 0
    assert not ViewChange.objects.filter(view=OTHER_VIEW).exists()


def test_many_entries_mark_the_keys_of_no_view_of_another_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_log, "MAX_MOVED_ENTRIES", 2)
    monkeypatch.setattr(change_log, "MAX_DISTINCT_CHANGES", 3)
    monkeypatch.setattr(log_spans, "MIN_SPAN", 2)
    change(6)

    refresh = run(CustomerTotal)

    assert {each.dirty_after for each in refresh.runs.all()} == {None}
    assert differences(CustomerTotal) == []
    assert logged(ELSEWHERE) == 1 + 6
    assert logged(Order._meta.db_table) == 0
    assert not ViewChange.objects.filter(view=OTHER_VIEW).exists()
