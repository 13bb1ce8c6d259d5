"""By which columns changed rows lead to keys of a view: read off its queryset."""

from typing import Any

import pytest
from django.db import models
from django.db.models import Count, Exists, F, Max, OuterRef, Q, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce, Lower, TruncDate
from django.db.models.lookups import Exact

from matviews import engine
from matviews.queryset import plan_of
from matviews.registry import registry
from tests.helpers.view_classes import make_view, ready
from tests.shapes.models import Customer, Order, Region, Tag

pytestmark = [pytest.mark.django_db]

OF_CUSTOMER = Order.objects.filter(customer=OuterRef("pk"))
CUSTOMERS = Customer.objects.values(key=F("pk"))
BY_CUSTOMER = Order.objects.filter(customer__isnull=False).values(key=F("customer"))
KEY = [("id",)]


def links_of(rows: QuerySet[Any, Any], **fields: Any) -> dict[str, Any]:
    """The links of a view of a queryset: by table, the logged columns and the tables on the way.

    In front the part of the key that they lead to, if it is not all of it.
    """
    view = ready(
        make_view(
            key=models.BigIntegerField(unique=True),
            value=models.IntegerField(null=True),
            source=classmethod(lambda cls: rows),
            **fields,
        )
    )
    plan = plan_of(registry.find(view), engine.alias())
    names = {"shapes products; --": "product"}
    return {
        names.get(table, table.removeprefix("shapes_")): [
            (
                *([] if link.key_part is None else [f"{plan.source.key[link.key_part].name}:"]),
                *link.columns,
                *(f"-> {step.table.removeprefix('shapes_')}" for step in link.steps),
            )
            for link in found
        ]
        for table, found in plan.links.items()
    }


def links_of_both(rows: QuerySet[Any, Any], more: "models.Field[Any, Any]") -> dict[str, Any]:
    """As `links_of`, with a key that has another field, `more`."""
    return links_of(
        rows,
        more=more,
        MatviewMeta=type("MatviewMeta", (), {"key": ["key", "more"]}),
        meta={"unique_together": [("key", "more")]},
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (CUSTOMERS, {"customer": KEY}),
        (BY_CUSTOMER.annotate(value=Sum("quantity")), {"order": [("customer_id",)]}),
        (
            CUSTOMERS.annotate(value=Sum("order__quantity")),
            {"customer": KEY, "order": [("customer_id",)]},
        ),
        (
            Region.objects.values(key=F("pk")).annotate(value=Count("customer__order__tags")),
            {
                "region": KEY,
                "customer": [("region_id",)],
                "order": [("customer_id", "-> customer")],
                "order_tags": [("order_id", "-> order", "-> customer")],
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
            {"customer": KEY, "order": [("customer_id",)]},
        ),
        (
            CUSTOMERS.filter(~Exists(OF_CUSTOMER.filter(product__price__gt=2, paid=True))),
            {
                "customer": KEY,
                "order": [("customer_id",)],
                "product": [("stock keeping unit", "-> order")],
            },
        ),
        (
            CUSTOMERS.annotate(
                value=Subquery(OF_CUSTOMER.order_by("-slot").values("quantity")[:1])
            ),
            {"customer": KEY, "order": [("customer_id",)]},
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
                "order": [("customer_id",)],
                "order_tags": [("order_id", "-> order")],
            },
        ),
        # Not every row of the subquery belongs to the key then: it concerns all keys.
        (
            CUSTOMERS.filter(
                Exists(Order.objects.filter(Q(customer=OuterRef("pk")) | Q(paid=True)))
            ),
            {"customer": KEY},
        ),
        # Each alternative leads to keys.
        (
            CUSTOMERS.filter(
                Exists(
                    Order.objects.filter(
                        Q(customer=OuterRef("pk")) | Q(customer__referrer=OuterRef("pk"), slot=1)
                    )
                )
            ),
            {
                "customer": [("id",), ("referrer_id",)],
                "order": [("customer_id",), ("customer_id", "-> customer")],
            },
        ),
        (
            CUSTOMERS.annotate(
                value=Subquery(
                    Order.objects.filter(
                        Q(customer=OuterRef("pk")) | Q(customer=OuterRef("referrer")),
                        Q(slot=1) | Q(product__price=OuterRef("pk")),
                    ).values("slot")[:1]
                )
            ),
            {
                "customer": [("id",)],
                "order": [("customer_id",), ("customer_id", "-> customer")],
                "product": [
                    ("stock keeping unit", "-> order"),
                    ("stock keeping unit", "-> order", "-> customer"),
                ],
            },
        ),
        # One way of two: an order by its note, which may be that of any customer.
        (
            CUSTOMERS.filter(
                Exists(
                    Order.objects.filter(Q(customer=OuterRef("pk")) | Q(note__gt=OuterRef("name")))
                )
            ),
            {"customer": KEY},
        ),
        (
            CUSTOMERS.filter(
                Exists(
                    Order.objects.filter(~(Q(customer=OuterRef("pk")) | Q(slot=OuterRef("pk"))))
                )
            ),
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


DAY = TruncDate("placed_at")
WITHOUT_KEYS: dict[str, Any] = {}


def by_region(**more: Any) -> QuerySet[Any, Any]:
    return Order.objects.values(key=F("customer__region"), **more)


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        (
            by_region(more=F("slot")).annotate(value=Sum("product__price")),
            models.IntegerField(),
            {
                "order": [("slot", "customer_id", "-> customer")],
                "customer": [("key:", "region_id")],
                "product": [("stock keeping unit", "-> order", "-> customer")],
            },
        ),
        # Tables between the parts, and from the one side of all of them.
        (
            Region.objects.values(key=F("pk"), more=F("customer__order__tags")).annotate(
                value=Count("customer__order__product__price")
            ),
            models.IntegerField(),
            {
                "region": [("id", "-> customer", "-> order", "-> order_tags")],
                "customer": [("key:", "region_id")],
                "order": [("key:", "customer_id", "-> customer")],
                "order_tags": [("tag_id", "order_id", "-> order", "-> customer")],
                "product": [
                    ("stock keeping unit", "-> order", "-> order_tags", "-> customer"),
                ],
            },
        ),
        # A table that is read twice.
        (
            Order.objects.values(
                key=F("customer__region"), more=F("customer__referrer__region")
            ).annotate(value=Count("pk")),
            models.IntegerField(),
            {
                "order": [("customer_id", "-> customer", "-> customer")],
                "customer": [("region_id", "referrer_id", "-> customer"), ("more:", "region_id")],
            },
        ),
        (
            Order.objects.values(key=F("customer"), more=DAY).annotate(value=Sum("quantity")),
            models.DateField(),
            {"order": [("customer_id", "placed_at")]},
        ),
        (
            by_region(more=DAY).annotate(value=Sum("quantity")),
            models.DateField(),
            {
                "order": [("placed_at", "customer_id", "-> customer")],
                "customer": [("key:", "region_id")],
            },
        ),
        (
            by_region(more=Coalesce("slot", Value(-1))).annotate(value=Count("pk")),
            models.IntegerField(),
            {
                "order": [("slot", "customer_id", "-> customer")],
                "customer": [("key:", "region_id")],
            },
        ),
        (
            by_region(more=Lower("status")).annotate(value=Count("pk")),
            models.CharField(max_length=10),
            {
                "order": [("status", "customer_id", "-> customer")],
                "customer": [("key:", "region_id")],
            },
        ),
        # What no database carries exactly through JSON.
        (
            by_region(more=F("price")).annotate(value=Count("pk")),
            models.DecimalField(max_digits=9, decimal_places=3),
            WITHOUT_KEYS,
        ),
        # No condition on the key commutes with the query, or finds the rows of it.
        (by_region(more=F("slot"))[:5], models.IntegerField(), WITHOUT_KEYS),
        (by_region(more=F("slot")), models.IntegerField(), WITHOUT_KEYS),
        (
            by_region(more=F("slot") / 2).annotate(value=Count("pk")),
            models.IntegerField(),
            WITHOUT_KEYS,
        ),
        (
            by_region(
                more=Coalesce("slot", "customer__referrer", output_field=models.IntegerField())
            ).annotate(value=Count("pk")),
            models.IntegerField(),
            WITHOUT_KEYS,
        ),
        (
            by_region().annotate(value=Count("pk"), more=Max("slot")),
            models.IntegerField(),
            WITHOUT_KEYS,
        ),
        # Computed where there may be no row: the key of no row is none of a row.
        (
            Order.objects.values(key=F("slot"), more=Coalesce("customer__region", Value(-1)))
            .annotate(value=Count("pk")),
            models.IntegerField(),
            WITHOUT_KEYS,
        ),
    ],
)  # fmt: skip
def test_links_to_a_key_that_is_spread_over_tables_or_computed(
    rows: QuerySet[Any, Any],
    more: "models.Field[Any, Any]",
    expected: dict[str, Any],
    own_views: None,
) -> None:
    assert links_of_both(rows, more) == expected


def regions_without(tags: QuerySet[Any, Any]) -> QuerySet[Any, Any]:
    regions = Region.objects.filter(~Exists(tags)).values(key=F("pk"))
    return regions.annotate(value=Max("customer__order__quantity"))


@pytest.mark.parametrize(
    "tags",
    [
        # A tag with the number of a region and the note of an order says nothing of other orders.
        Tag.objects.filter(pk=OuterRef("pk"), label=OuterRef("customer__order__note")),
        # Nor does a region with the name of the note, which is none that this is to find.
        Tag.objects.filter(Exact(OuterRef("name"), OuterRef("customer__order__note"))),
    ],
)
def test_no_way_leads_through_a_subquery_which_may_have_no_row(
    tags: QuerySet[Any, Any], own_views: None
) -> None:
    assert links_of(regions_without(tags))["order"] == [("customer_id", "-> customer")]
