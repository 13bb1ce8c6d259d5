"""Punctuality per carrier and day, written with `cursor`.

There are many days and few of them change. To look for "the first stale days" afresh in each
batch would pass over all the fresh ones again and again. So each batch goes on behind the last
key of the one before, and a refresh looks at every day once.
"""

from datetime import timedelta
from typing import Any, Self

from django.db import models
from django.db.models import Avg, Case, Count, Exists, F, OuterRef, Q, QuerySet, When

from matviews import Batch, MaterializedView

from .sources import Airline, Flight, OperatingDay

__all__ = ["CarrierDay"]

ON_TIME = Case(
    When(flight__arrival_delay__lt=15, then=1.0), default=0.0, output_field=models.FloatField()
)


class CarrierDay(MaterializedView, models.Model):
    """One row per operating day that has flights."""

    # No constraints in the database: they would make changes to the source wait for a refresh.
    operating_day = models.OneToOneField(
        OperatingDay, models.DO_NOTHING, primary_key=True, db_constraint=False
    )
    carrier = models.ForeignKey(
        Airline, models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    day = models.DateField(db_index=True)
    flights = models.PositiveIntegerField()
    cancelled = models.PositiveIntegerField()
    mean_departure_delay = models.FloatField(null=True, help_text="Minutes.")
    mean_arrival_delay = models.FloatField(null=True, help_text="Minutes.")
    on_time_share = models.FloatField(help_text="Arrived, and less than 15 minutes late.")
    source_revision = models.PositiveBigIntegerField()

    class Meta:
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
    def needs_insert(cls) -> int:
        return cls.missing().count()

    @classmethod
    def do_insert(cls, limit: int, cursor: int | None) -> Batch:
        keys = _keys_after(cursor, cls.missing(), limit)
        return Batch(cls.write(keys), _next_cursor(keys, limit))

    @classmethod
    def needs_update(cls) -> int:
        return cls.stale().count()

    @classmethod
    def do_update(cls, limit: int, cursor: int | None) -> Batch:
        keys = _keys_after(cursor, cls.stale(), limit)
        return Batch(cls.write(keys), _next_cursor(keys, limit))

    @classmethod
    def needs_delete(cls) -> int:
        return cls.obsolete().count()

    @classmethod
    def do_delete(cls, limit: int, cursor: int | None) -> Batch:
        keys = _keys_after(cursor, cls.obsolete(), limit)
        rows, _ = cls.objects.filter(pk__in=keys).delete()
        return Batch(rows, _next_cursor(keys, limit))

    @classmethod
    def missing(cls) -> "QuerySet[OperatingDay]":
        return OperatingDay.objects.filter(_has_flights(), carrierday=None)

    @classmethod
    def stale(cls) -> QuerySet[Self]:
        return cls._changed().filter(_has_flights())

    @classmethod
    def obsolete(cls) -> QuerySet[Self]:
        return cls._changed().exclude(_has_flights())

    @classmethod
    def _changed(cls) -> QuerySet[Self]:
        return cls.objects.exclude(source_revision=F("operating_day__revision"))

    @classmethod
    def write(cls, keys: list[int]) -> int:
        """Replace rows, which costs a tenth of `bulk_update`. Nothing may point at them then."""
        # Revision and figures in one statement, so that both are of one moment.
        rows = (
            OperatingDay.objects.filter(pk__in=keys)
            .values("carrier_id", "day", operating_day_id=F("pk"), source_revision=F("revision"))
            .annotate(
                flights=Count("flight"),
                cancelled=Count("flight", filter=Q(flight__cancelled=True)),
                mean_departure_delay=Avg("flight__departure_delay"),
                mean_arrival_delay=Avg("flight__arrival_delay"),
                on_time_share=Avg(ON_TIME),
            )
            .filter(flights__gt=0)
        )
        cls.objects.filter(pk__in=keys).delete()
        return len(CarrierDay.objects.bulk_create(CarrierDay(**row) for row in rows))


def _has_flights() -> Exists:
    return Exists(Flight.objects.filter(operating_day=OuterRef("pk")))


def _keys_after(cursor: int | None, queryset: QuerySet[Any], limit: int) -> list[int]:
    if cursor is not None:
        queryset = queryset.filter(pk__gt=cursor)
    return list(queryset.order_by("pk").values_list("pk", flat=True)[:limit])


def _next_cursor(keys: list[int], limit: int) -> int | None:
    """Behind the last key, or None when this batch has found the last ones."""
    return keys[-1] if len(keys) == limit else None
