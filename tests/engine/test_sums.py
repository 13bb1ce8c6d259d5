"""Additive views: what comes is added, what goes is subtracted, whatever the size of a group."""

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from django.db import connection
from django.db.models import Avg, Count, F, Max, Sum
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine, untracked
from matviews.engine import sums as engine_sums
from matviews.models import ViewShard, ViewSums
from matviews.queryset import BatchRunner, check_source, explain
from matviews.registry import registry
from matviews.states import RefreshStrategy
from matviews.tasks import inline
from tests.helpers.additive_views import (
    DECIMALS,
    Sales,
    additive_of,
    counted,
    kept_of,
    sums_differ,
)
from tests.helpers.engine import let_time_pass
from tests.helpers.state_machines import Killed, killed_before_statement
from tests.helpers.tables import execute, made, refreshed
from tests.helpers.view_classes import run

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sales(transactional_db: None, alone: None) -> Iterator[Sales]:
    """A view of three shops, refreshed."""
    with Sales().tracked() as made:
        made.add((1, 2, "1.10"), (1, None, None), (2, 3, "0.30"), (None, 1, "1"), (3, 5, "2"))
        refreshed(made.View)
        yield made


def verified(sales: Sales) -> bool:
    """Whether the view is as its source, and its sums with what is logged too."""
    return engine.verify(sales.View).equal and sums_differ(sales.View) == 0


def reads_source(sales: Sales, queries: CaptureQueriesContext) -> bool:
    table = sales.Sale._meta.db_table
    written = [
        each["sql"] for each in queries if each["sql"].upper().startswith(("INSERT", "WITH"))
    ]
    return any(f'FROM "{table}"' in sql or f"FROM `{table}`" in sql for sql in written)


def test_a_refresh_adds_what_came_and_subtracts_what_went(sales: Sales) -> None:
    [first, *_others] = sales.Sale._base_manager.order_by("pk")
    sales.add((1, 7, "5"), (4, 1, "1"))
    first.delete()
    sales.Sale._base_manager.filter(shop=2).update(qty=F("qty") + 10, note="x")
    sales.Sale._base_manager.filter(shop=3).update(shop=1)

    with CaptureQueriesContext(connection) as queries:
        refresh = run(sales.View)

    assert {each.strategy for each in refresh.runs.all()} == {RefreshStrategy.BY_KEYS}
    assert sorted(sales.rows()) == [1, 2, 4]
    assert sales.rows()[1]["sales"] == 3
    assert sales.rows()[2]["mean"] == 13.0
    assert not reads_source(sales, queries)
    assert sums_differ(sales.View) == 0


def test_a_group_leaves_when_its_last_row_has(sales: Sales) -> None:
    kept = kept_of(sales.View)

    sales.Sale._base_manager.filter(shop=1).delete()
    refreshed(sales.View)

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT shop FROM {kept.table} ORDER BY shop")
        assert [shop for (shop,) in cursor.fetchall()] == [2, 3]
    sales.add((1, 4, None))
    refreshed(sales.View)
    assert sales.rows()[1]["sales"] == 1
    assert verified(sales)


@pytest.mark.parametrize(
    "number",
    [8, 16, 24, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 45) if n % 8)],
)
def test_a_killed_batch_loses_no_entry(sales: Sales, number: int) -> None:
    sales.add((1, 7, None))
    sales.Sale._base_manager.filter(shop=2).delete()
    engine.request(sales.View)

    with suppress(Killed), killed_before_statement(number):
        inline.drain(_shards(sales))
    let_time_pass()
    inline.drain(_shards(sales))

    assert verified(sales)


def _shards(sales: Sales) -> list[int]:
    shards = ViewShard.objects.filter(view__label=sales.View._meta.label)
    return list(shards.values_list("pk", flat=True))


def test_a_batch_that_fails_after_adding_loses_no_entry(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    sales.add((1, 7, None))
    fail = mock.Mock(side_effect=RuntimeError)
    with monkeypatch.context() as patch:
        patch.setattr(BatchRunner, "run_keys", fail)
        run(sales.View)

    assert fail.called
    assert sums_differ(sales.View) == 0
    refreshed(sales.View)
    assert verified(sales)


def _broken(sales: Sales) -> None:
    """Something outside has changed the sums and the rows."""
    kept, view = kept_of(sales.View), sales.View._meta.db_table
    execute(
        f"UPDATE {kept.table} SET matviews_rows = matviews_rows + 5",
        f"UPDATE {view} SET sales = 99",
    )


@pytest.mark.parametrize("how", ["full", "keys", "repair"])
def test_what_asks_for_the_source_recomputes_the_sums(sales: Sales, how: str) -> None:
    _broken(sales)
    if how == "repair":
        engine.verify(sales.View, repair=True)
    else:
        engine.mark_dirty(sales.View, None if how == "full" else [1, 2, 3])

    sales.add((1, 1, None))
    refreshed(sales.View)

    assert verified(sales)


def test_verifying_a_view_compares_its_sums_too(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    execute(f"UPDATE {kept_of(sales.View).table} SET matviews_sum0 = 7 WHERE shop = 1")
    with caplog.at_level("ERROR"):
        assert engine.verify(sales.View).equal

    assert "differ from its source" in caplog.text
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert verified(sales)


def test_impossible_sums_are_recomputed_and_logged(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    execute(f"UPDATE {kept_of(sales.View).table} SET matviews_rows = 1 WHERE shop = 1")

    sales.Sale._base_manager.filter(shop=1).delete()
    refreshed(sales.View)

    assert verified(sales)
    assert "are recomputed" in caplog.text
    assert kept_of(sales.View).reason


@pytest.mark.skipif(connection.vendor == "sqlite", reason="alters no type of a column")
def test_values_that_an_altered_column_holds_are_not_cut(sales: Sales) -> None:
    """A value log is as narrow as the column was."""
    table = sales.Sale._meta.db_table
    execute(
        f"ALTER TABLE {table} MODIFY kind BIGINT NOT NULL"
        if connection.vendor == "mysql"
        else f"ALTER TABLE {table} ALTER COLUMN kind TYPE bigint"
    )
    execute(f"INSERT INTO {table} (shop, kind, qty, note, owner) VALUES (1, 3000000000, 2, '', 0)")

    for _refresh in range(2):
        refreshed(sales.View)
        assert sales.rows()[1]["total"] == 3 + 6_000_000_001
        assert verified(sales)


def test_untracked_loads_are_not_lost(sales: Sales) -> None:
    with untracked(sales.Sale):
        sales.add((1, 7, None))
        sales.Sale._base_manager.filter(shop=2).delete()

    refreshed(sales.View)

    assert verified(sales)


def test_an_emptied_table_is_not_lost(sales: Sales) -> None:
    table = sales.Sale._meta.db_table
    sales.add((1, 7, None))
    execute(f"DELETE FROM {table}" if connection.vendor == "sqlite" else f"TRUNCATE {table}")
    engine.mark_truncated()
    sales.add((1, 9, None))

    refreshed(sales.View)

    assert list(sales.rows()) == [1]
    assert verified(sales)


def test_upserts_and_replaced_rows_are_counted_once(sales: Sales) -> None:
    table, manager = sales.Sale._meta.db_table, sales.Sale._base_manager
    manager.filter(shop=1).update(code=F("pk"))
    [code, _other] = manager.filter(shop=1).values_list("code", flat=True)
    refreshed(sales.View)

    manager.bulk_create(
        [sales.Sale(shop=2, qty=8, code=code)],
        update_conflicts=True,
        update_fields=["shop", "qty"],
        **({} if connection.vendor == "mysql" else {"unique_fields": ["code"]}),
    )
    manager.bulk_create([sales.Sale(shop=9, qty=8, code=code)], ignore_conflicts=True)
    if connection.vendor != "postgresql":
        execute(
            f"REPLACE INTO {table} (shop, qty, kind, note, owner, code) "
            f"VALUES (3, 4, 1, '', 0, {code})"
        )
    refreshed(sales.View)

    assert verified(sales)


def test_sums_that_cannot_be_read_or_written_leave_the_source(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    """The table may be gone, or the role may have no right to it."""
    execute(f"DROP TABLE {kept_of(sales.View).table}")

    sales.add((1, 7, None))
    refreshed(sales.View)

    assert engine.verify(sales.View).equal
    assert kept_of(sales.View).drain_number == ViewSums.FAILED
    assert "is refreshed without" in caplog.text


def test_a_log_of_unused_sums_is_emptied(sales: Sales, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sums, "TRIMMED_AT_ONCE", 2)
    sales.add(*[(1, n, None) for n in range(7)])
    kept = kept_of(sales.View)
    engine.trim_value_logs()
    assert changes.count_values(kept.log, 100) == 7

    monkeypatch.setattr(engine_sums, "MAX_ENTRIES", 5)
    engine.trim_value_logs()

    assert changes.count_values(kept.log, 100) <= 5
    assert kept_of(sales.View).drain_number == ViewSums.STALE
    engine.trim_value_logs()
    assert changes.count_values(kept.log, 100) == 0
    refreshed(sales.View)
    assert verified(sales)


def test_a_view_with_another_definition_uses_nothing(sales: Sales) -> None:
    """As a worker of the other version does in a rolling deploy."""
    before = kept_of(sales.View)
    manager = sales.Sale._base_manager
    sales.View.source = classmethod(lambda cls: counted(manager.filter(kind__lt=2)))
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert engine.verify(sales.View).equal
    assert changes.count_values(before.log, 9) == 1

    changes.install(engine.alias())

    assert kept_of(sales.View).log != before.log
    assert before.log not in connection.introspection.table_names()
    sales.add((1, 8, None))
    refreshed(sales.View)
    sales.add((1, 9, None))
    refreshed(sales.View)
    assert verified(sales)


def test_removed_triggers_leave_no_tables(sales: Sales) -> None:
    changes.remove(engine.alias())

    left = connection.introspection.table_names()
    assert not [name for name in left if name.startswith(("matviews_values", "matviews_sums"))]
    assert not ViewSums.objects.exists()
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert engine.verify(sales.View).equal


@pytest.mark.usefixtures("alone")
def test_a_view_that_has_not_opted_in_is_refreshed_as_ever() -> None:
    with Sales(options={"additive": False}).tracked() as sales:
        sales.add((1, 2, None))
        refreshed(sales.View)
        with CaptureQueriesContext(connection) as queries:
            sales.add((1, 7, None))
            refreshed(sales.View)

    assert not [each for each in queries if "sums" in each["sql"] or "values_" in each["sql"]]
    assert not ViewSums.objects.exists()


@pytest.mark.usefixtures("alone")
@pytest.mark.skipif(not DECIMALS, reason="adds decimals up as floats")
def test_decimals_are_exact() -> None:
    def source(rows: Any) -> Any:
        return rows.values("shop").annotate(
            money=Sum(F("price") * F("price")), share=Avg("price"), mean=Avg("price")
        )

    with Sales(source).tracked() as sales:
        sales.add((1, 1, "9999999999.99"), (1, 1, "0.01"), (1, 1, None), (2, 1, None))
        refreshed(sales.View)
        sales.add((1, 1, "-0.03"), (2, 1, "7.77"))
        sales.Sale._base_manager.filter(price="0.01").delete()
        refreshed(sales.View)

        assert sales.rows()[2]["money"] == Decimal("60.3729")
        assert verified(sales)
        if connection.vendor == "postgresql":
            execute(f"UPDATE {sales.Sale._meta.db_table} SET price = 'NaN' WHERE price = 7.77")
            refreshed(sales.View)
            execute(f"UPDATE {sales.Sale._meta.db_table} SET price = 1 WHERE price = 'NaN'")
            refreshed(sales.View)
            assert verified(sales)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (lambda rows: rows.values("shop").annotate(sales=Max("qty")), "not Count, Sum or Avg"),
        (lambda rows: rows.values("shop").annotate(sales=Count("qty", distinct=True)), "distinct"),
        (lambda rows: rows.values("shop").annotate(sales=Sum("qty") + 1), "of aggregates"),
        (lambda rows: rows.values("shop").annotate(sales=Count("pk"))[:5], "sliced"),
        (
            lambda rows: rows.values("shop").annotate(sales=Count("pk")).filter(sales__gt=1),
            "HAVING",
        ),
        (lambda rows: rows.values("shop", sales=F("qty")).distinct(), "DISTINCT"),
    ],
)
def test_a_check_says_why_a_view_is_not_additive(source: Any, reason: str) -> None:
    sales = Sales(source)
    with made(sales.Sale, sales.View):
        definition = registry.find(sales.View)
        found = check_source(definition, engine.alias())
        explained = explain(definition, engine.alias())

        errors = [each for each in found if each.id == "matviews.E025"]
        assert any(reason in each.msg for each in errors)
        assert reason in explained.not_additive
        assert additive_of(sales.View) is None
