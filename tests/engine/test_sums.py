"""Additive views: what comes is added, what goes is subtracted, whatever the size of a group."""

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from matviews import engine
from matviews.states import RefreshStrategy
from tests.helpers.additive_views import Sales, sums_differ
from tests.helpers.tables import refreshed
from tests.helpers.view_classes import run

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sales(transactional_db: None, alone: None) -> Iterator[Sales]:
    """A view of three shops, refreshed."""
    with Sales().tracked() as made:
        made.add((1, 2, "1.10"), (1, None, None), (2, 3, "0.30"), (None, 1, "1"), (3, 5, "2"))
        refreshed(made.View)
        yield made


def verified(sales: Sales) -> bool:
    """Whether the view is as its source, and its sums with what is logged too."""
    return engine.verify(sales.View).equal and sums_differ(sales.View) == 0


def reads_source(sales: Sales, queries: CaptureQueriesContext) -> bool:
    table = sales.Sale._meta.db_table
    written = [
        each["sql"] for each in queries if each["sql"].upper().startswith(("INSERT", "WITH"))
    ]
    return any(f'FROM "{table}"' in sql or f"FROM `{table}`" in sql for sql in written)


def test_a_refresh_adds_what_came_and_subtracts_what_went(sales: Sales) -> None:
    [first, *_others] = sales.Sale._base_manager.order_by("pk")
    sales.add((1, 7, "5"), (4, 1, "1"))
    first.delete()
    sales.Sale._base_manager.filter(shop=2).update(qty=F("qty") + 10, note="x")
    sales.Sale._base_manager.filter(shop=3).update(shop=1)

    with CaptureQueriesContext(connection) as queries:
        refresh = run(sales.View)

    assert {each.strategy for each in refresh.runs.all()} == {RefreshStrategy.BY_KEYS}
    assert sorted(sales.rows()) == [1, 2, 4]
    assert sales.rows()[1]["sales"] == 3
    assert sales.rows()[2]["mean"] == 13.0
    assert not reads_source(sales, queries)
    assert sums_differ(sales.View) == 0
