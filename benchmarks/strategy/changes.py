"""Sales, and the changes after which the views are refreshed."""

from collections.abc import Callable
from datetime import date
from typing import Any

from django.db import connection
from django.db.models import F, Q
from django.db.models.functions import Mod

from ..querysets.loading import empty, numbers, tidy
from . import models
from .models import Sale, Store

__all__ = ["CHANGES", "GROUPS", "Change", "load"]

MONTHS, KINDS, STORES, REGIONS, ROWS_PER_SKU = 60, 5, 200, 10, 10
DAYS = {
    "postgresql": "date '2020-01-01' + (n * 7919 % {days})::int",
    "mysql": "date '2020-01-01' + INTERVAL (n * 7919 % {days}) DAY",
    "sqlite": "date('2020-01-01', (n * 7919 % {days}) || ' days')",
}
NEW_DAY = date(2031, 5, 1)

Change = Callable[[type[Any], int], object]

#: The sales of one group of a view; of another group for each number.
GROUPS: dict[type[Any], Callable[[int], Q]] = {
    models.ByKind: lambda n: Q(kind=n % KINDS),
    models.ByMonth: lambda n: Q(day__year=2020 + n % 4, day__month=1 + n % 12),
    models.ByMonthAndStatus: lambda n: Q(
        day__year=2020 + n % 4, day__month=1 + n % 12, status="paid"
    ),
    models.ByKindAndDay: lambda n: Q(kind=n % KINDS, day__day=1 + n % 28),
    models.BySku: lambda n: Q(sku=1 + n),
    models.BySkuWithoutIndex: lambda n: Q(old_sku=1 + n),
    models.ByStore: lambda n: Q(store=1 + n % STORES),
    models.ByRegion: lambda n: Q(store__region=n % REGIONS),
    models.ByRegionAndMonth: lambda n: Q(
        store__region=n % REGIONS, day__year=2020 + n % 4, day__month=1 + n % 12
    ),
    models.Ranking: lambda n: Q(store=1 + n % STORES),
}


def load(rows: int) -> None:
    """Replace all sales by so many, which are spread over all groups of all views."""
    day = DAYS[connection.vendor].format(days=MONTHS * 30)
    status = "CASE n % 3 WHEN 0 THEN 'open' WHEN 1 THEN 'paid' ELSE 'sent' END"
    skus = max(1, rows // ROWS_PER_SKU)
    empty(Sale, Store)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO benchmarks_store (id, region) "
            f"SELECT n, n % {REGIONS} FROM {numbers(STORES)}"
        )
        cursor.execute(
            f"INSERT INTO benchmarks_sale "
            f"(id, kind, status, day, amount, sku, old_sku, store_id) "
            f"SELECT n, n % {KINDS}, {status}, {day}, (n % 1000) / 10.0, "
            f"1 + n * 7907 % {skus}, 1 + n * 7907 % {skus}, 1 + n * 7901 % {STORES} "
            f"FROM {numbers(rows)}"
        )
    tidy(Sale, Store)


def _add(sales: Any) -> None:
    sales.update(amount=F("amount") + 1)


def _one_row(_view: type[Any], number: int) -> None:
    """A row of the newest month."""
    newest = Sale.objects.filter(day__lt=NEW_DAY).order_by("-day", "pk")
    _add(Sale.objects.filter(pk=newest[number : number + 1].get().pk))


def _every(share: int) -> Change:
    """One row of so many; of others for each number."""

    def change(_view: type[Any], number: int) -> None:
        _add(Sale.objects.alias(residue=Mod(F("pk"), share)).filter(residue=number % share))

    return change


def _one_group(view: type[Any], number: int) -> None:
    _add(Sale.objects.filter(GROUPS[view](number)))


def _one_store(_view: type[Any], number: int) -> None:
    """A row of the dimension, with 0.5 % of the sales, moves to the next region."""
    store = Store.objects.filter(pk=1 + number % STORES)
    store.update(region=Mod(F("region") + 1, REGIONS))


def _new_rows(_view: type[Any], number: int) -> None:
    """A thousandth more rows: of new articles, in a new month."""
    rows = Sale.objects.count() // 1_000
    first = 1 + Sale.objects.latest("pk").pk
    month = number % 120
    day = date(NEW_DAY.year + month // 12, 1 + month % 12, 1)
    Sale.objects.bulk_create(
        Sale(
            pk=n, kind=n % KINDS, status="open", day=day, amount=n % 1_000, sku=n, old_sku=n,
            store_id=1 + n % STORES,
        )
        for n in range(first, first + rows)
    )  # fmt: skip


CHANGES: dict[str, Change] = {
    "1 row": _one_row,
    "0.1 %": _every(1_000),
    "1 %": _every(100),
    "10 %": _every(10),
    "1 group": _one_group,
    "1 store": _one_store,
    "new rows": _new_rows,
}
