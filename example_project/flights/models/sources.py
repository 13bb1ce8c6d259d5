"""What an airport would know: airlines, airports, planes, flights."""

from collections.abc import Iterable
from typing import Any

from django.db import models, transaction

from .revised import Revised

__all__ = ["Airline", "Airport", "Flight", "Plane"]


class Airline(models.Model):
    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


class Airport(models.Model):
    code = models.CharField(max_length=3, primary_key=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.code} {self.name}".strip()


class Plane(Revised):
    tailnum = models.CharField(max_length=6, unique=True)
    manufacturer = models.CharField(max_length=50, blank=True)
    model = models.CharField(max_length=50, blank=True)
    seats = models.PositiveSmallIntegerField(null=True, blank=True)
    retired = models.DateField(null=True, blank=True, db_index=True)

    def __str__(self) -> str:
        return self.tailnum


class FlightQuerySet(models.QuerySet["Flight"]):
    """Flights; whatever changes them touches their planes, see `revised.py`."""

    def lock(self) -> list["Flight"]:
        """Hold these flights until the end of the transaction, so that none changes its plane."""
        return list(self.order_by("pk").select_for_update().only("plane"))

    def bulk_create(self, objs: Iterable["Flight"], *args: Any, **options: Any) -> list["Flight"]:
        flights = list(objs)
        with transaction.atomic():
            touch_planes(flights)
            return super().bulk_create(flights, *args, **options)

    def update(self, **values: Any) -> int:
        with transaction.atomic():
            before = self.lock()
            flights = Flight.objects.filter(pk__in=[flight.pk for flight in before])
            rows = super(FlightQuerySet, flights).update(**values)
            touch_planes([*before, *flights.lock()])
        return rows

    def delete(self) -> tuple[int, dict[str, int]]:
        with transaction.atomic():
            before = self.lock()
            touch_planes(before)
            flights = Flight.objects.filter(pk__in=[flight.pk for flight in before])
            return super(FlightQuerySet, flights).delete()

    update.alters_data = True  # type: ignore[attr-defined]
    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]


FlightManager = models.Manager.from_queryset(FlightQuerySet)


class Flight(models.Model):
    # The indexes below begin with these two.
    carrier = models.ForeignKey(Airline, models.PROTECT, related_name="+", db_index=False)
    origin = models.ForeignKey(Airport, models.PROTECT, related_name="+", db_index=False)
    destination = models.ForeignKey(Airport, models.PROTECT, related_name="+")
    plane = models.ForeignKey(Plane, models.PROTECT, null=True, blank=True)
    number = models.PositiveSmallIntegerField()
    day = models.DateField(db_index=True, help_text="At the origin; `scheduled` is in UTC.")
    scheduled = models.DateTimeField()
    distance = models.PositiveSmallIntegerField(help_text="Miles.")
    cancelled = models.BooleanField(default=False)
    departure_delay = models.SmallIntegerField(null=True, blank=True, help_text="Minutes.")
    arrival_delay = models.SmallIntegerField(null=True, blank=True, help_text="Minutes.")
    air_time = models.PositiveSmallIntegerField(null=True, blank=True, help_text="Minutes.")

    objects = FlightManager()

    class Meta:
        # What `CarrierDay` and `RouteSummary` are grouped by.
        indexes = (
            models.Index(fields=("carrier", "day"), name="flights_by_carrier_day"),
            models.Index(fields=("origin", "destination"), name="flights_by_route"),
        )

    def __str__(self) -> str:
        return f"{self.carrier_id} {self.number} of {self.day}"

    def save(self, **options: Any) -> None:
        with transaction.atomic():
            before = Flight.objects.filter(pk=self.pk).lock()
            touch_planes([*before, self])
            super().save(**options)

    def delete(self, *args: Any, **options: Any) -> tuple[int, dict[str, int]]:
        with transaction.atomic():
            touch_planes(Flight.objects.filter(pk=self.pk).lock())
            return super().delete(*args, **options)


def touch_planes(flights: Iterable[Flight]) -> None:
    """Before the change where its planes are known: on MariaDB an insert share-locks the rows that
    it points at, and two inserts that both wanted more afterwards would deadlock.
    """
    planes = {flight.plane_id for flight in flights if flight.plane_id}
    Plane.objects.filter(pk__in=planes).touch()
