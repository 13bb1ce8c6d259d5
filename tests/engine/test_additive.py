"""Whether a view is additive: by the code, else by a rule that decides once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models
from django.db.models import Count

from matviews import changes, engine
from matviews.checks import check_additive
from matviews.databases import catalog_of
from matviews.engine import additive
from matviews.engine import current as engine_current
from matviews.models import TrackedTable, ViewControl, ViewShard, ViewSums
from matviews.queryset import plan_of, sharding
from matviews.registry import registry
from tests.helpers.additive_views import Sales, counted, extremes
from tests.helpers.current import differences_now
from tests.helpers.sums import sums_differ
from tests.helpers.tables import derived_view, execute, made, refreshed
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]


@pytest.fixture(autouse=True)
def _low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows are many, five make a large group."""
    monkeypatch.setattr(additive, "MIN_ROWS", 10)
    monkeypatch.setattr(additive, "MIN_ROWS_PER_GROUP", 5)
    monkeypatch.setattr(additive, "FEW_ROWS_PER_GROUP", 2)


@contextmanager
def left_to_the_rule(rows: int = 0, groups: int = 1, source: Any = counted) -> Iterator[Sales]:
    """A view of so many rows, whose triggers are not installed yet."""
    sales = Sales(source, {"additive": None})
    with made(sales.Sale, sales.View):
        sales.add(*((number % groups, 1, None) for number in range(rows)))
        try:
            yield sales
        finally:
            changes.remove(engine.alias())


def install() -> None:
    """What `migrate` does."""
    engine.choose_additive()
    changes.install(engine.alias())


def reason() -> str:
    """Why the only view is additive, or is not; after yes or no."""
    choice = engine.additive_choice(plan_of(next(iter(registry)), engine.alias()))
    return f"{'yes' if choice.is_additive else 'no'}: {choice.reason}"


def test_few_large_groups_are_added_up() -> None:
    with left_to_the_rule(rows=20, groups=2) as sales:
        install()
        refreshed(sales.View)
        sales.add((1, 5, None))
        refreshed(sales.View)

        assert "yes: its source had 20 rows in 2 groups" in reason()
        assert sales.rows()[1]["sales"] == 11
        assert ViewSums.objects.get().drain_number >= 0
        assert sums_differ(sales.View) == 0
        assert differences_now(sales.View) == []
        engine_current._recorded(engine.alias()).forget()
        execute(f"UPDATE {ViewSums.objects.get().table} SET matviews_rows = 99 WHERE shop = 1")
        assert sales.View.current.get(shop=1).sales == 99


@pytest.mark.parametrize(
    ("rows", "groups", "source", "why"),
    [
        (9, 1, counted, "had 9 rows in 1 group"),
        (20, 5, counted, "had 20 rows in 5 groups"),
        (20, 2, extremes, "Max and Min"),
    ],
    ids=["few rows", "small groups", "extremes"],
)
def test_others_are_recomputed_and_log_no_values(
    rows: int, groups: int, source: Any, why: str
) -> None:
    with left_to_the_rule(rows, groups, source) as sales:
        install()
        refreshed(sales.View)
        sales.add((1, 5, None))
        refreshed(sales.View)

        assert reason().startswith("no: ")
        assert why in reason()
        assert not ViewSums.objects.exists()
        assert TrackedTable.objects.get().value_logs == []
        assert changes.present_logs() == set()
        assert engine.verify(sales.View).equal
        assert differences_now(sales.View) == []


def test_a_decision_stays_whatever_the_source_becomes() -> None:
    with left_to_the_rule(rows=20) as sales:
        install()
        sales.Sale._base_manager.all().delete()
        install()

        assert reason().startswith("yes")
        assert ViewSums.objects.exists()


def test_a_definition_that_comes_to_have_extremes_is_added_up_no_longer() -> None:
    with left_to_the_rule(rows=20, groups=2, source=extremes) as sales:
        control = ViewControl.objects.filter(label=sales.View._meta.label)
        control.update(additive=True, additive_reason="its source had counts alone")
        install()

        assert reason().startswith("no: Max and Min")
        assert changes.present_logs() == set()


def test_the_third_view_of_a_table_makes_its_writers_no_slower() -> None:
    with left_to_the_rule(rows=20) as sales:
        more = [
            derived_view(
                lambda cls: sales.Sale._base_manager.values("shop").annotate(sales=Count("pk")),
                name=f"More{number}",
                shop=models.IntegerField(unique=True),
                sales=models.IntegerField(),
            )
            for number in range(2)
        ]
        with made(*more):
            install()
            labels = [each._meta.label for each in (*more, sales.View)]
            decided = ViewControl.objects.filter(label__in=labels).order_by("label")
            found = decided.values_list("additive", flat=True)
            assert list(found) == [True, True, False]
            last = decided.get(additive=False)
            assert last.additive_reason.endswith("has 2 value logs of other views already")
            install()
            assert list(found.all()) == [True, True, False]
            changes.remove(engine.alias())


def test_a_view_that_is_to_have_several_shards_goes_by_keys() -> None:
    with left_to_the_rule(rows=20) as sales:
        ViewControl.objects.filter(label=sales.View._meta.label).update(shard_count=2)
        install()

        assert reason() == "no: its keys are split among several shards"


@pytest.mark.parametrize("split_before", [False, True])
def test_a_view_that_adds_up_has_one_shard_whatever_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, split_before: bool
) -> None:
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)
    with left_to_the_rule(rows=20, groups=2) as sales:
        label = sales.View._meta.label
        changes.install(engine.alias())
        if split_before:
            ViewControl.objects.filter(label=label).update(shard_count=2)
            refreshed(sales.View)
            assert ViewShard.objects.filter(view__label=label).count() == 2
        ViewControl.objects.filter(label=label).update(additive=True, shard_count=2)
        install()
        refreshed(sales.View)
        sales.add((1, 5, None))
        refreshed(sales.View)

        assert ViewShard.objects.filter(view__label=label).count() == 1
        assert ViewSums.objects.get().drain_number >= 0
        assert sums_differ(sales.View) == 0
        assert differences_now(sales.View) == []


def test_a_small_source_that_grows_makes_no_writer_slower() -> None:
    with left_to_the_rule() as sales:
        install()
        sales.add(*([(1, 1, None)] * 20))
        install()

        assert "no: its source had 0 rows" in reason()
        assert not ViewSums.objects.exists()


def test_a_view_that_was_tracked_before_stays_by_keys() -> None:
    with left_to_the_rule(rows=20):
        changes.install(engine.alias())
        install()

        assert reason() == "no: its changes were tracked without value logs before"


def test_removed_triggers_have_it_decided_again() -> None:
    with left_to_the_rule() as sales:
        install()
        sales.add(*([(1, 1, None)] * 20))

        assert command("--triggers", "remove").status == 0
        assert reason() == "no: a rule decides when its triggers are installed"
        assert command("--triggers", "install").status == 0
        assert reason().startswith("yes")


@pytest.mark.parametrize("by_code", [True, False])
def test_the_code_has_the_last_word_and_what_it_said_stays(by_code: bool) -> None:
    with left_to_the_rule(rows=0 if by_code else 20) as sales:
        install()
        options = registry.find(sales.View).options
        object.__setattr__(options, "additive", by_code)
        plan_of.__globals__["_plan_of"].cache_clear()
        install()
        assert reason() == f"{'yes' if by_code else 'no'}: MatviewMeta.additive is {by_code}"
        assert ViewSums.objects.exists() == by_code

        object.__setattr__(options, "additive", None)
        plan_of.__globals__["_plan_of"].cache_clear()
        install()

        assert reason().startswith("yes" if by_code else "no")
        assert ViewSums.objects.exists() == by_code


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite limits no statement")
def test_a_source_that_takes_long_to_count_is_left_by_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_sums: object) -> Any:
        sleep = "pg_sleep(5)" if connection.vendor == "postgresql" else "SLEEP(5)"
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {sleep} FROM shapes_sale")

    monkeypatch.setattr(additive, "count_groups", slow)
    monkeypatch.setattr(additive, "MAX_SECONDS", 0.2)
    with left_to_the_rule(rows=20):
        install()

        assert "no: its groups could not be counted" in reason()


def test_without_its_tables_nothing_is_decided() -> None:
    sales = Sales(options={"additive": None})
    with made(sales.View):
        engine.choose_additive()
        assert ViewControl.objects.get(label=sales.View._meta.label).additive is None

        with made(sales.Sale):
            sales.add(*([(1, 1, None)] * 20))
            install()
            assert reason().startswith("yes")
            changes.remove(engine.alias())


@pytest.mark.only_on("mariadb", reason="others have no types with such long names")
def test_a_reason_of_any_length_is_recorded() -> None:
    with left_to_the_rule():
        values = ", ".join(f"'{number}'" for number in range(100))
        execute(f"ALTER TABLE shapes_sale MODIFY qty enum({values}) NULL")
        install()

        assert reason().startswith("no: shapes_sale.qty is enum(")
        assert TrackedTable.objects.get().table == "shapes_sale"


def test_a_view_that_cannot_be_decided_on_keeps_no_other_from_its_triggers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = additive._measured

    def measured(sums: Any) -> Any:
        if sums.source.definition.label == "shapes.ShopTotal":
            raise ZeroDivisionError("of this view alone")
        return real(sums)

    monkeypatch.setattr(additive, "_measured", measured)
    other = Sales(options={"additive": None}, prefix="Other")
    with left_to_the_rule(rows=20), made(other.Sale, other.View):
        other.add(*([(1, 1, None)] * 20))
        with caplog.at_level("ERROR"):
            call_command("migrate", verbosity=0)

        assert "cannot decide whether" in caplog.text
        controls = ViewControl.objects.filter(label__endswith="ShopTotal").order_by("label")
        assert list(controls.values_list("label", "additive")) == [
            ("shapes.OtherShopTotal", True),
            ("shapes.ShopTotal", None),
        ]
        assert {*TrackedTable.objects.values_list("table", flat=True)} == {
            "shapes_sale",
            "shapes_othersale",
        }


def estimated(monkeypatch: pytest.MonkeyPatch, rows: int, groups: int) -> Callable[[], list[str]]:
    """What the check says while the database's statistics are these."""
    known = {"shapes_sale": rows, "shapes_shoptotal": groups}
    kind = type(catalog_of(engine.alias()))
    monkeypatch.setattr(kind, "estimated_rows", lambda _catalog: known)
    return lambda: [f"{each.id}: {each.msg}" for each in check_additive([engine.alias()])]


def test_a_check_names_what_the_rule_has_made_additive(monkeypatch: pytest.MonkeyPatch) -> None:
    with left_to_the_rule(rows=20):
        found = estimated(monkeypatch, 20, 1)
        assert found() == []
        install()

        [note] = found()
        assert note.startswith(
            "matviews.I001: shapes.ShopTotal is additive, as a rule decided: its source"
        )
        [note] = estimated(monkeypatch, 20, 15)()
        assert "20 rows in 15 groups: recomputing groups would take little" in note


def by_shop(rows: Any) -> Any:
    return rows.values("shop").annotate(sales=Count("pk"))


@pytest.mark.parametrize(
    "source",
    [lambda rows: by_shop(rows.filter(kind=5)), lambda rows: by_shop(rows).filter(sales__gt=2)],
    ids=["of rows", "of groups"],
)
def test_statistics_do_not_tell_what_a_condition_leaves(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with left_to_the_rule(source=source):
        install()

        assert estimated(monkeypatch, 20, 1)() == []


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite has one writer")
def test_a_source_that_is_locked_is_decided_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its changes are logged meanwhile, and without holding up `migrate`."""
    lock = "LOCK TABLE shapes_sale" if connection.vendor == "postgresql" else "LOCK TABLES"
    lock += "" if connection.vendor == "postgresql" else " shapes_sale WRITE"
    with left_to_the_rule(rows=20), closing(connection.copy()) as other:
        monkeypatch.setattr(additive, "MAX_LOCKED", 1.0)
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(lock)
            began = time.monotonic()
            engine.choose_additive()
            assert time.monotonic() - began < additive.MAX_SECONDS / 2
        other.close()

        assert reason() == "no: its source could not be read when the rule had to decide"
        changes.install(engine.alias())
        assert TrackedTable.objects.get().value_logs == []
        install()
        assert reason() == "yes: its source had 20 rows in 1 group when the rule decided"
        assert ViewSums.objects.exists()


def test_a_check_says_when_sums_would_pay_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with left_to_the_rule(source=by_shop):
        install()
        assert estimated(monkeypatch, -1, -1)() == []
        assert estimated(monkeypatch, 9, 1)() == []
        assert estimated(monkeypatch, 20, 5)() == []

        [note] = estimated(monkeypatch, 20, 1)()
        assert "20 rows in 1 group: adding up its changes would take less" in note
        assert reason().startswith("no")


def test_explain_shows_the_decision() -> None:
    with left_to_the_rule(rows=20):
        assert "additive: no: a rule decides when" in command("--explain").out
        install()

        assert "additive: yes: its source had 20 rows in 1 group" in command("--explain").out
        [view] = command("--explain", "--format", "json").document["views"]
        assert (view["additive"], view["additive_reason"][:10]) == (True, "its source")


def test_the_sql_of_the_triggers_has_what_was_decided() -> None:
    with left_to_the_rule(rows=20):
        sql = command("--triggers", "sql").out

        assert "matviews_values_" in sql
        assert "matviews_sums_" in sql
        install()
        assert "All triggers are installed" in command("--triggers", "sql").out
