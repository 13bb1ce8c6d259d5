"""Routes, as a queryset."""

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Avg, Count, Max, Min, QuerySet

from matviews import MaterializedView

from .sources import Airport, Flight

__all__ = ["RouteSummary"]


class RouteSummary(MaterializedView, models.Model):
    """One row per route that is flown.

    It is windowed, as `CarrierDay` is: an index of the flights begins with origin and destination.
    """

    # No constraints in the database: they would make changes to the source wait for a refresh.
    origin = models.ForeignKey(
        Airport, models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    destination = models.ForeignKey(
        Airport, models.DO_NOTHING, related_name="+", db_constraint=False
    )
    flights = models.PositiveIntegerField()
    carriers = models.PositiveIntegerField()
    distance = models.PositiveIntegerField(help_text="Miles.")
    mean_air_time = models.FloatField(null=True, help_text="Minutes.")
    first_flight = models.DateTimeField()
    last_flight = models.DateTimeField()

    class Meta:
        verbose_name_plural = "route summaries"
        constraints = (
            models.UniqueConstraint(
                fields=("origin", "destination"), name="flights_route_summary_key"
            ),
        )

    class MatviewMeta:
        refresh_every = timedelta(seconds=30)

    def __str__(self) -> str:
        return f"{self.origin_id}-{self.destination_id}"

    @classmethod
    def source(cls) -> QuerySet[Flight, Any]:
        return Flight.objects.values("origin", "destination").annotate(
            flights=Count("pk"),
            carriers=Count("carrier", distinct=True),
            distance=Max("distance"),
            mean_air_time=Avg("air_time"),
            first_flight=Min("scheduled"),
            last_flight=Max("scheduled"),
        )
