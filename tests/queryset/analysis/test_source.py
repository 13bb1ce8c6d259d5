"""What is read of `source()`: its columns, its key, and all problems that show before it runs."""

import json
from datetime import UTC, date, datetime, timedelta
from datetime import timezone as dt_timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.core.checks import CheckMessage
from django.db import DatabaseError, connection, models
from django.db.models import Count, F, Sum, Value
from django.db.models.expressions import RawSQL
from django.test import override_settings
from django.utils import timezone, translation
from django.utils.translation import gettext, gettext_lazy

from matviews import Phase
from matviews.contract import Shard
from matviews.engine.batches.hooks import call_do, call_needs
from matviews.exceptions import InvalidView
from matviews.queryset import check_source, plan_of
from matviews.queryset.analysis.parameters import parameter_text
from matviews.queryset.analysis.reading import find_source, read_query, read_source
from matviews.queryset.analysis.source import Source
from matviews.registry import registry
from tests.helpers.tables import derived_view, key, unique
from tests.helpers.view_classes import defined
from tests.shapes.models import Customer, Order, Tag

if connection.vendor == "postgresql":
    from django.contrib.postgres.fields import ArrayField, DateRangeField
    from psycopg.types.json import Json, Jsonb
    from psycopg.types.range import DateRange

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db,
    pytest.mark.usefixtures("alone"),
]

only_with_arrays = pytest.mark.only_on("postgres", reason="only PostgreSQL has arrays and ranges")


def read(source: Any, **members: Any) -> Source:
    definition = registry.find(derived_view(source, **members))
    return read_source(definition, read_query(definition, "default"))


def problem(source: Any, **members: Any) -> CheckMessage:
    found, problems = find_source(registry.find(derived_view(source, **members)), "default")
    assert found is None
    (only,) = problems
    assert isinstance(only.msg, str)
    assert only.msg.startswith("shapes.")
    assert only.hint
    return only


def pointer(**options: Any) -> Any:
    return models.ForeignKey(
        Customer, models.DO_NOTHING, db_constraint=False, related_name="+", **options
    )


class TestColumns:
    @pytest.mark.parametrize("name", ["customer", "customer_id"])
    def test_a_field_is_filled_by_its_name_or_its_attname(self, name: str) -> None:
        source = read(
            lambda cls: Tag.objects.values(**{name: F("pk")}), customer=pointer(unique=True)
        )

        assert [column.field.name for column in source.key] == ["customer"]

    def test_one_may_be_called_pk(self) -> None:
        source = read(
            lambda cls: Order.objects.values("pk"), id=models.BigIntegerField(primary_key=True)
        )

        assert [column.field.name for column in source.key] == ["id"]

    def test_fields_that_the_database_fills_may_be_left_out(self) -> None:
        source = read(
            lambda cls: Order.objects.values(ref=F("pk")), ref=key(),
            empty=models.IntegerField(null=True), zero=models.IntegerField(db_default=0),
        )  # fmt: skip

        assert [column.name for column in source.columns] == ["ref"]

    def test_w116_a_field_that_is_filled_twice(self) -> None:
        found = problem(
            lambda cls: Tag.objects.values(customer=F("pk"), customer_id=F("pk")),
            customer=pointer(unique=True),
        )

        assert found.id == "matviews.W116"
        assert "fills the field customer twice" in found.msg

    def test_w116_a_nearly_right_name(self) -> None:
        found = problem(lambda cls: Order.objects.values(ref=F("pk"), hight=F("slot")), ref=key(),
                        height=models.IntegerField(null=True))  # fmt: skip

        assert found.id == "matviews.W116"
        assert (found.hint or "").startswith("Did you mean height?")


class TestKey:
    def test_is_the_only_unique_constraint(self) -> None:
        source = read(
            lambda cls: Order.objects.values("status", ref=F("slot")).annotate(n=Count("pk")),
            meta=unique("status", "ref"), ref=models.IntegerField(), n=models.IntegerField(),
            status=models.CharField(max_length=10),
        )  # fmt: skip

        assert [column.name for column in source.key] == ["status", "ref"]

    def test_is_in_the_order_that_the_option_gives(self) -> None:
        source = read(
            lambda cls: Order.objects.values("status", ref=F("slot")).annotate(n=Count("pk")),
            key=["ref", "status"], meta=unique("status", "ref"), ref=models.IntegerField(),
            n=models.IntegerField(), status=models.CharField(max_length=10),
        )  # fmt: skip

        assert [column.name for column in source.key] == ["ref", "status"]

    def test_w117_none_and_several(self) -> None:
        def source(cls: Any) -> Any:
            return Order.objects.values(ref=F("pk"), other=F("slot"))

        none = problem(source, ref=models.IntegerField(), other=models.IntegerField(null=True))
        several = problem(source, name="Several", ref=key(), other=key(null=True))

        assert "it has no key" in none.msg
        assert "Add a UniqueConstraint" in (none.hint or "")
        assert "several unique constraints (ref; other)" in several.msg
        assert "MatviewMeta.key" in (several.hint or "")

    def test_w117_a_name_that_is_no_field(self) -> None:
        found = problem(lambda cls: Order.objects.values(ref=F("pk")), key=["reference"], ref=key())

        assert "names reference, but the view has no such field" in found.msg
        assert found.id == "matviews.W117"

    def test_w117_a_key_that_source_lacks(self) -> None:
        found = problem(
            lambda cls: Order.objects.values(n=F("pk")), ref=key(), n=models.IntegerField()
        )

        assert "source() has no column for ref, part of the key (ref)" in found.msg

    def test_w117_a_constraint_with_a_condition_holds_no_key(self) -> None:
        found = problem(
            lambda cls: Order.objects.values(ref=F("pk")), key=["ref"],
            meta=unique("ref", condition=models.Q(ref__gt=0)), ref=models.IntegerField(),
        )  # fmt: skip

        assert "no unique constraint covers its key" in found.msg


class TestReading:
    def test_w115_what_source_raised_is_told(self) -> None:
        def source(cls: Any) -> Any:
            raise RuntimeError("no idea")

        found = problem(source, ref=key())

        assert found.id == "matviews.W115"
        assert "raised RuntimeError: no idea" in found.msg

    def test_w115_a_field_that_is_not_there(self) -> None:
        found = problem(
            lambda cls: Order.objects.values(ref=F("pk")).annotate(n=Sum("nothing")), ref=key()
        )

        assert found.id == "matviews.W115"
        assert "nothing" in found.msg

    def test_w116_all_columns_that_do_not_fit_are_told_at_once(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.values(ref=F("pk"), a=F("note"), b=F("paid")),
            ref=key(), a=models.IntegerField(), b=models.DateField(), c=models.IntegerField(),
        )  # fmt: skip

        _source, problems = find_source(registry.find(view), "default")

        assert [each.id for each in problems] == ["matviews.W116"] * 3

    def test_a_failure_of_the_database_stays_one(self) -> None:
        def source(cls: Any) -> Any:
            raise DatabaseError("gone")

        with pytest.raises(DatabaseError, match="gone"):
            read(source, ref=key())

    def test_the_words_of_a_refusal_are_those_of_the_check(self) -> None:
        with pytest.raises(
            InvalidView, match=r"raised ValueError: x\. It is called without arguments"
        ):
            read(
                lambda cls: int("x") if not cls else (_ for _ in ()).throw(ValueError("x")),
                ref=key(),
            )

    def test_source_is_called_in_the_projects_time_zone(self) -> None:
        zones = []

        def source(cls: Any) -> Any:
            zones.append(timezone.get_current_timezone_name())
            return Order.objects.values(ref=F("pk"))

        with (
            override_settings(TIME_ZONE="America/New_York"),
            timezone.override(ZoneInfo("Asia/Tokyo")),
        ):
            read(source, ref=key())
            assert timezone.get_current_timezone_name() == "Asia/Tokyo"

        assert zones == ["America/New_York"]


class TestPlans:
    """A query is looked into once, and told from every other one."""

    def test_of_the_same_query_is_the_same(self) -> None:
        definition = registry.find(
            derived_view(lambda cls: Order.objects.values(ref=F("pk")), ref=key())
        )

        assert plan_of(definition, "default") is plan_of(definition, "default")

    @pytest.mark.parametrize(
        ("one", "other"), [(1, 2), (1, Decimal(1)), (Decimal("1.0"), Decimal("1.00"))]
    )
    def test_of_other_parameters_is_another(self, one: Any, other: Any) -> None:
        values = [one, other]
        definition = registry.find(
            derived_view(
                lambda cls: Order.objects.values(ref=F("pk"), sum=Value(values[0])),
                ref=key(),
                sum=models.DecimalField(max_digits=9, decimal_places=2),
            )
        )
        first = plan_of(definition, "default")
        values.reverse()
        second = plan_of(definition, "default")

        assert second is not first
        assert second.exact_fingerprint != first.exact_fingerprint

    @only_with_arrays
    def test_parameters_that_have_no_hash(self) -> None:
        labels = [["a"], ["b"]]
        array = ArrayField(models.CharField(max_length=9))
        definition = registry.find(
            derived_view(
                lambda cls: Order.objects.values(
                    ref=F("pk"), labels=Value(labels[0], output_field=array)
                ),
                ref=key(),
                labels=ArrayField(models.CharField(max_length=9)),
            )
        )
        first = plan_of(definition, "default")
        labels.reverse()

        assert plan_of(definition, "default").exact_fingerprint != first.exact_fingerprint


class Color(Enum):
    RED = "red"


class Shade(models.TextChoices):
    DARK = "dark"


def parameters() -> list[tuple[Any, Any, Any]]:
    """Of each kind of parameter: a value, an equal one, and a different one."""
    zone = dt_timezone(timedelta(hours=2))
    found: list[tuple[Any, Any, Any]] = [
        (1, 1, True), (1, 1, 1.0), (float("nan"), float("nan"), float("inf")), ("a", "a", b"a"),
        (Decimal("1.0"), Decimal("1.0"), Decimal("1.00")),
        (Decimal("NaN"), Decimal("NaN"), Decimal(0)),
        (bytearray(b"a"), memoryview(b"a"), b"b"), (UUID(int=1), UUID(int=1), UUID(int=2)),
        (timedelta(1), timedelta(hours=24), timedelta(2)), (Color.RED, Color.RED, "red"),
        (Shade.DARK, Shade("dark"), "light"), ([1, [2]], [1, [2]], [1, ["2"]]),
        ({1, 2}, {2, 1}, {1, 3}),
        ({"a": 1, "b": None}, {"b": None, "a": 1}, {"a": 1, "b": 0}),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 2, tzinfo=zone),
         datetime(2026, 1, 1, tzinfo=zone)),
        (datetime.min.replace(tzinfo=zone), datetime.min.replace(tzinfo=zone), date.min),
        (date(2026, 1, 1), date(2026, 1, 1), date(2026, 1, 2)),
    ]  # fmt: skip
    if connection.vendor == "postgresql":
        of_json = {"a": [1, float("nan")], "b": "x" * 500}
        turned = dict(reversed(of_json.items()))
        found += [
            (Jsonb(of_json), Jsonb(turned), Jsonb({**of_json, "b": "x" * 499 + "y"})),
            (Jsonb({1, 2}, dumps=dumped), Jsonb({2, 1}, dumps=dumped), Jsonb({3}, dumps=dumped)),
            (Jsonb(1), Jsonb(1), Json(1)),
            (DateRange(date(2026, 1, 1), None), DateRange(date(2026, 1, 1), None), DateRange()),
            ([Jsonb(1)], [Jsonb(1)], [Jsonb(2)]),
        ]
    return found


def dumped(value: Any) -> str:
    return json.dumps(sorted(value))


@pytest.mark.parametrize("number", range(len(parameters())))
def test_parameters_are_told_apart_by_their_values(number: int) -> None:
    one, same, other = parameters()[number]

    assert parameter_text(one) == parameter_text(same)
    assert parameter_text(one) != parameter_text(other)


def test_a_parameter_that_nobody_can_tell_apart_is_another_one_each_time() -> None:
    one, other = (lambda: 1), (lambda: 1)

    assert parameter_text(one) != parameter_text(other)


class TestLanguage:
    @staticmethod
    def view() -> Any:
        return derived_view(
            lambda cls: Order.objects.filter(status=gettext("Monday")).values(
                ref=F("pk"),
                day=Value(gettext_lazy("Monday"), models.CharField(max_length=20)),
                bare=RawSQL("%s", [gettext_lazy("Monday")], models.CharField()),
            ),
            options={"depends_on": {}}, ref=key(), day=models.CharField(max_length=20),
            bare=models.CharField(max_length=20),
        )  # fmt: skip

    def test_is_that_of_the_project_whoever_asks(self) -> None:
        definition = registry.find(self.view())
        plans = []
        for language in ("de", "fr"):
            with translation.override(language), timezone.override("Asia/Tokyo"):
                plans.append(plan_of(definition, "default"))
                assert (translation.get_language(), gettext("Monday") == "Monday") == (
                    language,
                    False,
                )

        assert plans[0] is plans[1]
        assert plans[0].source.query.compile()[1].count("Monday") == 3
        assert [each.exact_fingerprint for each in plans] == [
            plan_of(definition, "default").exact_fingerprint
        ] * 2

    @override_settings(LANGUAGE_CODE="de")
    def test_is_that_which_the_settings_name(self) -> None:
        plan = plan_of(registry.find(self.view()), "default")

        assert plan.source.query.compile()[1].count("Montag") == 3

    def test_of_hooks_is_that_of_the_project_too(self) -> None:
        seen: list[Any] = []

        def look(cls: Any) -> int:
            seen.append((translation.get_language(), timezone.get_current_timezone_name()))
            return 0

        hooks = {"needs_insert": classmethod(look), "do_insert": classmethod(look)}
        definition = defined(options={"phases": ["insert"]}, **hooks)
        with translation.override("de"), timezone.override("Asia/Tokyo"):
            call_needs(definition, Phase.INSERT, shard=Shard(0, 1), parked=())
            call_do(definition, Phase.INSERT, limit=1, shard=Shard(0, 1), cursor=None, parked=())

        assert seen == [("en-us", "UTC")] * 2

    def test_of_a_message_is_that_of_whoever_reads_it(self) -> None:
        def source(cls: Any) -> Any:
            raise ValueError(gettext_lazy("Monday"))

        view = derived_view(source, ref=key())
        with translation.override("de"):
            _source, (fault,) = find_source(registry.find(view), "default")

        assert "source() raised ValueError: Montag" in str(fault.msg)


class TestFingerprint:
    def test_a_value_in_json_is_the_same_in_each_call(self) -> None:
        definition = registry.find(
            derived_view(
                lambda cls: Order.objects.filter(extra__a=[1, {"b": 2}]).values(ref=F("pk")),
                ref=key(),
            )
        )

        assert plan_of(definition, "default") is plan_of(definition, "default")
        assert check_source(definition, "default") == []

    def test_a_set_in_another_order_is_the_same_definition(self) -> None:
        wanted = [["a", "b", "c"], ["c", "a", "b"], ["a", "b"]]

        def source(cls: Any) -> Any:
            return Order.objects.filter(status__in=wanted[0], slot__gt=3).values(ref=F("pk"))

        definition = registry.find(derived_view(source, ref=key()))
        prints = []
        while wanted:
            prints.append(plan_of(definition, "default").fingerprint)
            wanted.pop(0)

        assert prints[0] == prints[1] != prints[2]

    def test_a_moment_that_moves_is_the_same_definition(self) -> None:
        definition = registry.find(
            derived_view(
                lambda cls: Order.objects.filter(
                    placed_at__gt=timezone.now() - timedelta(days=30)
                ).values(ref=F("pk")),
                ref=key(),
            )
        )

        assert (
            plan_of(definition, "default").fingerprint == plan_of(definition, "default").fingerprint
        )
        assert (
            plan_of(definition, "default").exact_fingerprint
            != plan_of(definition, "default").exact_fingerprint
        )

    @pytest.mark.parametrize(
        ("field", "one", "other"),
        [
            (models.JSONField(), [1, {"a": 2}], [1, {"a": 3}]),
            (models.JSONField(), "x" * 500 + "a", "x" * 500 + "b"),
            (models.TextField(), "x" * 500 + "a", "x" * 500 + "b"),
            (models.BinaryField(), b"a", b"b"),
        ],
    )
    def test_another_value_is_another_definition(self, field: Any, one: Any, other: Any) -> None:
        values = [one, other]
        definition = registry.find(
            derived_view(
                lambda cls: Order.objects.values(ref=F("pk"), n=Value(values[0], field.clone())),
                ref=key(),
                n=field.clone(),
            )
        )
        prints = [plan_of(definition, "default").fingerprint for _ in range(2)]
        values.reverse()

        assert prints[0] == prints[1] != plan_of(definition, "default").fingerprint

    @only_with_arrays
    def test_dates_in_an_array_or_a_range_move_too(self) -> None:
        days = [date(2026, 1, 1), date(2026, 1, 2)]

        def source(cls: Any) -> Any:
            several = Value(list(days), ArrayField(models.DateField()))
            span = Value(DateRange(days[0], None), DateRangeField())
            return Order.objects.values(ref=F("pk"), n=several, m=span)

        definition = registry.find(
            derived_view(source, ref=key(), n=ArrayField(models.DateField()), m=DateRangeField())
        )
        before = plan_of(definition, "default")
        before.fingerprint, before.exact_fingerprint  # noqa: B018 - computed when they are read
        days[0] = date(2026, 1, 3)
        after = plan_of(definition, "default")

        assert before.fingerprint == after.fingerprint
        assert before.exact_fingerprint != after.exact_fingerprint
