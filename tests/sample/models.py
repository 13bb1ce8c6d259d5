"""Views of every form over one source table, and a table of faults that their hooks commit."""

import logging
import os
import signal
import time
from typing import Any

from django.db import models
from django.db.models import Exists, F, Max, OuterRef, QuerySet
from django.db.models.functions import Mod

from matviews import Batch, MaterializedView, Shard

from .original import MyModel, MyOtherTable  # noqa: F401 - Django looks for models here
from .slow import Slow  # noqa: F401 - Django looks for models here

logger = logging.getLogger(__name__)


class Item(models.Model):
    """The source: one row of each view per item."""

    value = models.IntegerField()


class Fault(models.Model):
    """What the hooks of a view do wrong, so that worker processes can be told to."""

    view = models.CharField(max_length=100)
    hook = models.CharField(max_length=20)
    action = models.CharField(max_length=20)
    seconds = models.FloatField(default=0)

    @classmethod
    def commit(cls, view: type[models.Model], hook: str) -> None:
        """Do what the fault of this hook says, if there is one."""
        for fault in cls.objects.filter(view=view.__name__, hook=hook):
            logger.warning("fault view=%s hook=%s action=%s", fault.view, hook, fault.action)
            if fault.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.action == "raise":
                raise RuntimeError(f"{hook} was told to fail")
            elif fault.action == "sleep":
                time.sleep(fault.seconds)
            else:
                raise ValueError(f"unknown fault {fault.action}")


class Copy(MaterializedView, models.Model):
    """What the views share: a row per item, with its value."""

    key = models.BigIntegerField(unique=True)
    value = models.IntegerField()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.key}={self.value}"

    @classmethod
    def missing(cls) -> QuerySet[Item]:
        return Item.objects.filter(~Exists(cls._base_manager.filter(key=OuterRef("pk"))))

    @classmethod
    def differing(cls) -> QuerySet[Any]:
        source = Item.objects.filter(pk=OuterRef("key"))
        return cls._base_manager.annotate(now=models.Subquery(source.values("value")[:1])).filter(
            ~models.Q(value=F("now"))
        )

    @classmethod
    def surplus(cls) -> QuerySet[Any]:
        return cls._base_manager.filter(~Exists(Item.objects.filter(pk=OuterRef("key"))))

    @classmethod
    def insert(cls, items: QuerySet[Item]) -> int:
        rows = [cls(key=item.pk, value=item.value) for item in items]
        return len(cls._base_manager.bulk_create(rows))

    @classmethod
    def update(cls, rows: QuerySet[Any]) -> int:
        changed = list(rows)
        for row in changed:
            row.value = row.now
        return cls._base_manager.bulk_update(changed, ["value"])

    @classmethod
    def delete_keys(cls, rows: QuerySet[Any]) -> int:
        keys = list(rows.values_list("pk", flat=True))
        return cls._base_manager.filter(pk__in=keys).delete()[0]


class Limited(Copy):
    """Hooks with `limit`."""

    @classmethod
    def needs_insert(cls) -> int:
        Fault.commit(cls, "needs_insert")
        return cls.missing().count()

    @classmethod
    def do_insert(cls, limit: int) -> int:
        rows = cls.insert(cls.missing().order_by("pk")[:limit])
        Fault.commit(cls, "do_insert")
        return rows

    @classmethod
    def needs_update(cls) -> bool:
        return cls.differing().exists()

    @classmethod
    def do_update(cls, limit: int) -> int:
        rows = cls.update(cls.differing().order_by("pk")[:limit])
        Fault.commit(cls, "do_update")
        return rows

    @classmethod
    def needs_delete(cls) -> bool:
        return cls.surplus().exists()

    @classmethod
    def do_delete(cls, limit: int) -> int:
        rows = cls.delete_keys(cls.surplus().order_by("pk")[:limit])
        Fault.commit(cls, "do_delete")
        return rows


class Walked(Copy):
    """Hooks with `cursor`, whose `needs_*` never turn false."""

    @classmethod
    def window(cls, keys: QuerySet[Any], cursor: int | None, limit: int) -> tuple[int, Any, Any]:
        """The keys after `cursor`, up to `limit` of them: low, high, and the next cursor."""
        low = -1 if cursor is None else cursor
        ahead = list(keys.filter(pk__gt=low).order_by("pk").values_list("pk", flat=True)[:limit])
        high = ahead[-1] if ahead else low
        return low, high, high if len(ahead) == limit else None

    @classmethod
    def needs_insert(cls) -> bool:
        return True

    @classmethod
    def do_insert(cls, limit: int, cursor: int | None) -> Batch:
        low, high, after = cls.window(Item.objects.all(), cursor, limit)
        rows = cls.insert(cls.missing().filter(pk__gt=low, pk__lte=high))
        Fault.commit(cls, "do_insert")
        return Batch(rows, after)

    @classmethod
    def needs_update(cls) -> bool:
        return True

    @classmethod
    def do_update(cls, limit: int, cursor: int | None) -> Batch:
        low, high, after = cls.window(cls._base_manager.all(), cursor, limit)
        rows = cls.update(cls.differing().filter(pk__gt=low, pk__lte=high))
        Fault.commit(cls, "do_update")
        return Batch(rows, after)

    @classmethod
    def needs_delete(cls) -> bool:
        return True

    @classmethod
    def do_delete(cls, limit: int, cursor: int | None) -> Batch:
        low, high, after = cls.window(cls._base_manager.all(), cursor, limit)
        return Batch(cls.delete_keys(cls.surplus().filter(pk__gt=low, pk__lte=high)), after)


class Whole(Copy):
    """Hooks that do a whole phase at once, in the manner of the original README."""

    @classmethod
    def needs_insert(cls) -> int:
        return cls.missing().count()

    @classmethod
    def do_insert(cls) -> None:
        cls.insert(cls.missing())

    @classmethod
    def needs_update(cls) -> int:
        return Item.objects.count()

    @classmethod
    def do_update(cls) -> None:
        cls.update(cls.differing())

    @classmethod
    def needs_delete(cls) -> bool:
        return cls.surplus().exists()

    @classmethod
    def do_delete(cls) -> None:
        cls.delete_keys(cls.surplus())


class Sharded(Copy):
    """Hooks with `limit` and `shard`, in two shards."""

    class MatviewMeta:
        shards = 2
        include_in_refresh_all = False

    @classmethod
    def mine(cls, rows: QuerySet[Any], shard: Shard, key: str) -> QuerySet[Any]:
        shares: QuerySet[Any] = rows.annotate(share=Mod(key, shard.count))
        return shares.filter(share=shard.number)

    @classmethod
    def needs_insert(cls, shard: Shard) -> bool:
        return cls.mine(cls.missing(), shard, "pk").exists()

    @classmethod
    def do_insert(cls, limit: int, shard: Shard) -> int:
        Fault.commit(cls, "do_insert")
        return cls.insert(cls.mine(cls.missing(), shard, "pk").order_by("pk")[:limit])

    @classmethod
    def needs_update(cls, shard: Shard) -> bool:
        return cls.mine(cls.differing(), shard, "key").exists()

    @classmethod
    def do_update(cls, limit: int, shard: Shard) -> int:
        return cls.update(cls.mine(cls.differing(), shard, "key").order_by("pk")[:limit])

    @classmethod
    def needs_delete(cls, shard: Shard) -> bool:
        return cls.mine(cls.surplus(), shard, "key").exists()

    @classmethod
    def do_delete(cls, limit: int, shard: Shard) -> int:
        return cls.delete_keys(cls.mine(cls.surplus(), shard, "key").order_by("pk")[:limit])


class Ledger(MaterializedView, models.Model):
    """One row per item and call, without a unique constraint: a batch done twice shows."""

    key = models.BigIntegerField()

    class MatviewMeta:
        phases = ("insert",)
        include_in_refresh_all = False

    def __str__(self) -> str:
        return str(self.key)

    @classmethod
    def needs_insert(cls) -> bool:
        return Item.objects.filter(pk__gt=cls.highest()).exists()

    @classmethod
    def do_insert(cls, limit: int) -> int:
        keys = Item.objects.filter(pk__gt=cls.highest()).order_by("pk")
        rows = [cls(key=key) for key in keys.values_list("pk", flat=True)[:limit]]
        Fault.commit(cls, "before_insert")
        cls._base_manager.bulk_create(rows)
        Fault.commit(cls, "do_insert")
        return len(rows)

    @classmethod
    def highest(cls) -> int:
        return cls._base_manager.aggregate(highest=Max("key"))["highest"] or 0
