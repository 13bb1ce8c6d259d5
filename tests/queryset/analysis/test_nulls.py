"""Columns that can be NULL, or have fractions, and fields that can hold neither: W021 and W022."""

import json
from typing import Any

import pytest
from django.core.management import call_command
from django.db import models
from django.db.models import (
    Avg,
    Case,
    Count,
    F,
    Func,
    Max,
    OuterRef,
    Q,
    StdDev,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.functions import (
    Abs,
    Cast,
    Coalesce,
    Floor,
    Greatest,
    Lag,
    Lower,
    NullIf,
    Round,
    RowNumber,
    TruncDate,
)

from matviews import checks
from tests.helpers.tables import derived_view, key, made, refreshed
from tests.shapes.models import Customer, Order, Tag

pytestmark = [pytest.mark.database, pytest.mark.django_db, pytest.mark.usefixtures("alone")]

DECIMAL: Any = models.DecimalField(max_digits=12, decimal_places=3)
LAST = Order.objects.filter(customer=OuterRef("pk")).order_by("-pk").values("price")[:1]


def of_order(**columns: Any) -> Any:
    return lambda: Order.objects.order_by().values(ref=F("pk"), **columns)


def by_slot(**columns: Any) -> Any:
    grouped = Order.objects.order_by().filter(slot__isnull=False)
    return lambda: grouped.values(ref=F("slot")).annotate(**columns)


def by_customer(**columns: Any) -> Any:
    return lambda: Customer.objects.order_by().values(ref=F("pk")).annotate(**columns)


def told(rows: Any, field: Any) -> list[tuple[str, str]]:
    derived_view(lambda cls: rows(), ref=key(), n=field)
    found = [
        each for each in checks.check_sources() if each.id in ("matviews.W021", "matviews.W022")
    ]
    return [(str(each.id)[-4:], str(each.msg)) for each in found]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (by_slot(n=Sum("price", filter=Q(paid=True))), "Sum is NULL if its filter matches no row"),
        (by_customer(n=Sum("order__price")), "shapes_order may have no matching row"),
        (by_customer(n=Max("order__price") + 1), "shapes_order may have no matching row"),
        (by_customer(n=Subquery(LAST)), "the subquery may have no row"),
        (by_slot(n=Sum(Cast("weight", DECIMAL))), "shapes.Order.weight may be NULL"),
        (by_slot(n=Coalesce(
            Sum("price", filter=Q(paid=True)), Max("quantity"), output_field=DECIMAL)),
         "shapes.Order.quantity may be NULL"),
        (by_slot(n=StdDev("price", sample=True, output_field=DECIMAL)), "a sample of one row"),
        (of_order(n=Cast("quantity", DECIMAL)), "shapes.Order.quantity may be NULL"),
        (of_order(n=F("product__price")), "may have no matching row"),
        (of_order(n=Case(When(paid=True, then=F("price")))), "Case has no default"),
        (of_order(n=Case(When(paid=True, then=F("product__price")), default=Value(0, DECIMAL))),
         "may have no matching row"),
        (of_order(n=NullIf("price", Value(0, DECIMAL))), "NullIf is NULL"),
        (of_order(n=Window(Lag("price"), order_by="pk")), "Lag without a default"),
        (of_order(n=Value(None, DECIMAL)), "its value is None"),
        (of_order(n=Round(Cast("quantity", DECIMAL))), "shapes.Order.quantity may be NULL"),
        (of_order(n=Greatest(Cast("quantity", DECIMAL), Cast("slot", DECIMAL))), "may be NULL"),
        (lambda: of_order(n=Cast("quantity", DECIMAL))().filter(Q(quantity=1) | Q(paid=True)),
         "shapes.Order.quantity may be NULL"),
    ],
)  # fmt: skip
def test_w021_names_the_column_why_it_can_be_null_and_the_way_out(rows: Any, why: str) -> None:
    ((number, message),) = told(rows, models.DecimalField(max_digits=12, decimal_places=3))

    assert number == "W021"
    assert message.startswith("shapes.Made: column 'n' can be NULL (")
    assert why in message
    assert "the field n cannot" in message


@pytest.mark.parametrize(
    "rows",
    [
        by_slot(n=Sum("price")),
        by_slot(n=Sum("price", filter=Q(paid=True), default=0)),
        by_slot(n=Coalesce(Sum("price", filter=Q(paid=True)), Value(0, DECIMAL))),
        by_customer(n=Coalesce(Subquery(LAST), Value(0, DECIMAL))),
        by_customer(n=Cast(Count("order"), DECIMAL)),
        of_order(n=F("price") + 1),
        lambda: of_order(n=Cast("quantity", DECIMAL))().filter(quantity__isnull=False),
        lambda: of_order(n=Cast("quantity", DECIMAL))().exclude(quantity=None),
        lambda: of_order(n=Cast("quantity", DECIMAL))().filter(quantity__gt=3),
        of_order(n=Func("quantity", Value(0), function="COALESCE", output_field=DECIMAL)),
        of_order(n=Func("quantity", function="of_our_own", output_field=DECIMAL)),
        of_order(n=Case(When(paid=True, then=F("price")), default=Value(0, DECIMAL))),
        of_order(n=Window(Lag("price", default=Value(0, DECIMAL)), order_by="pk")),
        of_order(n=Cast(Window(RowNumber(), order_by="pk"), DECIMAL)),
    ],
)
def test_is_not_for_what_always_has_a_value(rows: Any) -> None:
    assert told(rows, models.DecimalField(max_digits=12, decimal_places=3)) == []


def test_is_not_for_a_field_that_can_be_null() -> None:
    assert (
        told(
            by_customer(n=Sum("order__price")),
            DECIMAL.__class__(max_digits=9, decimal_places=3, null=True),
        )
        == []
    )


def test_w021_is_for_texts_and_dates_too() -> None:
    assert told(of_order(n=Lower("customer__name")), models.CharField(max_length=40)) != []


def test_w021_is_for_dates_too() -> None:
    assert told(of_order(n=TruncDate("placed_at")), models.DateField()) != []


@pytest.mark.parametrize(
    "n", [Avg("slot"), Avg("slot", output_field=models.IntegerField()), Sum("price")]
)
def test_w022_a_number_with_a_fraction_in_a_field_of_whole_numbers(n: Any) -> None:
    found = told(by_slot(n=n), models.IntegerField(null=True))

    assert [number for number, _message in found] == ["W022"]
    assert "column 'n' has a fractional part" in found[0][1]


@pytest.mark.parametrize(
    "n", [Floor(Avg("slot")), Cast(Avg("slot"), models.IntegerField()), Sum("slot")]
)
def test_w022_is_not_for_what_is_made_whole_in_source(n: Any) -> None:
    assert told(by_slot(n=n), models.IntegerField(null=True)) == []


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        (lambda: Order.objects.order_by().values(ref=F("slot")).annotate(n=Count("pk")), 1),
        (lambda: Order.objects.order_by().values(ref=Abs("slot"), n=F("pk")), 2),
        (lambda: Order.objects.order_by().values(ref=F("pk"), n=F("slot")), 0),
    ],
)
def test_rows_whose_key_is_null_are_counted(
    rows: Any, left_out: int, transactional_db: None, capsys: pytest.CaptureFixture[str]
) -> None:
    view = derived_view(lambda cls: rows(), ref=key(), n=models.IntegerField(null=True))
    for slot in (None, None, 3):
        Order.objects.create(slot=slot, price=1, paid=True, status="new")

    with made(view):
        refreshed(view)
        assert view.verify().null_keys == left_out
        for option in ("--verify", "--explain"):
            call_command("update_materialized_views", option, format="json")
            (entry,) = json.loads(capsys.readouterr().out)["views"]
            assert entry["null_keys"] == left_out
            call_command("update_materialized_views", option)
            assert ("left out" in capsys.readouterr().out) == bool(left_out)


def test_w117_a_key_that_may_be_null_names_coalesce() -> None:
    derived_view(lambda cls: Tag.objects.values(ref=F("pk")), ref=key(null=True))

    (fault,) = checks.check_sources()

    assert fault.id == "matviews.W117"
    assert "nulls_distinct=False" in fault.msg
    assert "Coalesce" in str(fault.hint)
