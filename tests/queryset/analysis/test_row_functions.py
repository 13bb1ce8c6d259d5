"""Which computed keys changed rows lead to: any that equal rows give equal results, never fail."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection, models
from django.db.models import Case, Count, F, Func, Q, Value, When
from django.db.models.functions import (
    MD5,
    Cast,
    Chr,
    Coalesce,
    Collate,
    Concat,
    Extract,
    ExtractYear,
    Greatest,
    Left,
    Length,
    Lower,
    Mod,
    Now,
    NullIf,
    Random,
    Repeat,
    Replace,
    StrIndex,
    Substr,
    Trim,
    TruncDate,
    Upper,
)

from matviews import changes, engine
from matviews.queryset import plan_of
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, execute, made, model
from tests.shapes.models import Order

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

VENDOR = connection.vendor
CHAR: Any = models.CharField(max_length=20)
WHOLE: Any = models.IntegerField()
SLOT: Any = F("slot")
FOLDING = {"mysql": "utf8mb4_general_ci", "sqlite": "NOCASE", "postgresql": "C"}[VENDOR]


def text(**more: Any) -> Any:
    return models.CharField(max_length=200, unique=True, **more)


def number() -> Any:
    return models.IntegerField(unique=True)


def obstacle(expression: Any, field: Any) -> str:
    """Why changed orders do not lead to keys of a view by an expression; "" if they do."""
    view = derived_view(
        lambda cls: Order.objects.values(ref=expression).annotate(n=Count("pk")),
        ref=field,
        n=models.IntegerField(),
    )
    plan = plan_of(registry.find(view), engine.alias())
    links = plan.links.get("shapes_order", ())
    assert bool(links) == plan.strategy.is_incremental
    return plan.strategy.incremental_obstacle


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        (Coalesce("status", Value("")), text),
        (Lower("note"), text),
        (Upper(Trim("status")), text),
        (Func("status", function="upper", output_field=CHAR), text),
        (Substr("status", 2, 3), text),
        (Substr("status", StrIndex("status", Value("@")) + 1), text),
        (Left("status", Length("note") - 1), text),
        (Replace("status", Value("a"), Value("b")), text),
        (Repeat("status", 3), text),
        (Concat("status", Value(" "), "note", output_field=CHAR), text),
        (Concat("status", "slot", output_field=CHAR), text),
        (NullIf("status", Value("a")), text),
        (Case(When(slot=1, then="status"), default="note", output_field=CHAR), text),
        (
            Case(When(Q(slot__gt=1) | ~Q(note__contains="x"), then="status"), default=Value("-")),
            text,
        ),
        (Case(When(customer=1, then="status"), default=None, output_field=CHAR), text),
        (Length("note"), number),
        (SLOT % 10, number),
        (ExtractYear("placed_at") * 100 + Extract("placed_at", "month"), number),
        (Case(When(status="a", then=1), default=2, output_field=WHOLE), number),
    ],
)
def test_what_leads_to_keys(expression: Any, field: Callable[..., Any]) -> None:
    assert obstacle(expression, field()) == ""


@pytest.mark.parametrize(
    ("expression", "field", "reason"),
    [
        # What changes by itself, or depends on settings.
        (Concat("status", Cast(Now(), CHAR), output_field=CHAR), text, "date and time to text"),
        (SLOT + Cast(Random(), WHOLE), number, "exceed the range"),
        (Case(When(weight__gt=Random(), then=1), default=2, output_field=WHOLE), number, "Random"),
        (Case(When(placed_at__gt=Now(), then=1), default=2, output_field=WHOLE), number, "Now,"),
        (Cast("placed_at", CHAR), text, "date and time to text, whose form depends on settings"),
        (Cast("shipped_on", CHAR), text, "Cast of a date to text, whose form depends"),
        (Cast("placed_at", models.DateField()), lambda: models.DateField(unique=True), "Cast to"),
        (Func("status", function="my_own", output_field=CHAR), text, "the function my_own"),
        (Lower("status", function="my_own"), text, "Lower with custom SQL"),
        (Case(When(status__regex="a", then=1), default=2, output_field=WHOLE), number, "regex"),
        # What fails for some rows, which the source may leave out.
        (Cast("status", WHOLE), number, "Cast to a whole number, which fails"),
        (SLOT * F("quantity"), number, "exceed the range"),
        (SLOT / 2, number, "the operator /"),
        (SLOT % F("quantity"), number, "a remainder of a division by a non-constant"),
        (Substr("status", 1, SLOT), text, "a length that is not constant"),
        (Repeat("status", SLOT), text, "a length that is not constant"),
        (Chr("slot"), text, "Chr, which may depend"),
        # What has not the type that it is stored as, on a database without types.
        (Coalesce("slot", Value("x"), output_field=CHAR), text, "Coalesce of values of mixed"),
        (Case(When(slot=1, then=1), default=2, output_field=CHAR), text, "Case of values of"),
        (
            Case(When(status=SLOT, then=1), default=2, output_field=WHOLE),
            number,
            "exact of values of mixed types",
        ),
        (Left("status", SLOT), text, "a position from a column"),
        # Other than columns of one row.
        (Concat("status", "customer__name"), text, "other than columns of one table"),
        (Value("all"), text, "other than columns of one table"),
        (Lower("customer__name"), text, "no matching row"),
        (Greatest("status", "note", output_field=CHAR), text, "Greatest"),
        (MD5("status"), text, "MD5"),
        (Mod("slot", 3, output_field=WHOLE), number, "Mod"),
        (Coalesce(Collate("status", FOLDING), Value("")), text, "Collate inside"),
        # Another collation.
        (Collate("status", FOLDING), text, "another collation in the view"),
        (Lower("status"), lambda: text(db_collation=FOLDING), "another collation in the view"),
    ],
)
def test_what_does_not_and_why(expression: Any, field: Callable[..., Any], reason: str) -> None:
    assert reason in obstacle(expression, field())


def test_a_text_may_be_given_the_collation_of_the_view() -> None:
    assert obstacle(Collate(Lower("status"), FOLDING), text(db_collation=FOLDING)) == ""


@pytest.mark.parametrize(
    "expression",
    [
        Cast("slot", CHAR),
        Case(When(slot__gt=1, then=Value("many")), default=Value("few"), output_field=CHAR),
    ],
)
def test_a_text_from_no_column_has_the_collation_of_the_session(expression: Any) -> None:
    Row = model("Row", slot=models.IntegerField())  # noqa: N806
    collation = {"mysql": {"db_collation": "utf8mb4_bin"}}.get(VENDOR, {})
    view = derived_view(
        lambda cls: Row.objects.values(ref=expression).annotate(n=Count("pk")),
        ref=text(**collation),
        n=models.IntegerField(),
    )
    with made(Row, view):
        changes.install(engine.alias())
        try:
            Row.objects.create(slot=1)
            refreshed(view)
            Row.objects.create(slot=2)
            reasons = refreshed(view)
            warnings = [each for each in run_checks(databases=["default"]) if each.obj is view]
        finally:
            changes.remove(engine.alias())

    # Where that is another than the view's, refreshes are full, and say why in advance.
    assert all("collation_connection" in each for each in reasons) == (VENDOR == "mysql")
    assert ("matviews.W018" in [each.id for each in warnings]) == (VENDOR == "mysql")
    assert set(reasons) == {""} or VENDOR == "mysql"


def refreshed(view: type[Any]) -> list[str]:
    """Refresh a view; why its phases were full."""
    refresh = view_classes.run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert view.verify().equal
    return [run.full_refresh_reason for run in refresh.runs.all()]


@pytest.mark.only_on("sqlite", reason="what SQLite logs has no collation")
def test_a_column_with_another_collation_than_its_model_says() -> None:
    Row = model("Row", word=models.TextField())  # noqa: N806
    size = Case(When(word="a", then=1), default=2, output_field=WHOLE)
    view = derived_view(
        lambda cls: Row.objects.values(ref=size).annotate(n=Count("pk")),
        ref=number(),
        n=models.IntegerField(),
    )
    with made(Row, view):
        table = Row._meta.db_table
        execute(
            f"DROP TABLE {table}",
            f"CREATE TABLE {table} (id integer PRIMARY KEY, word text COLLATE NOCASE)",
        )
        changes.install(engine.alias())
        try:
            Row.objects.create(word="A")
            assert "word has the collation NOCASE" in refreshed(view)[0]
        finally:
            changes.remove(engine.alias())


def test_a_day_is_computed_in_a_time_zone_of_its_own() -> None:
    assert obstacle(TruncDate("placed_at"), models.DateField(unique=True)) == ""
