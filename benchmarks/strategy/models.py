"""A source with a dimension, and views of it in the shapes that dashboards and searches have."""

from typing import Any

from django.db import models
from django.db.models import Count, F, QuerySet, Sum, Window
from django.db.models.functions import ExtractDay, Rank, TruncMonth

from matviews import MaterializedView

__all__ = [
    "ByKind", "ByKindAndDay", "ByMonth", "ByMonthAndStatus", "ByRegion", "ByRegionAndMonth",
    "BySku", "BySkuWithoutIndex", "ByStore", "Ranking", "Sale", "Store",
]  # fmt: skip


class Store(models.Model):
    """A row of the dimension."""

    region = models.PositiveSmallIntegerField(db_index=True)


class Sale(models.Model):
    """A source row."""

    kind = models.PositiveSmallIntegerField()
    status = models.CharField(max_length=10)
    day = models.DateField(db_index=True)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    sku = models.PositiveIntegerField(db_index=True)
    old_sku = models.PositiveIntegerField()
    # No constraint: it would only make loading slow.
    store = models.ForeignKey(Store, models.DO_NOTHING, db_constraint=False)


class Totals(models.Model):
    """What a group of sales adds up to."""

    sales = models.PositiveIntegerField()
    total = models.DecimalField(max_digits=16, decimal_places=2, null=True)

    class Meta:
        abstract = True


def _totals(groups: Any) -> QuerySet[Any, Any]:
    totals: QuerySet[Any, Any] = groups.annotate(sales=Count("pk"), total=Sum("amount"))
    return totals


class ByKind(MaterializedView, Totals):
    """Five groups; no index serves the key."""

    kind = models.PositiveSmallIntegerField(primary_key=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values("kind"))


class ByMonth(MaterializedView, Totals):
    """Sixty groups, by a key computed from a date."""

    month = models.DateField(primary_key=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values(month=TruncMonth("day")))


class ByMonthAndStatus(MaterializedView, Totals):
    """A computed part of the key beside a plain one."""

    month = models.DateField()
    status = models.CharField(max_length=10)

    class Meta:
        unique_together = (("month", "status"),)

    class MatviewMeta:
        key = ("month", "status")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values("status", month=TruncMonth("day")))


class ByKindAndDay(MaterializedView, Totals):
    """The day of the month and the kind: about 150 groups, with rows of all months in each."""

    kind = models.PositiveSmallIntegerField()
    number = models.PositiveSmallIntegerField()

    class Meta:
        unique_together = (("kind", "number"),)

    class MatviewMeta:
        key = ("kind", "number")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values("kind", number=ExtractDay("day")))


class BySku(MaterializedView, Totals):
    """Many groups of ten rows, which an index finds."""

    sku = models.PositiveIntegerField(primary_key=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values("sku"))


class BySkuWithoutIndex(MaterializedView, Totals):
    """Many groups of ten rows, which no index finds."""

    old_sku = models.PositiveIntegerField(primary_key=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values("old_sku"))


class ByStore(MaterializedView, Totals):
    """Each row of the dimension, with its sales joined to it."""

    store = models.PositiveIntegerField(primary_key=True)
    region = models.PositiveSmallIntegerField()

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        stores = Store.objects.values("region", store=F("pk"))
        return stores.annotate(sales=Count("sale"), total=Sum("sale__amount"))


class ByRegion(MaterializedView, Totals):
    """Ten groups, by a column of the dimension."""

    region = models.PositiveSmallIntegerField(primary_key=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values(region=F("store__region")))


class ByRegionAndMonth(MaterializedView, Totals):
    """Six hundred groups: a part of the key from each table."""

    region = models.PositiveSmallIntegerField()
    month = models.DateField()

    class Meta:
        unique_together = (("region", "month"),)

    class MatviewMeta:
        key = ("region", "month")

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return _totals(Sale.objects.values(region=F("store__region"), month=TruncMonth("day")))


class Ranking(MaterializedView, models.Model):
    """A window function: staged, and never by keys."""

    shop = models.PositiveIntegerField(primary_key=True)
    place = models.PositiveIntegerField()
    total = models.DecimalField(max_digits=16, decimal_places=2, null=True)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        totals = Sale.objects.values(shop=F("store_id")).annotate(total=Sum("amount"))
        return totals.annotate(place=Window(Rank(), order_by=F("total").desc()))
