"""A small bank: its source tables, and a view of each form that refreshes differ by."""

import os
import time
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, Sum, Window
from django.db.models.functions import Mod, RowNumber

from matviews import Batch, MaterializedView, Shard

from .variables import VERSION

__all__ = [
    "LARGE",
    "Account",
    "AccountTotal",
    "Entry",
    "EntryDetail",
    "Item",
    "KindTotal",
    "Ledger",
    "Ranked",
    "RegionKind",
    "RegionTotal",
    "Visited",
    "smallest_amount",
]

#: How long the ledgers take between reading and writing: a second batch may come in between.
HOOK_SECONDS = 0.03
LARGE = 50  # an amount


def smallest_amount() -> int:
    """What `AccountTotal` counts, by the version of the code."""
    return 0 if int(os.environ.get(VERSION, "0")) % 2 else -(10**9)


def identity(to: str) -> Any:
    """A key that is the key of a row of a source."""
    return models.OneToOneField(to, models.DO_NOTHING, db_constraint=False, related_name="+")


class Account(models.Model):
    region = models.IntegerField()


class Entry(models.Model):
    account = models.ForeignKey(Account, models.CASCADE)
    kind = models.IntegerField()
    amount = models.IntegerField()
    divisor = models.IntegerField(default=1)


class Item(models.Model):
    """What the ledgers have once each."""


class AccountTotal(MaterializedView, models.Model):
    """Groups; its definition depends on the version."""

    account = identity("chaos.Account")
    entries = models.IntegerField()
    total = models.BigIntegerField()

    class MatviewMeta:
        refresh_every = timedelta(seconds=2)
        freshness_target = timedelta(seconds=15)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        counted = Entry.objects.filter(amount__gte=smallest_amount())
        return counted.values("account").annotate(entries=Count("pk"), total=Sum("amount"))


class EntryDetail(MaterializedView, models.Model):
    """A row for each row of a join; a divisor of 0 makes one that cannot be computed."""

    entry = identity("chaos.Entry")
    region = models.IntegerField()
    ratio = models.FloatField()

    class MatviewMeta:
        refresh_on_change = timedelta(seconds=1)
        freshness_target = timedelta(seconds=15)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        ratio = ExpressionWrapper(F("amount") * 1.0 / F("divisor"), models.FloatField())
        return Entry.objects.values(entry=F("pk"), region=F("account__region"), ratio=ratio)


class KindTotal(MaterializedView, models.Model):
    """Few large groups, kept by adding and subtracting."""

    kind = models.IntegerField(unique=True)
    entries = models.IntegerField()
    large = models.IntegerField()
    total = models.BigIntegerField()

    class MatviewMeta:
        additive = True
        refresh_on_change = timedelta(seconds=1)
        freshness_target = timedelta(seconds=15)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Entry.objects.values("kind").annotate(
            entries=Count("pk"), large=Count("pk", filter=Q(amount__gt=LARGE)), total=Sum("amount")
        )


class RegionKind(MaterializedView, models.Model):
    """Groups by columns of two tables."""

    region = models.IntegerField()
    kind = models.IntegerField()
    total = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["region", "kind"], name="chaos_region_kind")]

    class MatviewMeta:
        refresh_every = timedelta(seconds=3)
        freshness_target = timedelta(seconds=15)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return Entry.objects.values("kind", region=F("account__region")).annotate(
            total=Sum("amount")
        )


class Ranked(MaterializedView, models.Model):
    """A window function: its full refreshes are staged."""

    entry = identity("chaos.Entry")
    place = models.IntegerField()

    class MatviewMeta:
        refresh_every = timedelta(seconds=3)
        freshness_target = timedelta(seconds=20)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        place = Window(RowNumber(), partition_by="account", order_by=["-amount", "pk"])
        return Entry.objects.values(entry=F("pk"), place=place)


class RegionTotal(MaterializedView, models.Model):
    """A view over another view."""

    region = models.IntegerField(unique=True)
    accounts = models.IntegerField()
    total = models.BigIntegerField()

    class MatviewMeta:
        refresh_on_change = timedelta(0)
        freshness_target = timedelta(seconds=20)

    @classmethod
    def source(cls) -> QuerySet[Any, Any]:
        return AccountTotal._base_manager.values(region=F("account__region")).annotate(
            accounts=Count("pk"), total=Sum("total")
        )


class Log(MaterializedView, models.Model):
    """A row per item and call, without a unique constraint: a batch done twice shows."""

    key = models.BigIntegerField()

    class Meta:
        abstract = True

    @classmethod
    def missing(cls) -> QuerySet[Item]:
        return Item.objects.filter(~Exists(cls._base_manager.filter(key=OuterRef("pk"))))

    @classmethod
    def insert(cls, keys: list[int]) -> int:
        time.sleep(HOOK_SECONDS)
        return len(cls._base_manager.bulk_create([cls(key=key) for key in keys]))


class Ledger(Log):
    """A hook with `limit`, in two shards."""

    class MatviewMeta:
        phases = ("insert",)
        shards = 2
        batch_size = 20
        refresh_every = timedelta(seconds=2)
        freshness_target = timedelta(seconds=20)

    @classmethod
    def of(cls, shard: Shard) -> QuerySet[Item]:
        return cls.missing().annotate(share=Mod("pk", shard.count)).filter(share=shard.number)

    @classmethod
    def needs_insert(cls, shard: Shard) -> bool:
        return cls.of(shard).exists()

    @classmethod
    def do_insert(cls, limit: int, shard: Shard) -> int:
        return cls.insert(list(cls.of(shard).order_by("pk").values_list("pk", flat=True)[:limit]))


class Visited(Log):
    """A hook with `cursor`, which walks over all items each time."""

    class MatviewMeta:
        phases = ("insert",)
        batch_size = 400
        refresh_every = timedelta(seconds=4)
        freshness_target = timedelta(seconds=30)

    @classmethod
    def needs_insert(cls) -> bool:
        return cls.missing().exists()

    @classmethod
    def do_insert(cls, limit: int, cursor: int | None) -> Batch:
        ahead = Item.objects.filter(pk__gt=cursor or 0).order_by("pk")
        keys = list(ahead.values_list("pk", flat=True)[:limit])
        if not keys:
            return Batch(0, None)
        missing = cls.missing().filter(pk__gt=cursor or 0, pk__lte=keys[-1])
        rows = cls.insert(list(missing.values_list("pk", flat=True)))
        return Batch(rows, keys[-1] if len(keys) == limit else None)
