"""Additive views of sales with lookups in other tables, which a test makes for itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.db import models
from django.db.models import Count, F, Max, Min, Q, Sum

from matviews import changes, engine
from tests.helpers.tables import derived_view, made, model

__all__ = ["SHAPES", "Shape", "Shops"]

Rows = Any  # a queryset


class Shape(NamedTuple):
    """A view of sales, and its key."""

    source: Callable[[Rows], Rows]
    key: list[str]


def by_zone(rows: Rows) -> Rows:
    """Two lookups in a row, which may find nothing."""
    return rows.values(zone=F("customer__region__zone")).annotate(
        sales=Count("pk"),
        known=Count("customer__id"),
        total=Sum("qty"),
        ranks=Sum("customer__rank"),
    )


def by_kind_and_segment(rows: Rows) -> Rows:
    """A key of two tables, and a filter on a third one."""
    return (
        rows.filter(~Q(customer__region__zone=2), customer__rank__lt=3)
        .values("kind", segment=F("customer__segment"))
        .annotate(sales=Count("pk"), total=Sum("qty"), ranks=Sum("customer__rank"))
    )


def by_brand(rows: Rows) -> Rows:
    """Two lookups beside each other, one of which has an extreme."""
    return rows.values(brand=F("product__brand")).annotate(
        sales=Count("pk", filter=Q(customer__nick__contains="a")),
        total=Sum(F("qty") * F("product__price")),
        most=Max("product__price"),
        least=Min("qty"),
    )


def by_sellers_segment(rows: Rows) -> Rows:
    """Two lookups in one table."""
    return rows.values(segment=F("seller__segment")).annotate(
        sales=Count("pk"), total=Sum("customer__rank"), ranks=Sum("seller__rank")
    )


def large_zones(rows: Rows) -> Rows:
    """Groups come and go with a condition, too."""
    return by_zone(rows).filter(sales__gt=1)


SHAPES = {
    "by zone": Shape(by_zone, ["zone"]),
    "by kind and segment": Shape(by_kind_and_segment, ["kind", "segment"]),
    "by brand": Shape(by_brand, ["brand"]),
    "by seller's segment": Shape(by_sellers_segment, ["segment"]),
    "large zones": Shape(large_zones, ["zone"]),
}


class Shops:
    """The models of a test. Within `alone`.

    Args:
        name: the shape of the view.
    """

    def __init__(self, name: str = "by zone") -> None:
        self.name, shape = name, SHAPES[name]
        self.Region = model("JoinedRegion", zone=models.IntegerField(null=True), owner=_owner())
        self.Customer = model(
            "JoinedCustomer",
            region=models.ForeignKey(
                self.Region, models.DO_NOTHING, null=True, db_constraint=False
            ),
            segment=models.IntegerField(default=1),
            rank=models.IntegerField(default=1),
            nick=models.CharField(max_length=9, default="a"),
            owner=_owner(),
        )
        self.Product = model(
            "JoinedProduct",
            brand=models.IntegerField(default=1),
            price=models.IntegerField(default=1),
            owner=_owner(),
        )
        self.Sale = sale = model(
            "JoinedSale",
            customer=_lookup(self.Customer),
            seller=_lookup(self.Customer),
            product=_lookup(self.Product),
            kind=models.IntegerField(default=1),
            qty=models.IntegerField(null=True),
            owner=_owner(),
        )
        numbers = ("sales", "known", "total", "ranks", "most", "least")
        fields: dict[str, Any] = {name: models.IntegerField() for name in shape.key}
        fields |= {name: models.BigIntegerField(null=True) for name in numbers}
        self.View = derived_view(
            lambda cls: shape.source(sale._base_manager.all()),
            name="JoinedTotal",
            key=shape.key,
            options={"additive": True},
            meta={"unique_together": [shape.key]},
            **fields,
        )

    @property
    def sources(self) -> list[type[Any]]:
        """The models that the view may read."""
        return [self.Region, self.Customer, self.Product, self.Sale]

    @contextmanager
    def tracked(self) -> Iterator["Shops"]:
        """The tables and triggers are there until the end."""
        with made(*self.sources, self.View):
            changes.install(engine.alias())
            try:
                yield self
            finally:
                changes.remove(engine.alias())

    def fill(self) -> None:
        """Two regions, three customers, two products and some sales."""
        regions = [self.Region._base_manager.create(zone=zone) for zone in (1, 2)]
        customers = [
            self.Customer._base_manager.create(region=region, segment=segment, rank=rank)
            for region, segment, rank in [(regions[0], 1, 1), (regions[1], 2, 2), (None, 1, 1)]
        ]
        products = [
            self.Product._base_manager.create(brand=brand, price=brand * 10) for brand in (1, 2)
        ]
        for number in range(12):
            self.Sale._base_manager.create(
                customer=[*customers, None][number % 4], seller=customers[number % 3],
                product=products[number % 2], kind=number % 3, qty=number,
            )  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the view."""
        return list(self.View._base_manager.values())


def _owner() -> Any:
    """Who may write to the row, so that nobody waits for anybody."""
    return models.IntegerField(default=0, db_index=True)


def _lookup(to: type[Any]) -> Any:
    """What it refers to may be gone."""
    return models.ForeignKey(
        to, models.DO_NOTHING, null=True, db_constraint=False, related_name="+"
    )
