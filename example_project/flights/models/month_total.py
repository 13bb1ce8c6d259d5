"""Months, as sums that follow each change."""

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Avg, Count, Q, QuerySet, Sum
from django.db.models.functions import TruncMonth

from matviews import MaterializedView

from .sources import Flight

__all__ = ["MonthTotal"]


class MonthTotal(MaterializedView, models.Model):
    """One row per month.

    It is additive: a refresh adds the flights that came to the sums of their months and subtracts
    those that went. It does not read the 28,000 flights of a month again because one has changed.
    """

    month = models.DateField(unique=True, help_text="Its first day.")
    flights = models.PositiveIntegerField()
    cancelled = models.PositiveIntegerField()
    miles = models.PositiveBigIntegerField()
    mean_arrival_delay = models.FloatField(null=True, help_text="Minutes.")

    class MatviewMeta:
        additive = True
        refresh_every = timedelta(seconds=10)

    def __str__(self) -> str:
        return f"{self.month:%Y-%m}"

    @classmethod
    def source(cls) -> QuerySet[Flight, Any]:
        return Flight.objects.values(month=TruncMonth("day")).annotate(
            flights=Count("pk"),
            cancelled=Count("pk", filter=Q(cancelled=True)),
            miles=Sum("distance"),
            mean_arrival_delay=Avg("arrival_delay"),
        )
