"""Parked groups of an additive view: its sums stay right, or are recomputed once none is parked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import Count, F, Q, Sum
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine
from matviews.models import ParkedKey, ViewSums
from tests.helpers.sums import kept_of, sums_differ
from tests.helpers.tables import derived_view, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

HUGE = 2**62  # twice this is no BIGINT


class Shops:
    """Sales, and an additive view of their totals by shop, none of which may be negative."""

    def __init__(self) -> None:
        self.Sale = sale = model(
            "Sale",
            shop=models.IntegerField(db_index=True),
            qty=models.BigIntegerField(),
            price=models.BigIntegerField(),
        )
        self.View = derived_view(
            lambda cls: sale._base_manager.values("shop").annotate(
                sales=Count("pk"), total=Sum(F("qty") * F("price"))
            ),
            name="ShopTotal",
            options={"additive": True},
            shop=models.IntegerField(unique=True),
            sales=models.IntegerField(),
            total=models.BigIntegerField(),
            meta={
                "constraints": [
                    models.CheckConstraint(condition=Q(total__gte=0), name="made_total")
                ]
            },
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Three shops with a sale each, refreshed."""
        with made(self.Sale, self.View):
            changes.install(engine.alias())
            try:
                for shop in (1, 2, 3):
                    self.sell(shop, shop)
                self.refresh()
                yield
            finally:
                changes.remove(engine.alias())

    def sell(self, shop: int, qty: int, price: int = 10) -> Any:
        return self.Sale._base_manager.create(shop=shop, qty=qty, price=price)

    def refresh(self) -> bool:
        """Refresh the view; whether that read the source."""
        with CaptureQueriesContext(connection) as queries:
            refreshed(self.View)
        table = connection.ops.quote_name(self.Sale._meta.db_table)
        return any(f"FROM {table}" in each["sql"] for each in queries)

    def totals(self, rows: Any = None) -> dict[int, int]:
        found = self.View.objects if rows is None else rows
        return dict(found.values_list("shop", "total"))

    def parked(self) -> set[int]:
        return {key for [key] in ParkedKey.objects.values_list("key", flat=True)}

    def assert_followed_by_sums(self) -> None:
        """The next refresh does not read the source, and all is right."""
        self.sell(1, 7)
        self.sell(2, 7)
        assert not self.refresh()
        assert engine.verify(self.View).equal
        assert sums_differ(self.View) == 0
        assert not changes.count_values(kept_of(self.View).log, 1)


@pytest.fixture
def shops() -> Iterator[Shops]:
    found = Shops()
    with found.ready():
        yield found


def test_of_a_group_that_the_view_refuses_the_sums_are_kept(shops: Shops) -> None:
    bad = shops.sell(2, -9)
    shops.sell(3, 1)
    shops.refresh()
    assert shops.parked() == {2}
    assert shops.totals() == {1: 10, 2: 20, 3: 40}

    shops.sell(1, 1)
    shops.refresh()
    assert shops.totals(shops.View.current.all()) == {1: 20, 2: 20, 3: 40}
    assert sums_differ(shops.View) == 0
    assert not changes.count_values(kept_of(shops.View).log, 1)

    bad.delete()
    shops.refresh()
    assert shops.parked() == set()
    assert shops.totals() == {1: 20, 2: 20, 3: 40}
    shops.assert_followed_by_sums()


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite goes on with a float")
def test_of_a_group_that_cannot_be_added_up_they_are_recomputed_once_it_is_right(
    shops: Shops,
) -> None:
    bad = shops.sell(2, HUGE)
    shops.sell(3, 1)
    shops.refresh()
    assert shops.parked() == {2}
    assert shops.totals() == {1: 10, 2: 20, 3: 40}
    assert kept_of(shops.View).drain_number == ViewSums.STALE
    assert shops.totals(shops.View.current.all()) == {1: 10, 2: 20, 3: 40}

    engine.trim_value_logs()
    assert not changes.count_values(kept_of(shops.View).log, 1)
    shops.sell(1, 1)
    shops.refresh()
    assert shops.totals() == {1: 20, 2: 20, 3: 40}
    assert shops.totals(shops.View.current.all()) == {1: 20, 2: 20, 3: 40}

    bad.delete()
    shops.refresh()
    assert shops.parked() == set()
    shops.sell(3, 1)
    assert shops.refresh()
    assert shops.totals() == {1: 20, 2: 20, 3: 50}
    shops.assert_followed_by_sums()
