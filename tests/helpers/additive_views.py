"""A table of sales and additive views of it, which a test makes for itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import models
from django.db.models import Avg, Case, Count, F, Max, Min, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Coalesce

from matviews import changes, engine
from tests.helpers.tables import derived_view, made, model

__all__ = ["Sales", "counted", "extremes"]


def counted(rows: QuerySet[Any, Any]) -> QuerySet[Any, Any]:
    """Sales by shop: every kind of aggregate that all databases can add up."""
    found: QuerySet[Any, Any] = (
        rows.exclude(kind=9)
        .values("shop")
        .annotate(
            sales=Count("pk"),
            priced=Count("qty"),
            large=Count("pk", filter=Q(qty__gt=2)),
            total=Sum(F("qty") * F("kind") + 1),
            known=Coalesce(Sum("qty", filter=Q(kind=1)), 0),
            chosen=Sum(Case(When(kind=2, then=F("qty")), default=Value(1))),
            mean=Avg("qty"),
        )
    )
    return found


def extremes(rows: QuerySet[Any, Any]) -> QuerySet[Any, Any]:
    """Sales by shop, with the first and the last of several kinds of values."""
    found: QuerySet[Any, Any] = rows.values("shop").annotate(
        sales=Count("pk"),
        most=Max("qty"),
        least=Min("qty", filter=Q(kind=1)),
        total=Sum("qty"),
        last=Max("made"),
        dearest=Max("price"),
    )
    return found


class Sales:
    """The models of a test. Within `alone`.

    Args:
        source: the rows of the view from those of the sales.
        options: more of `MatviewMeta`.
        prefix: of the names of the models.
    """

    def __init__(
        self,
        source: Callable[[QuerySet[Any, Any]], QuerySet[Any, Any]] = counted,
        options: dict[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.Sale = sale = model(
            f"{prefix}Sale",
            shop=models.IntegerField(null=True, db_index=True),
            kind=models.IntegerField(default=1),
            qty=models.IntegerField(null=True),
            price=models.DecimalField(max_digits=12, decimal_places=2, null=True),
            made=models.DateTimeField(null=True),
            note=models.CharField(max_length=20, default=""),
            owner=models.IntegerField(default=0, db_index=True),
            code=models.IntegerField(null=True, unique=True),
        )
        self.View = derived_view(
            lambda cls: source(sale._base_manager.all()),
            name=f"{prefix}ShopTotal",
            options={"additive": True, **(options or {})},
            shop=models.IntegerField(unique=True),
            sales=models.IntegerField(null=True),
            priced=models.IntegerField(null=True),
            large=models.IntegerField(null=True),
            total=models.BigIntegerField(null=True),
            known=models.IntegerField(null=True),
            chosen=models.BigIntegerField(null=True),
            mean=models.FloatField(null=True),
            most=models.IntegerField(null=True),
            least=models.IntegerField(null=True),
            last=models.DateTimeField(null=True),
            dearest=models.DecimalField(max_digits=12, decimal_places=2, null=True),
            money=models.DecimalField(max_digits=30, decimal_places=4, null=True),
            share=models.DecimalField(max_digits=30, decimal_places=2, null=True),
        )

    @contextmanager
    def tracked(self) -> Iterator["Sales"]:
        """The tables and triggers are there until the end."""
        with made(self.Sale, self.View):
            changes.install(engine.alias())
            try:
                yield self
            finally:
                changes.remove(engine.alias())

    def add(self, *rows: tuple[Any, ...]) -> list[Any]:
        """Sales of (shop, qty, price)."""
        return [
            self.Sale._base_manager.create(shop=shop, qty=qty, price=price)
            for shop, qty, price in rows
        ]

    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of the view by shop."""
        return {row["shop"]: row for row in self.View._base_manager.values()}
