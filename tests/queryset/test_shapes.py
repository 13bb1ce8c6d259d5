"""Views with `source()`, shape by shape: built, kept current, left alone if nothing changed."""

import random
from collections.abc import Iterator
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from matviews import engine
from matviews.models import Refresh
from matviews.phases import Phase
from matviews.queryset import plan_of
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.shapes.models import Order, Shape, grouped, rows, staged
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.shop import COLUMNS, Shop

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

on_sqlite = connection.vendor == "sqlite"
on_mariadb = connection.vendor == "mysql"

STAGED: dict[type[Any], str] = {
    rows.RawColumn: "raw SQL",
    grouped.QuantityTotal: "no index of shapes.Order begins with quantity",
    grouped.RegionDay: "several tables",
    grouped.SlotRegion: "several tables",
    grouped.DayRegion: "computed",
    grouped.TagRegion: "several tables",
    grouped.ReferredSlot: "several tables",
    grouped.DayTotal: "computed",
    grouped.MomentTotal: "computed",
    grouped.Overall: "computed",
    staged.Everything: "UNION",
    staged.Ranked: "window function",
    staged.BestSold: "slice",
    **({rows.ProductByBytes: "collation"} if on_mariadb else {}),
}
REFUSED: dict[type[Any], str] = (
    {rows.JsonKey: "SQLite does not return column 'kind' as JSON"} if on_sqlite else {}
)
VIEWS: list[type[Any]] = [
    each.model for each in registry if issubclass(each.model, Shape) and each.model not in REFUSED
]
QUERIES = [
    Query(),
    Query(rows=1, count=1, total=1, money=1, mean=1, bound=1, form=1),
    Query(rows=3, count=2, total=2, money=3, mean=2, bound=2, form=2),
]


@pytest.fixture(autouse=True)
def _plain_queries() -> Iterator[None]:
    engine.sync_controls()
    yield
    for view in VIEWS:
        view.query = Query()


@pytest.fixture
def shop() -> Shop:
    return Shop()


def refreshed(view: type[Shape], **request: Any) -> dict[str, int]:
    """Refresh a view; the rows that each phase has written."""
    refresh: Refresh = view_classes.run(view, **request)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    return {run.phase: run.rows for run in refresh.runs.all()}


def needs_time_zones() -> None:
    if not connection.features.has_zoneinfo_database:
        pytest.skip("the database knows no time zones")


NOTHING = dict.fromkeys(Phase, 0)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_equals_its_source_after_each_refresh(
    view: type[Any], shop: Shop, pytestconfig: pytest.Config
) -> None:
    chance = random.Random(view.__name__)
    shop.fill(chance)
    queries = QUERIES if pytestconfig.getoption("long") else QUERIES[1:]
    for query, batch_size in zip(queries, (100, 5, 4), strict=False):
        # Given a definition, and a view that holds the rows of another one
        view.query = query
        shop.stir(chance)
        # When it is refreshed, then it has the rows of its source
        refreshed(view, batch_size=batch_size)
        assert differences(view) == [], query
        # And a second refresh writes nothing
        assert refreshed(view) == NOTHING, query
    # And an empty source empties it
    tables: list[type[Any]] = [*COLUMNS, grouped.CustomerTotal]
    for model in tables:
        model._base_manager.all().delete()
    refreshed(view, batch_size=4)
    assert view._base_manager.count() == (1 if view is grouped.Overall else 0)
    assert differences(view) == []


def test_windows_are_used_where_the_range_of_a_key_commutes_with_the_query() -> None:
    for view in VIEWS:
        path = plan_of(registry.find(view), "default").strategy
        assert path.staged == (view in STAGED), (view, path)
        assert STAGED.get(view, "which an index serves") in path.reason


@pytest.mark.parametrize("view", REFUSED)
def test_what_a_database_cannot_do_is_refused_with_the_reason(view: type[Any]) -> None:
    refresh = view_classes.run(view)

    assert refresh.state == RefreshState.FAILED
    assert REFUSED[view] in refresh.error


def test_rows_whose_key_is_null_are_left_out(shop: Shop) -> None:
    shop.fill(random.Random(1))
    Order.objects.update(customer=None, slot=None, quantity=None)
    for view in (grouped.CustomerTotal, grouped.SlotTotal, grouped.QuantityTotal, staged.Seen):
        refreshed(view)
        assert view._base_manager.count() == 0
        assert refreshed(view) == NOTHING


def test_a_view_over_a_view_follows_what_that_has_written(shop: Shop) -> None:
    shop.fill(random.Random(1))
    refreshed(grouped.CustomerTotal)
    refreshed(grouped.ViewOfView)
    assert grouped.ViewOfView.objects.count() == grouped.CustomerTotal.objects.count() > 0
    shop.stir(random.Random(1))

    refreshed(grouped.CustomerTotal)
    refreshed(grouped.ViewOfView)

    assert differences(grouped.ViewOfView) == []
    assert refreshed(grouped.ViewOfView) == NOTHING


@pytest.mark.parametrize("view", [grouped.DayTotal, grouped.MomentTotal])
def test_days_are_those_of_the_projects_time_zone_whichever_is_active(
    view: type[Any], shop: Shop
) -> None:
    needs_time_zones()
    view.query = Query(form=1)
    with override_settings(TIME_ZONE="America/New_York"):
        shop.fill(random.Random(1))
        with timezone.override(ZoneInfo("Asia/Tokyo")):
            refreshed(view)
        with timezone.override(None):
            assert differences(view) == []
            assert refreshed(view) == NOTHING


def test_a_day_is_one_of_the_projects_time_zone(shop: Shop) -> None:
    needs_time_zones()
    shop.fill(random.Random(1))
    Order.objects.update(placed_at="2024-01-01T03:00:00Z")

    with override_settings(TIME_ZONE="America/New_York"):
        refreshed(grouped.DayTotal)

    assert grouped.DayTotal.objects.get().day == date(2023, 12, 31)


def test_the_oracle_sees_a_row_that_is_missing_surplus_or_different(shop: Shop) -> None:
    shop.fill(random.Random(1))
    refreshed(grouped.CustomerTotal)
    one, other, third = grouped.CustomerTotal.objects.order_by("pk")[:3]

    grouped.CustomerTotal.objects.filter(pk=one.pk).delete()
    grouped.CustomerTotal.objects.filter(pk=other.pk).update(customer_id=12345)
    grouped.CustomerTotal.objects.filter(pk=third.pk).update(money=None, mean=7)

    found = differences(grouped.CustomerTotal)
    assert f"({one.customer_id},) is missing" in found[0] + found[1]
    assert "(12345,) is surplus" in "".join(found)
    assert f"({third.customer_id},) has money None" in "".join(found)
    assert f"({third.customer_id},) has mean 7.0" in "".join(found)
