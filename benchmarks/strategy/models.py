"""A source and views of it: few groups, keys that are computed, and keys that no index serves."""

from typing import Any

from django.db import models
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import ExtractDay, TruncMonth

from matviews import MaterializedView

__all__ = ["ByKind", "ByKindAndDay", "ByMonth", "ByMonthAndStatus", "Sale"]  # fmt: skip


class Sale(models.Model):
    """A source row."""

    kind = models.PositiveSmallIntegerField()
    status = models.CharField(max_length=10)
    day = models.DateField(db_index=True)
    amount = models.DecimalField(max_digits=10, decimal_places=2)


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
