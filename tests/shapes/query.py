"""The parts of a source that a test may choose: which rows, which aggregates, which bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.db import connection, models
from django.db.models import Avg, Count, Exists, F, Max, Min, OuterRef, Q, Sum, Value
from django.db.models.functions import (
    Coalesce,
    TruncDate,
    TruncDay,
    TruncHour,
    TruncMonth,
    TruncWeek,
    TruncYear,
)

__all__ = ["Query"]

Made = Callable[[str], Any]


def _tagged(at: str) -> Q:
    from .models import Order

    return Q(Exists(Order.tags.through._base_manager.filter(order=OuterRef(f"{at}pk"))))


def _dearer(at: str) -> Q:
    return Q(**{f"{at}price__gt": F(f"{at}product__price")})


def _filter(**lookups: Any) -> Made:
    return lambda at: Q(**{f"{at}{lookup}": value for lookup, value in lookups.items()})


# What orders count, by the path `at` that leads to them from the table of the query.
ROWS: list[Made] = [
    lambda at: Q(),
    _filter(paid=True),
    lambda at: ~_filter(status="b")(at),
    _filter(quantity__gt=0),
    _filter(price__gte=Decimal("1.005")),
    _filter(customer__active=True),
    _filter(placed_at__isnull=False, note__contains="%"),
    _filter(extra__kind="a"),
    _filter(customer__region__name__in=["a", "Ä", "'; --"]),
    _dearer,
    _tagged,
]
# A whole number of orders, never NULL.
COUNTS: list[Made] = [
    lambda at: Count(f"{at}pk", distinct=True),
    lambda at: Count(f"{at}quantity"),
    lambda at: Count(f"{at}product", distinct=True),
    lambda at: Count(f"{at}tags"),
    lambda at: Count(f"{at}pk", filter=_filter(paid=True)(at)),
    lambda at: Coalesce(Sum(F(f"{at}quantity") * 2 - 1), Value(-7)),
]
# A whole number of orders, or NULL.
SUMS: list[Made] = [
    lambda at: Sum(f"{at}quantity"),
    lambda at: Max(f"{at}quantity"),
    lambda at: Min(f"{at}slot", filter=_filter(paid=False)(at)),
    lambda at: Sum(f"{at}slot", distinct=True),
]
# Money of orders, or NULL.
MONEY: list[Made] = [
    lambda at: Sum(f"{at}price"),
    lambda at: Avg(f"{at}price"),
    lambda at: Min(f"{at}price", filter=_filter(paid=True)(at)),
    lambda at: Sum(F(f"{at}price") * F(f"{at}quantity")),
    lambda at: Avg(F(f"{at}price") * Decimal("1.19")),
]
# A float of orders, or NULL.
MEANS: list[Made] = [
    lambda at: Avg(f"{at}quantity"),
    lambda at: Sum(f"{at}weight"),
    lambda at: Avg(f"{at}weight", filter=_filter(paid=True)(at)),
    lambda at: Max(F(f"{at}weight") * 3.5 + F(f"{at}slot"), output_field=models.FloatField()),
]
MOMENTS: list[Callable[..., Any]] = [TruncMonth, TruncDay, TruncHour, TruncWeek, TruncYear]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One member of a family of sources. Numbers choose from the lists above, turning around.

    Attributes:
        rows: which orders.
        count, total, money, mean: which aggregates.
        bound: for thresholds and slices.
        form: whatever else a view can do in two or more ways.
    """

    rows: int = 0
    count: int = 0
    total: int = 0
    money: int = 0
    mean: int = 0
    bound: int = 0
    form: int = 0

    def orders(self, at: str = "") -> Q:
        """The condition on orders, which lie at the end of the path `at`."""
        condition: Q = _chosen(ROWS, self.rows)(at)
        return condition

    def measures(self, at: str = "") -> dict[str, Any]:
        """Columns `orders`, `total`, `money` and `mean`."""
        return {
            "orders": _chosen(COUNTS, self.count)(at),
            "total": _chosen(SUMS, self.total)(at),
            "money": _chosen(MONEY, self.money)(at),
            "mean": _chosen(MEANS, self.mean)(at),
        }

    def zone(self) -> tzinfo | None:
        """A time zone that the database knows; None stands for the project's."""
        if not connection.features.has_zoneinfo_database:
            return None
        half_past = timezone(timedelta(hours=5, minutes=30))
        zones = [None, ZoneInfo("America/New_York"), half_past]
        return zones[self.bound % len(zones)]

    def day(self, field: str) -> Any:
        """The day of a moment."""
        return TruncDate(field, tzinfo=self.zone())

    def moment(self, field: str) -> Any:
        """The beginning of the period that a moment lies in."""
        return _chosen(MOMENTS, self.form)(field, tzinfo=self.zone())


def _chosen(options: Sequence[Any], number: int) -> Any:
    return options[number % len(options)]
