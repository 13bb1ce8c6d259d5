"""`explain`: the path of a view, its SQL and its indexes."""

# ruff: noqa: N806 - variables that are models

from datetime import UTC, date, datetime
from typing import Any

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import Count, F, Q

from matviews.exceptions import InvalidView
from matviews.phases import Phase
from matviews.queryset import ExplainedIndex, Explanation
from matviews.queryset import explain as explain_definition
from matviews.queryset.explain import SAMPLE_WINDOW
from matviews.registry import registry
from tests.helpers.tables import derived_view, made, model, refreshed, unique
from tests.shapes.models import Customer, Order

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


def explain(view: type[Any]) -> Explanation:
    return explain_definition(registry.find(view), "default")


def orders(count: int, **values: Any) -> None:
    Order.objects.bulk_create(
        Order(pk=key, slot=key, quantity=key, price=key, status="a", note="", paid=True, **values)
        for key in range(1, count + 1)
    )


def by_customer() -> type[Any]:
    return derived_view(
        lambda cls: Customer.objects.values(ref=F("pk")).annotate(
            n=Count("order", filter=Q(order__status="it's %s")), m=Count("order__pk")
        ),
        ref=models.BigIntegerField(unique=True), n=models.IntegerField(), m=models.IntegerField(),
    )  # fmt: skip


def test_a_windowed_view_is_told_with_its_reason_key_and_indexes() -> None:
    view = by_customer()
    with made(view):
        explanation = explain(view)

    assert explanation.label == "shapes.Made"
    assert explanation.strategy == "windowed"
    assert explanation.reason == "the key is shapes.Customer (id), which an index serves"
    assert explanation.key == ("ref",)
    assert explanation.staging == ""
    assert explanation.indexes == (
        ExplainedIndex(model="shapes.Customer", fields=("id",), declared=True, in_database=True),
        ExplainedIndex(model="shapes.Order", fields=("customer",), declared=True, in_database=True),
        ExplainedIndex(model="shapes.Made", fields=("ref",), declared=True, in_database=True),
    )


def test_the_statements_are_those_of_one_window_with_the_values_written_in() -> None:
    view = by_customer()
    with made(view):
        for key in range(1, SAMPLE_WINDOW + 10):
            Customer(pk=key, name="")
        Customer.objects.bulk_create(Customer(pk=k, name="") for k in range(7, SAMPLE_WINDOW + 20))
        refreshed(view)
        statements = explain(view).statements

    assert list(statements) == list(Phase)
    assert statements[Phase.INSERT].startswith("INSERT INTO ")
    assert "DELETE " in statements[Phase.DELETE]
    assert statements[Phase.UPDATE].startswith(
        "INSERT INTO " if connection.vendor == "mysql" else "UPDATE "
    )
    for statement in statements.values():
        assert "> 7" in statement
        assert f"<= {SAMPLE_WINDOW + 7}" in statement
    assert "it''s %s" in statements[Phase.UPDATE]


def test_the_statements_can_be_run_as_they_are_shown() -> None:
    view = by_customer()
    with made(view):
        Customer.objects.bulk_create(Customer(pk=key, name="") for key in range(1, 9))
        refreshed(view)
        view.objects.filter(ref__gt=2).delete()
        with connection.cursor() as cursor:
            cursor.execute(explain(view).statements[Phase.INSERT])
        found = set(view.objects.values_list("ref", flat=True))

    assert found == set(range(1, 9))  # the sample window begins after the first key


def test_values_of_every_kind_can_be_written_into_a_statement() -> None:
    view = derived_view(
        lambda cls: Order.objects.filter(
            Q(placed_at__lt=datetime(2024, 1, 1, tzinfo=UTC))
            | Q(shipped_on=date(2024, 2, 3)) | Q(note="a'b\\") | Q(price=1.5) | Q(weight=2.5)
            | Q(extra={"a": 1}) | Q(scan=b"\x00'") | Q(basket="0" * 32) | Q(paid=True)
        ).values(ref=F("pk")),
        ref=models.BigIntegerField(unique=True),
    )  # fmt: skip
    with made(view):
        orders(3)
        refreshed(view)
        view.objects.filter(ref=3).delete()
        shown = explain(view).statements[Phase.INSERT]
        with connection.cursor() as cursor:
            cursor.execute(shown)
        found = set(view.objects.values_list("ref", flat=True))

    assert found == {1, 2, 3}
    assert "2024-02-03" in shown


def test_a_staged_view_shows_its_stage_and_the_query_that_fills_it() -> None:
    view = derived_view(
        lambda cls: Order.objects.values(ref=F("quantity")).annotate(n=Count("pk")),
        ref=models.IntegerField(unique=True), n=models.IntegerField(),
    )  # fmt: skip
    with made(view):
        orders(3)
        refreshed(view)
        explanation = explain(view)

    assert explanation.strategy == "staged"
    assert explanation.reason == "no index of shapes.Order begins with quantity"
    assert "COUNT(" in explanation.staging
    assert all("matviews_stage_0" in each for each in explanation.statements.values())
    assert explanation.indexes == (
        ExplainedIndex(
            model="shapes.Order", fields=("quantity",), declared=False, in_database=False
        ),
        ExplainedIndex(model="shapes.Made", fields=("ref",), declared=True, in_database=True),
    )


def test_an_index_that_somebody_made_by_hand_is_seen_but_not_declared() -> None:
    Line = model("Line", number=models.IntegerField())
    view = derived_view(
        lambda cls: Line.objects.values(ref=F("number")).annotate(n=Count("pk")),
        ref=models.IntegerField(unique=True), n=models.IntegerField(),
    )  # fmt: skip
    with made(Line, view):
        with connection.schema_editor() as editor:
            editor.add_index(Line, models.Index(fields=["number"], name="made_by_hand"))
        index = explain(view).indexes[0]

    assert (index.declared, index.in_database) == (False, True)


def test_a_view_without_rows_shows_the_first_window_to_come_or_everything() -> None:
    view = by_customer()
    with made(view):
        nothing = explain(view).statements
        Customer.objects.create(pk=77, name="")
        first = explain(view).statements

    assert "77" not in nothing[Phase.INSERT]
    assert "> 77" in first[Phase.INSERT]


def test_the_rows_are_the_databases_own_estimate() -> None:
    view = by_customer()
    with made(view):
        Customer.objects.bulk_create(Customer(pk=key, name="") for key in range(1, 101))
        before = explain(view).estimated_rows
        refreshed(view)
        with connection.cursor() as cursor:
            table = connection.ops.quote_name(view._meta.db_table)
            cursor.execute(
                f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}"
            )
            cursor.fetchall() if connection.vendor == "mysql" else None
        after = explain(view).estimated_rows

    assert (before, after) == {
        "sqlite": (None, None), "postgresql": (None, 100), "mysql": (0, 100),
    }[connection.vendor]  # fmt: skip


def test_a_view_of_its_key_alone_and_one_with_hooks_of_its_own_show_what_is_derived() -> None:
    view = derived_view(
        lambda cls: Order.objects.values("customer", "status").distinct(),
        meta=unique("customer", "status"), status=models.CharField(max_length=10),
        customer=models.ForeignKey(
            Customer, models.DO_NOTHING, db_constraint=False, related_name="+"),
        needs_delete=classmethod(lambda cls: False), do_delete=classmethod(lambda cls: 0),
    )  # fmt: skip
    with made(view):
        explanation = explain(view)

    # On MariaDB letters of the key may change, though the key stays the same.
    assert list(explanation.statements) == [Phase.INSERT]
    assert explanation.key == ("customer", "status")


def test_a_view_that_cannot_be_derived_says_why() -> None:
    view = derived_view(lambda cls: Order.objects.all(), ref=models.IntegerField(unique=True))

    with pytest.raises(InvalidView, match=r"End it with \.values"):
        explain(view)


def test_a_view_without_its_table_is_an_error_of_the_database() -> None:
    with pytest.raises(DatabaseError):
        explain(by_customer())
