"""Routes, written with `limit`, and with a phase that is done as a whole.

There are a few hundred routes, so each batch may ask afresh for the first stale ones, and the
rows of all routes that are no longer flown go in one statement.
"""

from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models import Avg, Count, Exists, F, Max, Min, OuterRef, QuerySet

from matviews import MaterializedView

from .sources import Airport, Flight, Route

__all__ = ["RouteSummary"]


class RouteSummary(MaterializedView, models.Model):
    """One row per route that is flown."""

    # No constraints in the database: they would make changes to the source wait for a refresh.
    route = models.OneToOneField(Route, models.DO_NOTHING, primary_key=True, db_constraint=False)
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
    source_revision = models.PositiveBigIntegerField()

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
    def needs_insert(cls) -> int:
        return cls.missing().count()

    @classmethod
    def do_insert(cls, limit: int) -> int:
        routes = cls.missing().order_by("pk").values_list("pk", flat=True)[:limit]
        return cls.write(list(routes))

    @classmethod
    def needs_update(cls) -> int:
        return cls.stale().count()

    @classmethod
    def do_update(cls, limit: int) -> int:
        routes = cls.stale().order_by("pk").values_list("pk", flat=True)[:limit]
        return cls.write(list(routes))

    @classmethod
    def needs_delete(cls) -> int:
        return cls.obsolete().count()

    @classmethod
    def do_delete(cls) -> int:
        return cls.obsolete().delete()[0]

    @classmethod
    def missing(cls) -> QuerySet[Route]:
        return Route.objects.filter(_has_flights(), routesummary=None)

    @classmethod
    def stale(cls) -> QuerySet[Self]:
        return cls._changed().filter(_has_flights())

    @classmethod
    def obsolete(cls) -> QuerySet[Self]:
        return cls._changed().exclude(_has_flights())

    @classmethod
    def _changed(cls) -> QuerySet[Self]:
        return cls.objects.exclude(source_revision=F("route__revision"))

    @classmethod
    def write(cls, keys: list[int]) -> int:
        """Replace rows, which costs a tenth of `bulk_update`. Nothing may point at them then."""
        # Revision and figures in one statement, so that both are of one moment.
        rows = (
            Route.objects.filter(pk__in=keys)
            .values("origin_id", "destination_id", route_id=F("pk"), source_revision=F("revision"))
            .annotate(
                flights=Count("flight"),
                carriers=Count("flight__operating_day__carrier", distinct=True),
                distance=Max("flight__distance"),
                mean_air_time=Avg("flight__air_time"),
                first_flight=Min("flight__scheduled"),
                last_flight=Max("flight__scheduled"),
            )
            .filter(flights__gt=0)
        )
        cls.objects.filter(pk__in=keys).delete()
        return len(RouteSummary.objects.bulk_create(RouteSummary(**row) for row in rows))


def _has_flights() -> Exists:
    return Exists(Flight.objects.filter(route=OuterRef("pk")))
