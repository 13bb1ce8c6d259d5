"""A view whose statements take the longer, the more rows they write."""

from typing import Any

from django.db import connection, models
from django.db.models import Exists, OuterRef, QuerySet

from matviews import MaterializedView

SECONDS_PER_ROW = 0.02


class Slow(MaterializedView, models.Model):
    """One row per item; the server sleeps for each row that a batch writes."""

    key = models.BigIntegerField()

    class MatviewMeta:
        phases = ("insert",)
        include_in_refresh_all = False

    def __str__(self) -> str:
        return str(self.key)

    @classmethod
    def missing(cls) -> QuerySet[Any]:
        from .models import Item

        return Item.objects.filter(~Exists(cls._base_manager.filter(key=OuterRef("pk"))))

    @classmethod
    def needs_insert(cls) -> bool:
        return cls.missing().exists()

    @classmethod
    def do_insert(cls, limit: int) -> int:
        keys = cls.missing().order_by("pk").values_list("pk", flat=True)[:limit]
        rows = cls._base_manager.bulk_create([cls(key=key) for key in keys])
        function = "pg_sleep" if connection.vendor == "postgresql" else "SLEEP"
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s)", [len(rows) * SECONDS_PER_ROW])
        return len(rows)
