"""Warnings for a `source()`: W006 to W010, W012, W037, W039, W040; W107 and what is skipped."""

# ruff: noqa: N806 - variables that are models

import random
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.apps import apps
from django.core.checks import CheckMessage, run_checks
from django.db import OperationalError, connection, models
from django.db.models import Count, F, OuterRef, Q, Subquery, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Now, Random, TruncDate, TruncMonth
from django.utils import timezone

from matviews import MaterializedView, checks
from matviews.definition import ViewFault, define
from matviews.queryset import plan_of
from matviews.queryset.analysis.reading import find_source
from matviews.queryset.analysis.sql_text import tables_named, zones_named
from matviews.registry import registry
from tests.helpers.tables import derived_view, key, model, unique
from tests.helpers.view_classes import six_hooks
from tests.shapes.models import Customer, Order, Product, grouped
from tests.shapes.query import Query

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db,
    pytest.mark.usefixtures("alone"),
]


DAY: "models.DateField[Any, Any]" = models.DateField()


def found() -> list[CheckMessage]:
    return checks.check_sources()


def only(number: str) -> CheckMessage:
    (problem,) = found()
    assert problem.id == f"matviews.{number}", problem
    return problem


def test_a_sound_view_has_no_problem() -> None:
    derived_view(
        lambda cls: Order.objects.values(ref=F("customer")).annotate(n=Count("pk")),
        ref=key(), n=models.IntegerField(),
    )  # fmt: skip

    assert found() == []
    assert checks.check_views() == []


def test_every_problem_that_keeps_a_view_from_being_derived_is_an_error() -> None:
    derived_view(
        lambda cls: Order.objects.values(ref=F("pk"), n=F("note")),
        ref=key(), n=models.IntegerField(), m=models.IntegerField(),
    )  # fmt: skip

    assert sorted(each.id or "" for each in found()) == ["matviews.W116"] * 2
    assert all(isinstance(each, ViewFault) for each in found())


class TestW006:
    @pytest.mark.parametrize(
        ("rows", "part", "why"),
        [
            (lambda: Order.objects.values(ref=F("pk"), at=Now()), "the column at", "Now()"),
            (lambda: Order.objects.filter(placed_at__lt=Now()).values(ref=F("pk")),
             "the filter", "Now()"),
            (lambda: Order.objects.filter(placed_at__lt=timezone.now()).values(ref=F("pk")),
             "the filter", "other parameters"),
            (lambda: Order.objects.values(ref=F("pk"), at=Value(timezone.now())),
             "the column at", "other parameters"),
            (lambda: Order.objects.values(ref=F("pk"), chance=Random()),
             "the column chance", "Random()"),
            (lambda: Order.objects.order_by("?").values(ref=F("pk"))[:2],
             "the ordering", "Random()"),
            (lambda: Order.objects.order_by().values(ref=F("pk")).union(
                Order.objects.order_by().filter(placed_at__lt=Now()).values(ref=F("pk"))),
             "query 2 of the union", "Now()"),
            (lambda: Customer.objects.values(ref=F("pk"), at=Subquery(
                Order.objects.filter(customer=OuterRef("pk"), placed_at__lt=timezone.now())
                .order_by("placed_at").values("placed_at")[:1])),
             "the column at", "other parameters"),
            (lambda: Order.objects.values(ref=F("customer")).annotate(n=Count("pk"))
             .filter(n__lt=random.randrange(10**9)), "the filter", "other parameters"),
        ],
    )  # fmt: skip
    def test_names_the_part_that_changes_by_itself(self, rows: Any, part: str, why: str) -> None:
        derived_view(
            lambda cls: rows(), ref=key(), at=models.DateTimeField(null=True),
            chance=models.FloatField(null=True), n=models.IntegerField(null=True),
        )  # fmt: skip

        warning = only("W006")

        assert warning.msg.startswith(f"shapes.Made: {part} of source() changes by itself (")
        assert why in warning.msg
        assert "every refresh is full and writes the rows" in (warning.hint or "")

    def test_a_moment_that_is_the_same_in_each_call_is_none(self) -> None:
        begin = timezone.now() - timedelta(days=1)
        derived_view(
            lambda cls: Order.objects.filter(placed_at__gt=begin).values(ref=F("pk")), ref=key()
        )

        assert found() == []


class TestW007:
    def test_names_the_index_to_add_where_only_that_keeps_windows_out(self) -> None:
        derived_view(
            lambda cls: Order.objects.values("status", ref=F("quantity")).annotate(n=Count("pk")),
            key=["ref", "status"], meta=unique("ref", "status"), ref=models.IntegerField(),
            status=models.CharField(max_length=10), n=models.IntegerField(),
        )  # fmt: skip

        warning = only("W007")

        assert "no index of shapes.Order begins with quantity, status" in warning.msg
        assert "full refreshes stage the whole source" in warning.msg
        assert 'models.Index(fields=["quantity", "status"])' in (warning.hint or "")

    def test_a_joined_table_without_an_index_would_be_read_by_each_batch(self) -> None:
        Line = model(
            "Line",
            order=models.ForeignKey(Order, models.CASCADE, db_index=False, related_name="lines"),
        )
        derived_view(
            lambda cls: Order.objects.values(ref=F("pk")).annotate(n=Count("lines")),
            ref=key(), n=models.IntegerField(),
        )  # fmt: skip

        warning = only("W007")

        assert f"no index of {Line._meta.label} begins with order" in warning.msg
        assert "each batch reads the whole table" in warning.msg
        assert 'models.Index(fields=["order"])' in (warning.hint or "")

    def test_is_not_for_what_is_staged_for_another_reason(self) -> None:
        derived_view(
            lambda cls: Order.objects.order_by("quantity").values(ref=F("quantity"))[:3],
            ref=key(),
        )  # fmt: skip

        assert [each.id for each in found()] == ["matviews.W040"]


class TestW008:
    @pytest.mark.parametrize(
        ("meta", "n"),
        [
            (None, {"unique": True}),
            (unique("n"), {}),
            (unique("n", condition=Q(n__gt=0)), {}),
            ({"unique_together": [("n",)]}, {}),
        ],
    )
    def test_a_second_unique_constraint(self, meta: Any, n: dict[str, Any]) -> None:
        derived_view(
            lambda cls: Order.objects.values(ref=F("pk"), n=F("slot")),
            key=["ref"], meta=meta, ref=key(), n=models.IntegerField(null=True, **n),
        )  # fmt: skip

        assert "n must be unique but is not the key" in only("W008").msg

    def test_is_not_for_one_that_the_key_implies_or_that_source_does_not_fill(self) -> None:
        derived_view(
            lambda cls: Order.objects.values(ref=F("pk"), n=F("slot")),
            key=["ref"], meta=unique("ref", "n"), ref=key(), n=models.IntegerField(null=True),
            own=models.IntegerField(null=True, unique=True),
        )  # fmt: skip

        assert found() == []


class TestW009:
    def test_a_foreign_key_that_the_database_enforces(self) -> None:
        derived_view(
            lambda cls: Order.objects.values("customer").annotate(n=Count("pk")),
            customer=models.OneToOneField(Customer, models.CASCADE, related_name="+"),
            n=models.IntegerField(),
        )

        warning = only("W009")

        assert "foreign key customer to shapes.Customer" in warning.msg
        assert "db_constraint=False and on_delete=models.DO_NOTHING" in (warning.hint or "")

    def test_is_for_views_with_hooks_too(self) -> None:
        model(
            "Hooked", bases=(MaterializedView, models.Model),
            customer=models.ForeignKey(Customer, models.CASCADE, related_name="+"), **six_hooks(),
        )  # fmt: skip

        only("W009")

    def test_is_not_for_a_foreign_key_without_a_constraint(self) -> None:
        derived_view(
            lambda cls: Order.objects.values("customer").annotate(n=Count("pk")),
            customer=models.OneToOneField(
                Customer, models.DO_NOTHING, related_name="+", db_constraint=False
            ),
            n=models.IntegerField(),
        )

        assert found() == []


def test_w010_a_key_whose_collation_differs_between_source_and_view() -> None:
    collation = {"postgresql": "C", "mysql": "utf8mb4_bin", "sqlite": "NOCASE"}[connection.vendor]
    derived_view(
        lambda cls: Product.objects.values("sku"),
        sku=models.CharField(max_length=40, unique=True, db_collation=collation),
    )

    warning, full = found()

    assert (warning.id, full.id) == ("matviews.W010", "matviews.W040")
    assert "key field sku has another collation" in warning.msg
    assert warning.hint == "Set the same db_collation on both fields."


@pytest.mark.parametrize("field", [models.FloatField, models.IntegerField])
def test_w037_a_key_that_has_no_exact_text(field: type[Any]) -> None:
    measure = model("Measure", value=field(unique=True))
    derived_view(lambda cls: measure.objects.values("value"), value=field(unique=True))

    warnings = [each for each in found() if each.id == "matviews.W037"]

    if field is models.IntegerField or connection.vendor == "sqlite":
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.msg.startswith("shapes.Made: key field value is ")
        assert warning.msg.endswith("so all keys are one batch, and every refresh is full.")


@pytest.mark.parametrize(("strategy", "warned"), [("by_keys", True), ("full", False)])
def test_w039_a_strategy_that_the_view_cannot_have(strategy: str, warned: bool) -> None:
    derived_view(
        lambda cls: Order.objects.values(ref=F("pk"))[:10],
        options={"strategy": strategy},
        ref=models.IntegerField(unique=True),
    )
    warnings = [each.msg for each in found() if each.id == "matviews.W039"]
    assert len(warnings) == warned
    assert not warned or warnings[0] == (
        "shapes.Made: MatviewMeta.strategy is 'by_keys', but it cannot be refreshed by keys: "
        "a slice depends on all rows. Every refresh is full."
    )


class TestW012:
    @staticmethod
    def open_orders(**options: Any) -> None:
        someone = Order.objects.order_by().filter(paid=False).values("customer")
        derived_view(
            lambda cls: Customer.objects.filter(pk__in=someone).values(ref=F("pk")),
            options=options, ref=key(),
        )  # fmt: skip

    def test_names_the_table_whose_changes_lead_to_no_key_and_what_reads_it(self) -> None:
        self.open_orders()

        warning = only("W012")

        assert warning.msg == (
            "shapes.Made: changes to shapes.Order, which the filter of source() reads, cannot be "
            "mapped to keys, so every change triggers a full refresh."
        )
        assert "depends_on = {'shapes.Order': None}" in str(warning.hint)

    def test_names_the_column_whose_subquery_it_is(self) -> None:
        before = Order.objects.filter(pk__lt=OuterRef("pk")).order_by("-pk").values("slot")[:1]
        derived_view(
            lambda cls: Customer.objects.values(ref=F("pk"), n=Subquery(before)),
            ref=key(), n=models.IntegerField(null=True),
        )  # fmt: skip

        assert "shapes.Order, which the column n of source() reads" in only("W012").msg

    @pytest.mark.parametrize(
        "options",
        [{"depends_on": {Order: None}}, {"depends_on": {Order: "customer"}}, {"tracking": False}],
    )
    def test_is_not_for_what_the_view_tells_itself(self, options: dict[str, Any]) -> None:
        self.open_orders(**options)

        assert found() == []

    def test_is_for_a_staged_view_that_can_be_computed_for_some_keys_alone(self) -> None:
        of_some = Order.objects.filter(
            customer__in=Customer.objects.filter(active=True).values("pk")
        )
        derived_view(
            lambda cls: of_some.order_by().values(ref=F("quantity")).annotate(n=Count("pk")),
            ref=key(), n=models.IntegerField(),
        )  # fmt: skip

        assert plan_of(registry.find("shapes.Made"), "default").strategy.staged
        told = [each.msg for each in found() if each.id == "matviews.W012"]
        assert len(told) == 1
        assert "shapes.Customer, which the filter of source() reads" in told[0]

    def test_is_not_for_a_view_of_which_any_change_concerns_the_whole(self) -> None:
        derived_view(lambda cls: Order.objects.order_by("pk").values(ref=F("pk"))[:5], ref=key())

        assert [each.id for each in found()] == ["matviews.W040"]


class TestW040:
    @pytest.mark.parametrize(
        ("source", "field", "reason", "way_out"),
        [
            (
                lambda cls: Order.objects.order_by("pk").values(ref=F("pk"))[:5],
                key, "a slice depends on all rows", "Slice the view when it is read.",
            ),
            (
                lambda cls: Order.objects.order_by().values(ref=F("customer"), n=F("slot")),
                key, "the same key", "or use a key that is unique in a table",
            ),
            # What a row of the key determines, but the key does not.
            (
                lambda cls: Order.objects.order_by().values(
                    ref=F("slot"), n=F("customer__region")
                ).annotate(m=Count("pk")),
                key, "they are also grouped by n, which the key may not determine",
                "Use an aggregate, like Max(...), for n, or add it to the key.",
            ),
            (
                lambda cls: Order.objects.order_by().values(ref=Cast("note", models.IntegerField()))
                .annotate(m=Count("pk")),
                key, "computed by Cast to a whole number", 'under "Computed keys"',
            ),
        ],
    )  # fmt: skip
    def test_names_what_makes_every_refresh_full_and_the_way_out(
        self, source: Any, field: Any, reason: str, way_out: str
    ) -> None:
        derived_view(
            source,
            ref=field(), n=models.IntegerField(null=True), m=models.IntegerField(null=True),
        )  # fmt: skip

        warning = only("W040")

        assert warning.msg.startswith("shapes.Made: every change triggers a full refresh: ")
        assert reason in warning.msg
        assert way_out in str(warning.hint)

    @pytest.mark.parametrize("strategy", ["full", "full_staged"])
    def test_is_not_for_a_view_that_is_pinned_to_full_refreshes(self, strategy: str) -> None:
        derived_view(
            lambda cls: Order.objects.order_by("pk").values(ref=F("pk"))[:5],
            options={"strategy": strategy}, ref=key(),
        )  # fmt: skip

        assert [each for each in found() if each.id in ("matviews.W040", "matviews.W012")] == []

    def test_is_not_for_a_view_that_is_not_tracked(self) -> None:
        derived_view(
            lambda cls: Order.objects.order_by("pk").values(ref=F("pk"))[:5],
            options={"tracking": False}, ref=key(),
        )  # fmt: skip

        assert found() == []


class TestShards:
    def test_a_windowed_view_may_have_several(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.values(ref=F("pk")), options={"shards": 3}, ref=key()
        )

        assert registry.find(view).problems == ()
        assert found() == []

    def test_e027_names_what_keeps_a_view_at_one(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.order_by("pk").values(ref=F("pk"))[:5],
            options={"shards": 3}, ref=key(),
        )  # fmt: skip

        errors = [each for each in found() if each.id == "matviews.E027"]

        assert registry.find(view).errors == ()  # it is refreshed, in one shard
        assert "MatviewMeta.shards is 3, but a full refresh evaluates its source" in errors[0].msg
        assert "It has one shard" in errors[0].msg

    @pytest.mark.parametrize("deferrable", [None, models.Deferrable.DEFERRED])
    def test_rows_of_two_shards_could_not_exchange_a_unique_value(
        self, deferrable: models.Deferrable | None
    ) -> None:
        one = models.UniqueConstraint(fields=["slot"], name="made_slot", deferrable=deferrable)
        derived_view(
            lambda cls: Order.objects.values("slot", ref=F("pk")),
            options={"shards": 3}, key=["ref"], ref=key(), slot=models.IntegerField(),
            meta={"constraints": [one]},
        )  # fmt: skip

        (error,) = [each for each in found() if each.id == "matviews.E027"]

        assert "slot must be unique, so two rows in different shards" in error.msg

    @pytest.mark.only_on("postgres", reason="only PostgreSQL has exclusion constraints")
    def test_nor_a_range_that_excludes_others(self) -> None:
        from django.contrib.postgres.constraints import ExclusionConstraint

        apart = ExclusionConstraint(name="made_apart", expressions=[("slot", "=")])
        derived_view(
            lambda cls: Order.objects.values("slot", ref=F("pk")),
            options={"shards": 3}, key=["ref"], ref=key(), slot=models.IntegerField(),
            meta={"constraints": [apart]},
        )  # fmt: skip

        (error,) = [each for each in found() if each.id == "matviews.E027"]

        assert "violate the constraint made_apart" in error.msg

    def test_w107_says_that_hooks_and_derived_phases_do_not_mix(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.values(ref=F("pk")), options={"shards": 3}, ref=key(),
            needs_update=classmethod(lambda cls, shard: 0),
            do_update=classmethod(lambda cls, limit, shard: 0),
        )  # fmt: skip

        (error,) = registry.find(view).problems

        assert error.id == "matviews.W107"
        assert "both hooks and phases derived from source()" in error.msg
        assert "Remove shards" in (error.hint or "")


class TestWhatIsNoSource:
    def test_a_field_of_that_name(self) -> None:
        Hooked = model(
            "Hooked", bases=(MaterializedView, models.Model),
            source=models.CharField(max_length=10), **six_hooks(),
        )  # fmt: skip

        assert not registry.find(Hooked).has_source
        assert checks.check_views() == found() == []

    def test_a_method_of_that_name_of_a_view_with_all_hooks(self) -> None:
        Hooked = model(
            "Hooked", bases=(MaterializedView, models.Model),
            source=lambda self: "elsewhere", **six_hooks(),
        )  # fmt: skip

        assert not registry.find(Hooked).has_source
        assert checks.check_views() == found() == []

    def test_a_class_method_of_that_name_of_a_view_with_all_hooks_is_not_called(self) -> None:
        derived_view(lambda cls, year: None, **six_hooks())  # type: ignore[arg-type, misc]

        assert checks.check_views() == found() == []


def test_a_source_that_needs_a_table_before_it_is_migrated_does_not_stop_migrate() -> None:
    def source(cls: Any) -> Any:
        raise OperationalError("no such table")

    derived_view(source, ref=key())

    assert found() == []


def test_the_checks_are_registered() -> None:
    derived_view(lambda cls: Order.objects.values(ref=F("pk"), at=Now()), ref=key(),
                 at=models.DateTimeField())  # fmt: skip

    assert "matviews.W006" in [each.id for each in run_checks(tags=["models"])]


@pytest.mark.database
@pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
def test_a_zone_that_the_database_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database would give NULL for every key, and the view would be empty without a word."""
    monkeypatch.setattr(connection.features, "has_zoneinfo_database", False)
    monkeypatch.setattr(grouped.DayTotal, "query", Query(bound=1))
    monkeypatch.setattr(Query, "zone", lambda _query: ZoneInfo("America/New_York"))

    _source, problems = find_source(define(grouped.DayTotal), "default")

    assert ["America/New_York" in str(problem.msg) for problem in problems] == [True]


@pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
@pytest.mark.parametrize(
    ("rows", "converts"),
    [
        (lambda: Order.objects.values(ref=F("pk"), day=TruncMonth("shipped_on")), False),
        (lambda: Order.objects.filter(shipped_on__month=3).values(ref=F("pk")), False),
        (lambda: Order.objects.filter(placed_at__year=2026).values(ref=F("pk")), False),
        (lambda: Order.objects.values(ref=F("pk"), day=TruncMonth("placed_at", output_field=DAY)),
         True),
        (lambda: Order.objects.filter(placed_at__month=3).values(ref=F("pk")), True),
        (lambda: Order.objects.values(ref=F("pk"), day=TruncDate("placed_at")), True),
    ],
)  # fmt: skip
def test_w116_only_where_a_time_is_converted(
    rows: Any, converts: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    monkeypatch.setattr(connection.features, "has_zoneinfo_database", False)
    view = derived_view(lambda cls: rows(), ref=key(), day=models.DateField(null=True))

    _source, problems = find_source(registry.find(view), "default")

    assert ["Europe/Berlin" in str(each.msg) for each in problems] == [True] * converts


def test_the_zones_of_conversions_are_found_in_sql() -> None:
    sql = "SELECT CONVERT_TZ(IF(a = %s, (b), CONVERT_TZ(c, %s, %s)), %s, %s), %s FROM t"

    assert zones_named(sql, (1, "UTC", "Asia/Tokyo", "UTC", "+05:00", "x")) == {
        "Asia/Tokyo",
        "+05:00",
    }


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ('SELECT 1 FROM "a" T3 LEFT OUTER JOIN "b" ON ("b"."x" = T3."y")', {"a", "b"}),
        ('SELECT 1 FROM "legacy"."item" JOIN `other`.`item` i', {'legacy"."item', "other`.`item"}),
        (
            'SELECT EXTRACT(YEAR FROM "a"."at"), "x" IS DISTINCT FROM y, TRIM(z FROM w) FROM a',
            {"a"},
        ),
        ("SELECT 1 FROM generate_series(1, 2) JOIN (SELECT 2 FROM inner_one) x", {"inner_one"}),
        ("SELECT 'it''s FROM nowhere' FROM only_one", {"only_one"}),
        ("WITH RECURSIVE up (n) AS (SELECT 1 FROM seed) SELECT 1 FROM up", {"WITH", "seed", "up"}),
        ("SELECT CAST(a AS TIMESTAMP WITH TIME ZONE) FROM a", {"a"}),
    ],
)
def test_the_tables_of_a_statement_are_found_in_its_sql(sql: str, names: set[str]) -> None:
    assert tables_named(sql) == names


class TestWhatTheViewDependsOn:
    def raw(self, **options: Any) -> None:
        derived_view(
            lambda cls: Order.objects.values(ref=F("pk"), n=RawSQL("1", [], models.IntegerField())),
            options=options, ref=key(), n=models.IntegerField(),
        )  # fmt: skip

    def test_w119_raw_sql_may_read_any_table(self) -> None:
        self.raw()

        problem = only("W119")

        assert problem.msg == ("shapes.Made: source() contains raw SQL, so its tables are unknown.")
        assert "{} if the SQL reads only tables" in str(problem.hint)

    @pytest.mark.parametrize("options", [{"depends_on": {}}, {"tracking": False}])
    def test_unless_the_view_tells(self, options: dict[str, Any]) -> None:
        self.raw(**options)

        assert {each.id for each in found()} <= {"matviews.W040"}

    @pytest.mark.parametrize(
        ("depends_on", "fault"),
        [
            ({"shapes.Nothing": "pk"}, "there is no model shapes.Nothing"),
            ({"nonsense": "pk"}, "there is no model nonsense"),
            ({Order: "nothing"}, "shapes.Order: Order has no field named 'nothing'"),
            ({Order: "tags"}, "shapes.Order: its table has no column 'tags'"),
            (
                {Order: ["customer", "slot"]},
                "shapes.Order: 2 fields cannot be the key, which has 1",
            ),
        ],
    )
    def test_w120_names_that_are_none(self, depends_on: dict[Any, Any], fault: str) -> None:
        self.raw(depends_on=depends_on)

        assert only("W120").msg == f"shapes.Made: MatviewMeta.depends_on: {fault}."

    def test_w120_a_view_that_names_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw(depends_on={"shapes.Made": None})
        of_label = lambda label: registry.find(label).model  # noqa: E731 - of the tests' models
        monkeypatch.setattr(apps, "get_model", of_label)

        says = "a view cannot depend on itself"
        assert only("W120").msg == f"shapes.Made: MatviewMeta.depends_on: shapes.Made: {says}."
