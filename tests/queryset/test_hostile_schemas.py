"""Traps of others' schemas that concern views with `source()`; hostile names and values."""

# ruff: noqa: N806 - variables that are models

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import IntegrityError, connection, models
from django.db.models import (
    Avg,
    Count,
    F,
    FilteredRelation,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Window,
)
from django.db.models.functions import Cast, Rank, TruncDate, TruncDay
from django.test import override_settings
from django.utils import timezone

from matviews import engine
from matviews.models import Refresh
from matviews.phases import Phase
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers import view_classes
from tests.helpers.tables import derived_view, key, made, model, refreshed
from tests.shapes.models import Customer, Order, Region

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_mariadb = connection.vendor == "mysql"
NOTHING = dict.fromkeys(Phase, 0)

NAMES = [
    "two words",
    "select",
    "; -- DROP TABLE victim",
    "it's",
    'say "so"' if on_mariadb else "say `so`",  # the other quotes are those that Django puts around
    "Größe",
    "日本",
    "back\\slash",
    "new",
    "values",
    # Django itself has no percent signs in names on the others.
    *(["100%", "%(name)s"] if connection.vendor == "sqlite" else []),
]
TEXTS = [
    "",
    "'",
    "''",
    '"',
    "\\",
    "\\'",
    "%",
    "%s",
    "%%s",
    "%(x)s",
    "'; DROP TABLE victim; --",
    "NULL",
    "日本",
    "😀",
    "a\nb\r\tc",
    "\x01",
    "x" * 40,
]


def number(**options: Any) -> Any:
    return models.BigIntegerField(**{"null": True, **options})


def order(pk: int, **values: Any) -> Order:
    given: dict[str, Any] = {"price": 0, "status": "a", "note": "", "paid": True, **values}
    return Order.objects.create(pk=pk, **given)


def contents(view: type[Any], *names: str) -> list[Any]:
    return list(view._base_manager.order_by(names[0]).values_list(*names))


class TestHostileNames:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("staged", [False, True])
    def test_names_are_quoted_wherever_they_stand(self, name: str, staged: bool) -> None:
        # Given tables and columns of that name, on both sides, and somebody else's table
        Victim = model("Victim", meta={"db_table": "victim"})
        Rows = model(
            "Rows", ref=models.IntegerField(db_column=name, unique=not staged),
            n=number(db_column=f"n {name}"), meta={"db_table": f"r {name}"[:40]},
        )  # fmt: skip
        view = derived_view(
            lambda cls: Rows.objects.values("ref").annotate(m=Sum("n")),
            ref=models.IntegerField(db_column=name, unique=True),
            m=number(db_column=f"m {name}"), meta={"db_table": f"v {name}"[:40]},
        )  # fmt: skip
        with made(Victim, Rows, view):
            Victim.objects.create()
            Rows.objects.bulk_create(Rows(ref=n, n=n) for n in range(7))
            # When it is refreshed, changed in every way, and refreshed again
            assert refreshed(view, batch_size=3)[Phase.INSERT] == 7
            Rows.objects.filter(ref=1).delete()
            Rows.objects.filter(ref=2).update(n=20)
            Rows.objects.create(ref=9, n=9)
            # Then exactly that has happened
            assert refreshed(view, batch_size=3) == dict.fromkeys(Phase, 1)
            assert contents(view, "ref", "m") == [
                (0, 0),
                (2, 20),
                (3, 3),
                (4, 4),
                (5, 5),
                (6, 6),
                (9, 9),
            ]
            assert refreshed(view) == NOTHING
            assert view.verify().equal
            assert Victim.objects.count() == 1


class TestHostileValues:
    @pytest.mark.parametrize("staged", [False, True])
    def test_values_stay_values_in_keys_columns_and_filters(self, staged: bool) -> None:
        Victim = model("Victim", meta={"db_table": "victim"})
        # A collation by bytes, so that every text is a key of its own.
        by_bytes = {"mysql": "utf8mb4_nopad_bin"}.get(connection.vendor)
        Rows = model(
            "Rows", ref=models.CharField(max_length=40, unique=not staged, db_collation=by_bytes),
            n=models.TextField(),
        )  # fmt: skip
        hidden: list[str] = []
        view = derived_view(
            lambda cls: (
                Rows.objects.exclude(ref__in=hidden).values("ref", "n")
                if not staged
                else Rows.objects.exclude(ref__in=hidden).values("ref", "n").distinct()
            ),
            ref=models.CharField(max_length=40, unique=True, db_collation=by_bytes),
            n=models.TextField(),
        )
        with made(Victim, Rows, view):
            Victim.objects.create()
            Rows.objects.bulk_create(Rows(ref=each, n=each) for each in TEXTS)
            refreshed(view, batch_size=2)
            assert dict(contents(view, "ref", "n")) == {each: each for each in TEXTS}
            assert refreshed(view, batch_size=3) == NOTHING

            for each in TEXTS:
                Rows.objects.filter(ref=each).update(n=f"{each}!")
            refreshed(view, batch_size=2)
            assert dict(contents(view, "ref", "n")) == {each: f"{each}!" for each in TEXTS}

            hidden.extend(TEXTS[::2])
            refreshed(view, batch_size=2)
            assert dict(contents(view, "ref", "n")) == {each: f"{each}!" for each in TEXTS[1::2]}
            assert view.verify().equal
            assert Victim.objects.count() == 1

    @pytest.mark.only_on("sqlite", "mariadb", reason="PostgreSQL has no NUL in text")
    def test_nul_in_a_text(self) -> None:
        view = derived_view(lambda cls: Order.objects.values("note", ref=F("pk")),
                            ref=key(), note=models.TextField())  # fmt: skip
        with made(view):
            order(1, note="a\x00b")
            refreshed(view)
            assert contents(view, "ref", "note") == [(1, "a\x00b")]
            assert refreshed(view) == NOTHING
            Order.objects.update(note="a\x00c")
            assert refreshed(view)[Phase.UPDATE] == 1
            assert contents(view, "ref", "note") == [(1, "a\x00c")]


class TestKeysOfTheView:
    def test_values_that_two_rows_exchange_break_a_second_unique_constraint(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.values("slot", ref=F("pk")), key=["ref"], ref=key(),
            slot=models.IntegerField(unique=True),
        )  # fmt: skip
        with made(view):
            order(1, slot=1), order(2, slot=2)
            refreshed(view)
            Order.objects.update(slot=F("slot") * -1 + 3)

            refresh: Refresh = view_classes.run(view)

            # Either the database takes it in one statement, or what is parked says why not.
            assert refresh.state == RefreshState.SUCCEEDED
            if parked := view.parked():
                assert all("slot" in f"{key.message} {key.columns}" for key in parked)
                assert contents(view, "ref", "slot") == [(1, 1), (2, 2)]
            else:
                assert contents(view, "ref", "slot") == [(1, 2), (2, 1)]

    def test_a_key_twice_is_told_with_the_view(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.values("note", ref=F("slot")),
            ref=models.IntegerField(unique=True), note=models.TextField(),
        )  # fmt: skip
        with made(view):
            order(1, slot=1), order(2, slot=1)
            refresh = view_classes.run(view)

        assert refresh.state == RefreshState.FAILED

    def test_a_column_by_its_attname_where_the_name_is_taken_by_a_relation(self) -> None:
        with pytest.raises(ValueError, match="conflicts with a field"):
            Customer.objects.values(customer=F("pk"))
        view = derived_view(
            lambda cls: Customer.objects.values(customer_id=F("pk")).annotate(n=Count("order")),
            n=models.IntegerField(), customer=models.OneToOneField(
                Customer, models.DO_NOTHING, db_constraint=False, related_name="+"),
        )  # fmt: skip
        with made(view):
            Customer.objects.create(pk=5, name="")
            refreshed(view)
            assert contents(view, "customer_id", "n") == [(5, 0)]


class TestManagers:
    def test_a_view_whose_managers_hide_rows_is_kept_all_the_same(self) -> None:
        class Hiding(models.Manager):  # type: ignore[type-arg]
            def get_queryset(self) -> QuerySet[Any, Any]:
                return super().get_queryset().filter(n__gt=10**6)

        view = derived_view(
            lambda cls: Order.objects.values(ref=F("pk"), n=F("slot")), ref=key(), n=number(),
            objects=Hiding(), meta={"base_manager_name": "objects"},
        )  # fmt: skip
        everything: Any = QuerySet(view).order_by("ref").values_list("ref", "n")
        with made(view):
            order(1, slot=1), order(2, slot=2), order(3, slot=3)
            refreshed(view)
            Order.objects.filter(pk=1).delete()
            Order.objects.filter(pk=2).update(slot=22)
            assert refreshed(view) == {Phase.INSERT: 0, Phase.UPDATE: 1, Phase.DELETE: 1}
            assert list(everything) == [(2, 22), (3, 3)]

    def test_orderings_of_source_and_view_change_nothing(self) -> None:
        view = derived_view(
            lambda cls: (
                Order.objects.order_by("note").values(ref=F("customer")).annotate(n=Count("pk"))
            ),
            ref=key(), n=number(), meta={"ordering": ["-n"]},
        )  # fmt: skip
        with made(view):
            Customer.objects.create(pk=1, name="")
            order(1, customer_id=1, note="b"), order(2, customer_id=1, note="a")
            refreshed(view)
            assert contents(view, "ref", "n") == [(1, 2)]

    def test_a_parent_and_its_child_are_both_read(self) -> None:
        Place = model("Place", title=models.CharField(max_length=10))
        Bar = model("Bar", bases=(Place,), beers=models.IntegerField())
        view = derived_view(
            lambda cls: Bar.objects.values("title", "beers", ref=F("pk")),
            ref=key(), title=models.CharField(max_length=10), beers=models.IntegerField(),
        )  # fmt: skip
        with made(Place, Bar, view):
            bar = Bar.objects.create(title="one", beers=1)
            refreshed(view)
            Place.objects.update(title="two")
            assert refreshed(view)[Phase.UPDATE] == 1
            assert contents(view, "ref", "title", "beers") == [(bar.pk, "two", 1)]
            bar.delete(keep_parents=True)
            assert refreshed(view)[Phase.DELETE] == 1


class Shouting(models.CharField):  # type: ignore[type-arg]
    """Text that is written in capitals and read in small letters, NULL read as ""."""

    def get_prep_value(self, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    def from_db_value(self, value: str | None, *_args: object) -> str:
        return (value or "").lower()


class TestFields:
    def test_fields_that_change_values_on_the_way_are_compared_as_stored(self) -> None:
        Rows = model("Rows", said=Shouting(max_length=10, null=True))
        view = derived_view(
            lambda cls: Rows.objects.values("said", ref=F("pk")), ref=key(),
            said=Shouting(max_length=10, null=True),
        )  # fmt: skip
        with made(Rows, view):
            Rows.objects.bulk_create(
                [Rows(pk=1, said=None), Rows(pk=2, said=""), Rows(pk=3, said="a")]
            )
            refreshed(view)
            assert refreshed(view) == NOTHING
            assert view.verify().equal
            QuerySet(view).filter(ref=1).update(said="")
            assert view.verify().differing == 1
            assert refreshed(view)[Phase.UPDATE] == 1
            assert list(view.objects.filter(said=None).values_list("ref", flat=True)) == [1]

    def test_such_a_field_as_the_key(self) -> None:
        Rows = model("Rows", said=Shouting(max_length=10, unique=True))
        view = derived_view(lambda cls: Rows.objects.values("said"),
                            said=Shouting(max_length=10, unique=True))  # fmt: skip
        with made(Rows, view):
            Rows.objects.bulk_create(Rows(said=f"r{n}") for n in range(9))
            assert refreshed(view, batch_size=2)[Phase.INSERT] == 9
            Rows.objects.filter(said="R4").delete()
            assert refreshed(view, batch_size=2) == {**NOTHING, Phase.DELETE: 1}
            assert view.verify().equal

    def test_positive_fields_and_a_difference_below_zero(self) -> None:
        Rows = model("Rows", a=models.PositiveIntegerField(), b=models.PositiveIntegerField())
        signed = Cast("a", models.IntegerField()) - Cast("b", models.IntegerField())
        plain = derived_view(lambda cls: Rows.objects.values(ref=F("pk"), n=F("a") - F("b")),
                             name="Plain", ref=key(), n=number())  # fmt: skip
        cast = derived_view(lambda cls: Rows.objects.values(ref=F("pk"), n=signed),
                            name="Signed", ref=key(), n=number())  # fmt: skip
        with made(Rows, plain, cast):
            Rows.objects.create(pk=1, a=1, b=3)
            view_classes.run(plain)
            refreshed(cast)
            assert contents(cast, "ref", "n") == [(1, -2)]
            if on_mariadb:  # as the queryset itself does
                [parked] = plain.parked()
                assert "out of range" in parked.message
            else:
                assert contents(plain, "ref", "n") == [(1, -2)]

    def test_a_text_that_is_too_long_is_refused_and_not_cut(self) -> None:
        view = derived_view(lambda cls: Order.objects.values("note", ref=F("pk")), ref=key(),
                            note=models.CharField(max_length=3))  # fmt: skip
        with made(view):
            order(1, note="abcdef")
            refresh = view_classes.run(view)
            if connection.vendor == "sqlite":  # it knows no lengths
                assert contents(view, "ref", "note") == [(1, "abcdef")]
            else:
                assert refresh.state == RefreshState.SUCCEEDED
                assert [key.key for key in view.parked()] == [(1,)]
                assert contents(view, "ref", "note") == []


class TestTime:
    @pytest.fixture
    def _zones(self) -> None:
        if not connection.features.has_zoneinfo_database:
            pytest.skip("the database knows no time zones")

    @pytest.mark.usefixtures("_zones")
    @pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
    def test_days_and_moments_are_those_of_the_project_and_of_no_request(self, zone: str) -> None:
        days = derived_view(
            lambda cls: Order.objects.values(day=TruncDate("placed_at")).annotate(n=Count("pk")),
            name="Days", day=models.DateField(unique=True), n=number(),
        )  # fmt: skip
        moments = derived_view(
            lambda cls: Order.objects.values(day=TruncDay("placed_at"), ref=F("pk")),
            name="Moments", ref=key(), day=models.DateTimeField(),
        )  # fmt: skip
        with made(days, moments), override_settings(TIME_ZONE=zone):
            for hour in range(0, 24, 3):
                order(hour + 1, placed_at=datetime(2024, 5, 5, hour, tzinfo=UTC))
            expected = {row["day"]: row["n"] for row in days.source()}
            begins = {row["ref"]: row["day"] for row in moments.source()}
            with timezone.override(ZoneInfo("Pacific/Auckland")):
                refreshed(days), refreshed(moments)
            assert dict(contents(days, "day", "n")) == expected
            assert len(expected) == 2
            assert dict(contents(moments, "ref", "day")) == begins
            with timezone.override(ZoneInfo("Asia/Tokyo")):
                assert refreshed(days) == refreshed(moments) == NOTHING
                assert days.verify().equal
                assert moments.verify().equal

    def test_a_local_date_in_source_is_that_of_the_project(self) -> None:
        seen: set[date] = set()

        def source(cls: Any) -> Any:
            seen.add(timezone.localdate(datetime(2024, 5, 5, 20, tzinfo=UTC)))
            return Order.objects.values(ref=F("pk"))

        view = derived_view(source, ref=key())
        with made(view), timezone.override(ZoneInfo("Asia/Tokyo")):
            refreshed(view)
            view.verify()

        assert seen == {date(2024, 5, 5)}


class TestWhatMoves:
    def test_now_in_a_filter_is_evaluated_in_each_batch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [datetime(2024, 1, 31, tzinfo=UTC)]
        view = derived_view(
            lambda cls: (
                Order.objects.filter(placed_at__gt=clock[0] - timedelta(days=30))
                .values(ref=F("pk"))
            ),
            ref=key(), options={"phases": ["insert", "delete"]},
        )  # fmt: skip
        with made(view):
            for pk in range(1, 7):
                order(pk, placed_at=datetime(2024, 1, 1 + pk, tzinfo=UTC))
            refreshed(view)
            assert [ref for (ref,) in contents(view, "ref")] == [1, 2, 3, 4, 5, 6]
            # When time passes, then rows go, without a change of definition
            clock[0] += timedelta(days=3)
            assert refreshed(view, batch_size=2) == {Phase.INSERT: 0, Phase.DELETE: 3}
            assert [ref for (ref,) in contents(view, "ref")] == [4, 5, 6]
            assert engine.is_fresh(view._meta.label)

    def test_each_batch_has_its_own_now(self) -> None:
        calls = []

        def source(cls: Any) -> Any:
            calls.append(1)
            return Order.objects.filter(placed_at__lt=timezone.now()).values(ref=F("pk"))

        view = derived_view(source, ref=key())
        with made(view):
            for pk in range(1, 11):
                order(pk, placed_at=datetime(2024, 1, 1, tzinfo=UTC))
            refresh = engine.request(view, batch_size=2)
            calls.clear()
            done = inline.run_to_end(refresh)
            insert = done.runs.get(phase=Phase.INSERT)

            assert insert.batches >= 5
            assert len(calls) >= insert.batches
            assert insert.restarts == 0


class TestMariaDB:
    def test_a_stage_compares_text_as_the_view_does(self) -> None:
        """Whatever the database says now: tables keep the collations they were made with."""
        view = derived_view(
            lambda cls: Customer.objects.values(ref=F("name")),
            ref=models.CharField(max_length=40, unique=True),
        )
        with made(view):
            if on_mariadb:
                table = connection.ops.quote_name(view._meta.db_table)
                with connection.cursor() as cursor:
                    cursor.execute(
                        f"ALTER TABLE {table} MODIFY ref VARCHAR(40) COLLATE utf8mb4_bin"
                    )
            for name in "aAä":
                Customer.objects.create(name=name)
            refreshed(view)
            assert sorted(contents(view, "ref")) == [("A",), ("a",), ("ä",)]
            assert refreshed(view) == NOTHING

    def test_having_under_a_window_function_can_be_inserted_from(self) -> None:
        view = derived_view(
            lambda cls: Order.objects.order_by().values(ref=F("slot")).annotate(n=Count("pk"))
            .filter(n__gt=1).annotate(place=Window(Rank(), order_by=F("n").desc())),
            ref=models.IntegerField(unique=True), n=number(), place=number(),
        )  # fmt: skip
        with made(view):
            for pk in range(1, 11):
                order(pk, slot=int(pk**0.5))
            refreshed(view)
            assert contents(view, "ref", "n", "place") == [(1, 3, 2), (2, 5, 1), (3, 2, 3)]
            assert refreshed(view) == NOTHING


def mean_of_group(cls: Any) -> QuerySet[Any, Any]:
    return Order.objects.values(ref=F("customer")).annotate(n=Avg("weight"))


def mean_of_subquery(cls: Any) -> QuerySet[Any, Any]:
    orders = Order.objects.order_by().filter(customer=OuterRef("pk")).values("customer")
    return Customer.objects.values(ref=F("pk"), n=Subquery(orders.values(n=Avg("weight"))))


@pytest.mark.parametrize("source", [mean_of_group, mean_of_subquery])
def test_a_float_mean_is_not_written_again_for_its_last_digits(source: Any) -> None:
    view = derived_view(source, ref=key(), n=models.FloatField(null=True))
    with made(view):
        Customer.objects.create(pk=1, name="")
        chance = random.Random(1)
        weights = [chance.random() for _ in range(50)]
        for pk, weight in enumerate(weights, 1):
            order(pk, customer_id=1, weight=weight)
        refreshed(view)
        # When the same values lie in another order, then nothing is written
        for pk, weight in enumerate(reversed(weights), 1):
            Order.objects.filter(pk=pk).update(weight=weight)
        assert refreshed(view) == NOTHING


def test_a_real_foreign_key_holds_up_a_delete_of_the_source_until_the_view_lets_go() -> None:
    Rows = model("Rows", n=number())
    view = derived_view(
        lambda cls: Rows.objects.values(row_id=F("pk")), name="Bound",
        row=models.OneToOneField(Rows, models.DO_NOTHING, related_name="+"),
    )  # fmt: skip
    free = derived_view(
        lambda cls: Rows.objects.values(row_id=F("pk")), name="Free",
        row=models.OneToOneField(Rows, models.DO_NOTHING, db_constraint=False, related_name="+"),
    )  # fmt: skip
    with made(Rows, free):
        Rows.objects.create(pk=1)
        refreshed(free)
        Rows.objects.all().delete()
        assert refreshed(free)[Phase.DELETE] == 1
    with made(Rows, view):
        Rows.objects.create(pk=1)
        refreshed(view)
        with pytest.raises(IntegrityError):
            Rows.objects.all().delete()
        QuerySet(view).delete()


def test_a_join_that_only_the_condition_of_another_needs_stays() -> None:
    """Where the keys alone are looked for, joins are left out that only other columns need."""

    def source(cls: Any) -> QuerySet[Any, Any]:
        near = FilteredRelation("order", condition=Q(order__note=F("region__name")))
        buyers = Customer.objects.annotate(near=near).filter(near__paid=True)
        return buyers.values(ref=F("pk")).annotate(n=Count("near"))

    view = derived_view(source, ref=key(), n=number())
    with made(view):
        for pk, name in enumerate("xy", 1):
            region = Region.objects.create(name=name)
            Customer.objects.create(pk=pk, name="", region=region)
            order(pk, customer_id=pk, note="x")
        refreshed(view)
        assert contents(view, "ref", "n") == [(1, 1)]
        Region.objects.update(name="x")
        assert refreshed(view) == {**NOTHING, Phase.INSERT: 1}
        assert view.verify().equal
