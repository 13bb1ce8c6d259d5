"""Punctuality per carrier and day, as a queryset."""

from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Avg, Case, Count, Q, QuerySet, When

from matviews import MaterializedView

from .sources import Airline, Flight

__all__ = ["CarrierDay"]

ON_TIME = Case(When(arrival_delay__lt=15, then=1.0), default=0.0, output_field=models.FloatField())


class CarrierDay(MaterializedView, models.Model):
    """One row per carrier and day that have flights.

    It is windowed: an index of the flights begins with the view's key, so each batch reads the
    flights of its own carriers and days, and no others.
    """

    # No constraint in the database: it would make changes to the source wait for a refresh.
    carrier = models.ForeignKey(
        Airline, models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    day = models.DateField(db_index=True)
    flights = models.PositiveIntegerField()
    cancelled = models.PositiveIntegerField()
    mean_departure_delay = models.FloatField(null=True, help_text="Minutes.")
    mean_arrival_delay = models.FloatField(null=True, help_text="Minutes.")
    on_time_share = models.FloatField(help_text="Arrived, and less than 15 minutes late.")

    class Meta:
        # The only unique constraint, so it names the key.
        constraints = (
            models.UniqueConstraint(fields=("carrier", "day"), name="flights_carrier_day_key"),
        )

    class MatviewMeta:
        refresh_every = {
            "insert": timedelta(seconds=10),
            "update": timedelta(seconds=20),
            "delete": timedelta(minutes=1),
        }

    def __str__(self) -> str:
        return f"{self.carrier_id} {self.day}"

    @classmethod
    def source(cls) -> QuerySet[Flight, Any]:
        return Flight.objects.values("carrier", "day").annotate(
            flights=Count("pk"),
            cancelled=Count("pk", filter=Q(cancelled=True)),
            mean_departure_delay=Avg("departure_delay"),
            mean_arrival_delay=Avg("arrival_delay"),
            on_time_share=Avg(ON_TIME),
        )
