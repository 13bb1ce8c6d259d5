"""Aircraft in service, as hooks.

They know which planes have changed (`revised.py`), so a refresh processes only these. Rows are
inserted and updated in batches of `limit`; one statement deletes those of retired planes.
"""

from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from matviews import MaterializedView

from .sources import Plane

__all__ = ["Aircraft"]

FLOWN = Q(flight__cancelled=False)


class Aircraft(MaterializedView, models.Model):
    """One row per plane that is not retired, with or without flights."""

    # No constraint in the database: it would make changes to the source wait for a refresh.
    plane = models.OneToOneField(Plane, models.DO_NOTHING, primary_key=True, db_constraint=False)
    # Not unique: planes may swap their numbers, and their rows may change in different batches.
    tailnum = models.CharField(max_length=6, db_index=True)
    model = models.CharField(max_length=50, blank=True)
    seats = models.PositiveSmallIntegerField(null=True)
    flights = models.PositiveIntegerField()
    miles = models.PositiveBigIntegerField()
    last_seen = models.DateTimeField(null=True)
    source_revision = models.PositiveBigIntegerField()

    class Meta:
        verbose_name_plural = "aircraft"

    class MatviewMeta:
        refresh_every = timedelta(minutes=1)

    def __str__(self) -> str:
        return self.tailnum

    @classmethod
    def needs_insert(cls) -> int:
        return cls.missing().count()

    @classmethod
    def do_insert(cls, limit: int) -> int:
        planes = cls.missing().order_by("pk").values_list("pk", flat=True)[:limit]
        return cls.write(list(planes))

    @classmethod
    def needs_update(cls) -> int:
        return cls.stale().count()

    @classmethod
    def do_update(cls, limit: int) -> int:
        planes = cls.stale().order_by("pk").values_list("pk", flat=True)[:limit]
        return cls.write(list(planes))

    @classmethod
    def needs_delete(cls) -> int:
        return cls.obsolete().count()

    @classmethod
    def do_delete(cls) -> int:
        return cls.obsolete().delete()[0]

    @classmethod
    def missing(cls) -> QuerySet[Plane]:
        return Plane.objects.filter(retired=None, aircraft=None)

    @classmethod
    def stale(cls) -> QuerySet[Self]:
        return cls.objects.filter(plane__retired=None).exclude(source_revision=F("plane__revision"))

    @classmethod
    def obsolete(cls) -> QuerySet[Self]:
        return cls.objects.exclude(plane__retired=None)

    @classmethod
    def write(cls, keys: list[int]) -> int:
        """Replace rows, which costs a tenth of `bulk_update`. Nothing may point at them then."""
        # Revision and figures in one statement, so that both are of one moment.
        rows = (
            Plane.objects.filter(pk__in=keys, retired=None)
            .values("tailnum", "model", "seats", plane_id=F("pk"), source_revision=F("revision"))
            .annotate(
                flights=Count("flight", filter=FLOWN),
                miles=Coalesce(Sum("flight__distance", filter=FLOWN), 0),
                last_seen=Max("flight__scheduled", filter=FLOWN),
            )
        )
        cls.objects.filter(pk__in=keys).delete()
        return len(Aircraft.objects.bulk_create(Aircraft(**row) for row in rows))
