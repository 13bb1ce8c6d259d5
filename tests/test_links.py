"""By which columns changed rows lead to keys of a view: read off its queryset."""

from typing import Any

import pytest
from django.db import models
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import TruncDate

from matviews import engine
from matviews.queryset import plan_of
from matviews.registry import registry
from tests.defining import make_view, ready
from tests.shapes.models import Customer, Order, Region, Tag

pytestmark = [pytest.mark.django_db]

OF_CUSTOMER = Order.objects.filter(customer=OuterRef("pk"))
CUSTOMERS = Customer.objects.values(key=F("pk"))
BY_CUSTOMER = Order.objects.filter(customer__isnull=False).values(key=F("customer"))
KEY = [("id",)]


def links_of(rows: QuerySet[Any, Any], **fields: Any) -> dict[str, Any]:
    """The links of a view of a queryset: by table, the logged columns and the tables on the way."""
    view = ready(
        make_view(
            key=models.BigIntegerField(unique=True),
            value=models.IntegerField(null=True),
            source=classmethod(lambda cls: rows),
            **fields,
        )
    )
    links = plan_of(registry.find(view), engine.alias()).links
    names = {"shapes products; --": "product"}
    return {
        names.get(table, table.removeprefix("shapes_")): [
            (*link.columns, *(f"-> {step.table.removeprefix('shapes_')}" for step in link.way))
            for link in found
        ]
        for table, found in links.items()
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (CUSTOMERS, {"customer": KEY}),
        (BY_CUSTOMER.annotate(value=Sum("quantity")), {"order": [("customer_id",)]}),
        (
            CUSTOMERS.annotate(value=Sum("order__quantity")),
            {"customer": KEY, "order": [("customer_id", "-> customer")]},
        ),
        (
            Region.objects.values(key=F("pk")).annotate(value=Count("customer__order__tags")),
            {
                "region": KEY,
                "customer": [("region_id", "-> region")],
                "order": [("customer_id", "-> customer", "-> region")],
                "order_tags": [("order_id", "-> order", "-> customer", "-> region")],
            },
        ),
        (
            BY_CUSTOMER.annotate(value=Count("pk", filter=Q(product__price__gt=1))),
            {"order": [("customer_id",)], "product": [("stock keeping unit", "-> order")]},
        ),
        (
            CUSTOMERS.annotate(value=Count("referrer__name")),
            {"customer": [("id",), ("id", "-> customer")]},
        ),
        (
            CUSTOMERS.filter(Exists(OF_CUSTOMER)),
            {"customer": KEY, "order": [("customer_id", "-> customer")]},
        ),
        (
            CUSTOMERS.filter(~Exists(OF_CUSTOMER.filter(product__price__gt=2, paid=True))),
            {
                "customer": KEY,
                "order": [("customer_id", "-> customer")],
                "product": [("stock keeping unit", "-> order", "-> customer")],
            },
        ),
        (
            CUSTOMERS.annotate(value=Subquery(OF_CUSTOMER.order_by("-slot").values("quantity")[:1])),
            {"customer": KEY, "order": [("customer_id", "-> customer")]},
        ),
        (
            CUSTOMERS.annotate(
                value=Subquery(
                    OF_CUSTOMER.filter(
                        Exists(Order.tags.through.objects.filter(order=OuterRef("pk")))
                    ).values("quantity")[:1]
                )
            ),
            {
                "customer": KEY,
                "order": [("customer_id", "-> customer")],
                "order_tags": [("order_id", "-> order", "-> customer")],
            },
        ),
        # Not every row of the subquery belongs to the key then: it concerns all keys.
        (
            CUSTOMERS.filter(Exists(Order.objects.filter(Q(customer=OuterRef("pk")) | Q(paid=True)))),
            {"customer": KEY},
        ),
        (
            CUSTOMERS.filter(Exists(Order.objects.filter(~Q(customer=OuterRef("pk"))))),
            {"customer": KEY},
        ),
        (
            CUSTOMERS.filter(Exists(Order.objects.filter(quantity__lt=OuterRef("pk")))),
            {"customer": KEY},
        ),
        (CUSTOMERS.filter(region__in=Region.objects.filter(name="a")), {"customer": KEY}),
        (
            CUSTOMERS.annotate(value=Subquery(Tag.objects.order_by("pk").values("pk")[:1])),
            {"customer": KEY},
        ),
        # Staged: any change of any table.
        (BY_CUSTOMER.annotate(value=Sum("quantity"))[:5], {}),
        (Order.objects.values(key=F("customer__region")).annotate(value=Sum("quantity")), {
            "customer": [("region_id",)], "order": [("customer_id", "-> customer")],
        }),
    ],
)  # fmt: skip
def test_links(rows: QuerySet[Any, Any], expected: dict[str, Any], own_views: None) -> None:
    assert links_of(rows) == expected


def test_a_key_that_is_spread_over_tables_or_computed_has_none(own_views: None) -> None:
    """No record could name all of its parts, so any change of any table is a full pass."""
    days = Order.objects.annotate(day=TruncDate("placed_at")).values("day", key=F("customer"))
    both = {"unique_together": [("key", "day")]}

    assert (
        links_of(
            days.annotate(value=Sum("quantity")), day=models.DateField(),
            MatviewMeta=type("MatviewMeta", (), {"key": ["key", "day"]}), meta=both,
        )
        == {}
    )  # fmt: skip
