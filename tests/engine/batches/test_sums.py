"""Additive views: what comes is added, what goes is subtracted, whatever the size of a group."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from unittest import mock

import pytest
from django.db import connection, models
from django.db.models import Avg, Count, F, IntegerField, Max, Q, StdDev, Sum
from django.db.models.functions import Cast, Length, TruncDate
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine, untracked
from matviews.changes import value_logs
from matviews.databases import dialect_of
from matviews.databases.mysql import sums as mysql_sums
from matviews.engine.batches import sums as engine_sums
from matviews.engine.verification import key_parts
from matviews.models import ViewShard, ViewSums
from matviews.queryset import BatchRunner, GroupSums, add, check_source, plan_of
from matviews.registry import registry
from matviews.states import RefreshStrategy
from matviews.tasks import inline
from tests.helpers import roles
from tests.helpers.additive_views import Sales, counted, extremes
from tests.helpers.current import differences_now
from tests.helpers.engine import held_open, let_time_pass
from tests.helpers.state_machines import Killed, killed_before_statement
from tests.helpers.sums import additive_of, kept_of, sums_differ
from tests.helpers.tables import derived_view, execute, made, model, refreshed
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
    return any(
        f'FROM "{table}"' in each["sql"] or f"FROM `{table}`" in each["sql"] for each in queries
    )


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
        inline.run_until_idle(_shards(sales))
    let_time_pass()
    inline.run_until_idle(_shards(sales))

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
        found = engine.verify(sales.View)

    assert (found.differences, found.sums, found.equal) == (0, 1, False)
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


@pytest.mark.only_on("sqlite", reason="the others store whole numbers only")
def test_sums_that_stay_impossible_are_recomputed_once(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite stores a fraction in a column of whole numbers."""
    table = sales.Sale._meta.db_table
    execute(f"UPDATE {table} SET qty = 1.5 WHERE shop IN (1, 2)")
    refreshed(sales.View)
    engine.mark_dirty(sales.View, [1])
    cuts = mock.Mock(wraps=add)
    monkeypatch.setattr(engine_sums, "add", cuts)

    refreshed(sales.View)

    # for the marked key, with what stays impossible, and of what has been logged
    assert [len(call.args[3]) for call in cuts.call_args_list] == [1, 2, 0]
    assert kept_of(sales.View).drain_number >= 0
    assert engine.verify(sales.View).equal


ALTERATIONS = {
    "wider": ("kind", "bigint", "3000000000"),
    "more digits": ("price", "numeric(24, 2)", "99999999999999.99"),
    "more places": ("price", "numeric(20, 6)", "0.000003"),
    "floats": ("qty", "double precision", "2"),
    "longer texts": ("note", "varchar(200)", f"'{'x' * 99}'"),
    "any text": ("note", "text", f"'{'x' * 99}'"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", "mariadb", reason="SQLite alters no type of a column")
@pytest.mark.parametrize("install", [False, True], ids=["", "installed"])
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_column_altered_by_hand_fails_no_writer_and_no_sum(
    alteration: str, install: bool
) -> None:
    """A value log may be as narrow as the column was, and sums as exact as the model is."""
    column, kind, value = ALTERATIONS[alteration]

    def source(rows: Any) -> Any:
        return (
            rows.exclude(note="none").values("shop")
            .annotate(total=Sum(F("qty") * F("kind")), money=Sum("price"), sales=Count("note"))
        )  # fmt: skip

    with Sales(source).tracked() as sales:
        table = sales.Sale._meta.db_table
        sales.add((1, 2, "1.10"), (1, 3, None), (2, 3, "0.30"))
        refreshed(sales.View)
        execute(
            f"ALTER TABLE {table} MODIFY {column} {kind} NULL"
            if connection.vendor == "mysql"
            else f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}"
        )
        if install:
            changes.install(engine.alias())
            refreshed(sales.View)
        for _refresh in range(2):
            sales.add((1, 2, "0.50"))
            execute(f"UPDATE {table} SET {column} = {value} WHERE shop = 2")
            refreshed(sales.View)
            assert engine.verify(sales.View).equal


@pytest.mark.usefixtures("alone")
def test_a_column_that_may_be_null_in_the_database_alone_is_counted_as_there() -> None:
    def source(rows: Any) -> Any:
        return rows.values("shop").annotate(sales=Count("kind"), priced=Count("owner"))

    with Sales(source).tracked() as sales:
        table = sales.Sale._meta.db_table
        if connection.vendor == "sqlite":
            with connection.schema_editor() as editor:
                old = sales.Sale._meta.get_field("kind")
                new = models.IntegerField(null=True)
                new.set_attributes_from_name("kind")
                new.model = sales.Sale
                changes.drop_before_migrate(engine.alias())
                editor.alter_field(sales.Sale, old, new)
        elif connection.vendor == "mysql":
            execute(f"ALTER TABLE {table} MODIFY kind integer NULL")
        else:
            execute(f"ALTER TABLE {table} ALTER COLUMN kind DROP NOT NULL")
        changes.install(engine.alias())
        refreshed(sales.View)
        execute(f"INSERT INTO {table} (shop, kind, note, owner) VALUES (1, NULL, '', 0)")
        execute(f"INSERT INTO {table} (shop, kind, note, owner) VALUES (1, 4, '', 0)")

        refreshed(sales.View)

        assert sales.rows()[1]["sales"] == 1
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


@pytest.mark.only_on("sqlite", reason="only there does REPLACE need a trigger of its own")
@pytest.mark.usefixtures("alone")
def test_replaced_rows_of_a_key_that_leads_to_no_link_are_recomputed() -> None:
    """SQLite's decimals are floats, which no entry of the log has."""
    sale = model(
        "Priced",
        price=models.DecimalField(max_digits=9, decimal_places=2, db_index=True),
        qty=models.IntegerField(),
        code=models.IntegerField(unique=True),
    )
    view = derived_view(
        lambda cls: sale._base_manager.values("price").annotate(total=Sum("qty")),
        options={"additive": True},
        key=["price"],
        price=models.DecimalField(max_digits=9, decimal_places=2, unique=True),
        total=models.IntegerField(),
    )
    with made(sale, view):
        changes.install(engine.alias())
        sale._base_manager.create(price=1, qty=2, code=5)
        refreshed(view)

        execute(f"REPLACE INTO {sale._meta.db_table} (price, qty, code) VALUES (2, 3, 5)")
        refreshed(view)

        assert engine.verify(view).equal


def test_sums_that_cannot_be_read_or_written_leave_the_source(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    """The table may be gone, or the role may have no right to it."""
    execute(f"DROP TABLE {kept_of(sales.View).table}")

    sales.add((1, 7, None))
    refreshed(sales.View)

    assert engine.verify(sales.View).equal
    assert kept_of(sales.View).drain_number == ViewSums.FAILED
    assert "is refreshed from its source" in caplog.text


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


@pytest.mark.parametrize("which", ["log", "table"])
def test_a_table_that_somebody_dropped_fails_no_writer_and_comes_back(
    sales: Sales, which: str
) -> None:
    if connection.vendor == "sqlite" and which == "log":
        pytest.skip("a trigger cannot ask whether a table is there")
    kept = kept_of(sales.View)
    execute(f"DROP TABLE {getattr(kept, which)}")

    sales.add((1, 7, None))
    sales.Sale._base_manager.filter(shop=2).update(qty=9)
    sales.Sale._base_manager.filter(shop=3).delete()
    for _refresh in range(2):
        refreshed(sales.View)
        assert engine.verify(sales.View).equal
    engine.trim_value_logs()

    assert any("are missing" in each for each in changes.find_problems(engine.alias()))
    changes.install(engine.alias())
    assert not list(changes.find_problems(engine.alias()))
    sales.add((1, 8, None))
    refreshed(sales.View)
    sales.add((1, 9, None))
    with CaptureQueriesContext(connection) as queries:
        refreshed(sales.View)
    assert verified(sales)
    assert not reads_source(sales, queries)


def test_tables_that_somebody_else_has_created_are_used_if_they_fit(sales: Sales) -> None:
    """As the script of `--triggers sql` does, run by whoever may create tables."""
    kept = kept_of(sales.View)
    kept.delete()
    changes.install(engine.alias())
    assert kept_of(sales.View).log == kept.log
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert verified(sales)

    kept_of(sales.View).delete()
    execute(f"ALTER TABLE {kept.log} DROP COLUMN qty")
    changes.install(engine.alias())
    sales.add((1, 8, None))
    refreshed(sales.View)
    assert verified(sales)


def test_the_tables_of_one_view_that_cannot_be_created_stop_no_other(
    sales: Sales, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The role may not create tables, say."""
    changes.remove(engine.alias())
    with monkeypatch.context() as patch:
        patch.setattr(GroupSums, "create", lambda self, table: ["CREATE TABLE not valid"])
        for _again in range(2):
            assert not changes.install(engine.alias())

        assert "is refreshed from its source" in caplog.text
        assert not ViewSums.objects.exists()
        refreshed(sales.View)
        sales.add((1, 7, None))
        refresh = run(sales.View)
        assert {each.strategy for each in refresh.runs.all()} == {RefreshStrategy.BY_KEYS}
        assert engine.verify(sales.View).equal

    changes.install(engine.alias())
    refreshed(sales.View)
    sales.add((1, 8, None))
    refreshed(sales.View)
    assert verified(sales)
    assert ViewSums.objects.get().drain_number >= 0


def test_triggers_that_write_to_no_log_leave_no_sums_in_use(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with another version of the code may have created them."""
    with monkeypatch.context() as patch:
        patch.setattr(value_logs, "create", mock.Mock(return_value=frozenset()))
        changes.install(engine.alias())
    assert not ViewSums.objects.exists()
    refreshed(sales.View)
    sales.add((1, 7, None))
    refreshed(sales.View)
    assert engine.verify(sales.View).equal


def test_a_log_that_no_view_uses_is_emptied(sales: Sales) -> None:
    kept = kept_of(sales.View)
    kept.delete()
    sales.add((1, 7, None))
    assert changes.count_values(kept.log, 9) == 1

    assert engine.trim_value_logs()

    assert changes.count_values(kept.log, 9) == 0


def test_a_log_that_cannot_be_emptied_keeps_no_other_full(
    sales: Sales, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = kept_of(sales.View)
    kept.delete()
    sales.add((1, 7, None))
    monkeypatch.setattr(changes, "present_logs", lambda: {"matviews_values_00000000", kept.log})

    assert not engine.trim_value_logs()

    assert changes.count_values(kept.log, 9) == 0
    assert "cannot be emptied" in caplog.text


@pytest.mark.skipif(connection.vendor != "mysql", reason="only there is it a right of its own")
def test_a_role_that_may_create_no_temporary_table_lets_no_log_fill_the_disk(
    sales: Sales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_sums, "TRIMMED", 2)
    kept = kept_of(sales.View)
    table = sales.Sale._meta.db_table
    with roles.database_role("poor") as role:
        roles.may_work(role, table, views=(sales.View._meta.db_table, kept.table, kept.log))
        database = connection.settings_dict["NAME"]
        execute(f"REVOKE CREATE TEMPORARY TABLES ON `{database}`.* FROM {roles.quoted(role)}")
        ViewSums.objects.update(drain_number=ViewSums.STALE)
        sales.add((1, 7, None), (2, 7, None), (3, 7, None), (4, 7, None), (5, 7, None))
        assert changes.count_values(kept.log, 9) == 5
        with roles.as_role(role):
            assert engine.trim_value_logs()

    assert changes.count_values(kept.log, 9) == 0


def test_sums_that_are_gone_are_no_reason_not_to_verify_a_view(
    sales: Sales, caplog: pytest.LogCaptureFixture
) -> None:
    execute(f"DROP TABLE {kept_of(sales.View).table}")

    assert engine.verify(sales.View).equal

    assert "cannot be verified" in caplog.text


@pytest.mark.only_on("postgres", reason="only PostgreSQL has a search path")
def test_a_schema_that_comes_first_in_the_search_path_changes_nothing(sales: Sales) -> None:
    execute("CREATE SCHEMA matviews_other")
    try:
        execute("SET search_path = matviews_other, public")
        for _again in range(2):
            changes.install(engine.alias())
            sales.add((1, 7, None))
            refreshed(sales.View)
            assert verified(sales)
            changes.remove(engine.alias())
        changes.install(engine.alias())
        execute("RESET search_path")
        sales.add((1, 7, None))
        refreshed(sales.View)
        sales.add((1, 8, None))
        refreshed(sales.View)
        assert verified(sales)
    finally:
        execute("RESET search_path", "DROP SCHEMA matviews_other CASCADE")


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


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def with_extremes(transactional_db: None, alone: None) -> Iterator[Sales]:
    with Sales(extremes).tracked() as made:
        made.add((1, 2, "1.10"), (1, 5, None), (2, None, "0.30"), (3, 5, "2"), (3, 4, "3"))
        made.Sale._base_manager.filter(shop=1).update(made=NOON)
        refreshed(made.View)
        yield made


def test_extremes_follow_what_comes_without_reading_the_source(with_extremes: Sales) -> None:
    sales, manager = with_extremes, with_extremes.Sale._base_manager
    sales.add((1, 9, None), (2, 1, "0.40"), (4, -1, None), (4, None, None))
    manager.filter(shop=1, qty=9).update(made=NOON + timedelta(days=1), kind=2)
    manager.filter(shop=2, qty=None).update(price="0.35", note="x")
    manager.filter(shop=3).update(kind=2)
    manager.filter(shop=3).update(kind=1)

    with CaptureQueriesContext(connection) as queries:
        refreshed(sales.View)

    assert verified(sales)
    assert not reads_source(sales, queries)
    rows = sales.rows()
    assert (rows[1]["most"], rows[1]["least"], rows[1]["last"]) == (9, 2, NOON + timedelta(days=1))
    assert (rows[4]["most"], rows[4]["dearest"], rows[4]["last"]) == (-1, None, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.filter(shop=1, qty=5).delete(),
        lambda rows: rows.filter(shop=1, qty=2).update(qty=3),
        lambda rows: rows.filter(shop=1).update(qty=None),
        lambda rows: rows.filter(shop=1, qty=5).update(shop=2),
        lambda rows: rows.filter(shop=1).delete(),
        lambda rows: rows.filter(shop=1, qty=2).update(kind=2),
        lambda rows: rows.filter(made=NOON).update(made=NOON - timedelta(seconds=1)),
    ],
)
def test_an_extreme_that_leaves_is_found_again(with_extremes: Sales, change: Any) -> None:
    sales = with_extremes
    change(sales.Sale._base_manager)
    refreshed(sales.View)
    assert verified(sales)

    sales.add((1, 3, None), (2, 0, None))
    refreshed(sales.View)
    assert verified(sales)


def test_what_came_and_went_again_is_no_extreme(with_extremes: Sales) -> None:
    sales = with_extremes
    for shop in (1, 2, 9):
        [first, _second] = sales.add((shop, 50, "99"), (shop, -50, "9"))
        first.delete()
    [alone] = sales.add((8, 70, None))
    sales.add((8, None, None))
    alone.delete()

    refreshed(sales.View)

    assert verified(sales)
    sales.add((8, 3, None), (9, 60, None))
    refreshed(sales.View)
    assert verified(sales)
    assert sales.rows()[8]["most"] == 3


def test_a_group_that_empties_keeps_no_extreme(with_extremes: Sales) -> None:
    sales = with_extremes
    rows = sales.Sale._base_manager.filter(shop=3)
    for change in (partial(rows.update, qty=None, price=None), rows.delete):
        change()
        with CaptureQueriesContext(connection) as queries:
            refreshed(sales.View)
        assert not reads_source(sales, queries)
    assert verified(sales)
    sales.add((3, 1, None))
    refreshed(sales.View)
    assert verified(sales)


def _misled(sales: Sales, shop: int) -> None:
    """The sums of a shop are wrong in a way that no batch can see."""
    [largest, *_others] = additive_of(sales.View).columns.extremes  # type: ignore[union-attr]
    execute(f"UPDATE {kept_of(sales.View).table} SET {largest.name} = 77 WHERE shop = {shop}")


def _repaired(sales: Sales) -> None:
    definition = registry.find(sales.View)
    key_parts.repair_part(definition, key_parts.keys_part(definition, [(1,)]))


DOUBTS: dict[str, Any] = {
    "extreme": lambda sales: sales.Sale._base_manager.filter(shop=1, qty=5).delete(),
    "marked": lambda sales: engine.mark_dirty(sales.View, [1]),
    "repaired": _repaired,
    "impossible": lambda sales: execute(
        f"UPDATE {kept_of(sales.View).table} SET matviews_count0 = 99 WHERE shop = 1"
    ),
    "replaced": lambda sales: execute(
        f"UPDATE {sales.Sale._meta.db_table} SET code = 7 WHERE shop = 1 AND qty = 2",
        f"REPLACE INTO {sales.Sale._meta.db_table} (shop, qty, kind, note, owner, code) "
        f"VALUES (2, 4, 1, '', 0, 7)",
    ),
}


@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("doubt", DOUBTS)
def test_only_groups_in_doubt_are_recomputed_unless_they_are_many(
    with_extremes: Sales, doubt: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if doubt == "replaced" and connection.vendor == "postgresql":
        pytest.skip("has no REPLACE")
    sales = with_extremes
    if many:
        monkeypatch.setattr(engine_sums, "FEW_ROWS", 0)
    DOUBTS[doubt](sales)
    _misled(sales, 3)
    sales.add((1, 3, None))
    refreshed(sales.View)

    assert sums_differ(sales.View) == (0 if many else 1)
    if doubt == "replaced":
        assert sales.rows()[2]["total"] == 4
    engine.mark_dirty(sales.View, [3])
    refreshed(sales.View)
    assert verified(sales)


@pytest.mark.usefixtures("alone")
def test_more_groups_in_doubt_than_a_list_has_room_for_beside_marked_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that the list lacks must not be forgotten because others of it are done already."""
    with Sales(extremes).tracked() as sales:
        monkeypatch.setattr(type(dialect_of(engine.alias())), "max_keys", 4)
        for shop in range(1, 11):
            sales.add((shop, 5, "1"), (shop, 3, "2"))
        refreshed(sales.View)

        sales.Sale._base_manager.filter(qty=5).update(qty=4)
        engine.mark_dirty(sales.View, [1, 2, 3])
        refreshed(sales.View)

        assert verified(sales)


@pytest.mark.usefixtures("alone")
def test_marked_keys_that_a_process_with_another_definition_takes_are_not_lost() -> None:
    """As an old worker does during a deployment."""
    with Sales().tracked() as sales:
        sales.add((1, 2, None), (1, 3, None), (2, 3, None))
        refreshed(sales.View)
        sales.add((1, 5, None))
        execute(f"DELETE FROM {kept_of(sales.View).log}")  # as if no trigger had seen it
        engine.mark_dirty(sales.View, [1])
        manager = sales.Sale._base_manager
        with mock.patch.object(
            sales.View, "source", classmethod(lambda cls: counted(manager.filter(kind__lt=2)))
        ):
            refreshed(sales.View)

        assert differences_now(sales.View) == []


@pytest.mark.usefixtures("alone")
def test_groups_with_computed_keys_are_recomputed_by_themselves() -> None:
    """What the key says is not the value that the row has."""
    with Sales().tracked() as sales:
        manager = sales.Sale._base_manager
        daily = derived_view(
            lambda cls: manager.values(size=Length("note"), day=TruncDate("made")).annotate(
                sales=Count("pk"), most=Max("qty")
            ),
            name="Daily", key=["size", "day"], options={"additive": True},
            meta={"unique_together": [("size", "day")]},
            size=models.IntegerField(), day=models.DateField(),
            sales=models.IntegerField(), most=models.IntegerField(null=True),
        )  # fmt: skip
        with made(daily):
            changes.install(engine.alias())
            rows = [("ab", NOON, 3), ("ac", NOON, 4), ("ab", NOON + timedelta(days=1), 4)]
            for note, at, qty in [*rows, ("b", NOON, 4), ("ab", None, 4)]:
                manager.create(note=note, made=at, qty=qty)
            refreshed(daily)
            manager.filter(note="ac").delete()
            refreshed(daily)
            assert [row.most for row in daily._base_manager.order_by("size", "day")] == [4, 3, 4]
            assert engine.verify(daily).equal
            assert sums_differ(daily) == 0


def test_verifying_finds_a_wrong_extreme(with_extremes: Sales) -> None:
    [largest, *_others] = additive_of(with_extremes.View).columns.extremes  # type: ignore[union-attr]
    execute(f"UPDATE {kept_of(with_extremes.View).table} SET {largest.name} = 77 WHERE shop = 1")
    assert sums_differ(with_extremes.View) == 1


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "condition",
    [
        Q(sales__gte=2),
        ~Q(sales=1),
        Q(large__gt=F("known")) | Q(priced__in=[2, 4]),
        Q(total__isnull=True) | Q(total__range=(3, 9)),
        Q(sales__in=[]) | Q(sales__gt=2),
    ],
)
def test_a_condition_on_groups_hides_rows_and_no_sums(condition: Q) -> None:
    def source(rows: Any) -> Any:
        found = rows.values("shop").annotate(
            sales=Count("pk"), priced=Count("qty"), total=Sum("qty")
        )
        return found.alias(large=Sum("qty"), known=Count("note")).filter(condition)

    with Sales(source).tracked() as sales:
        sales.add((1, 2, None), (2, 3, None), (2, None, None), (3, None, None))
        refreshed(sales.View)
        assert verified(sales)
        for added in ([(1, 2, None)], [(3, 1, None), (3, 4, None), (1, 5, None)]):
            sales.add(*added)
            with CaptureQueriesContext(connection) as queries:
                refreshed(sales.View)
            assert verified(sales)
            assert not reads_source(sales, queries)
        sales.Sale._base_manager.filter(shop__in=(1, 3)).delete()
        sales.Sale._base_manager.filter(shop=2).update(qty=1)
        refreshed(sales.View)
        assert verified(sales)


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", "mariadb", reason="SQLite adds decimals up as floats")
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
    "condition",
    [
        Q(dearest__gt=Decimal("1.5")),
        Q(dearest__lte=Decimal("1.5")),
        Q(dearest__in=[Decimal("2.25")]),
        Q(dearest__range=(Decimal("1.5"), Decimal("9"))),
        ~Q(dearest=Decimal("1.5")),
    ],
)
def test_a_condition_compares_decimals_as_numbers(condition: Q) -> None:
    with Sales(lambda rows: extremes(rows).filter(condition)).tracked() as sales:
        sales.add((1, 1, "1.50"), (2, 1, "2.25"), (3, 1, None), (4, 1, "10.00"), (5, 1, "-3"))
        refreshed(sales.View)
        assert verified(sales)
        sales.add((1, 1, "11"), (5, 1, "2.25"), (6, 1, "1.5"))
        refreshed(sales.View)
        assert verified(sales)


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", reason="only PostgreSQL has such types")
@pytest.mark.parametrize("kind", ["json", "zz_text", "xml", "citext"])
def test_a_type_that_the_model_does_not_know_fails_no_writer(kind: str) -> None:
    def source(rows: Any) -> Any:
        return rows.values("shop").annotate(sales=Count("note"))

    execute(
        "CREATE EXTENSION IF NOT EXISTS citext",
        "CREATE DOMAIN zz_text AS text NOT NULL CHECK (VALUE IS NOT NULL)",
    )
    try:
        with Sales(source).tracked() as sales:
            table = sales.Sale._meta.db_table
            default = "'{}'" if kind == "json" else "''"
            execute(
                f"ALTER TABLE {table} ALTER note DROP DEFAULT, "
                f"ALTER note TYPE {kind} USING {default}::{kind}"
            )
            changes.install(engine.alias())
            insert = f"INSERT INTO {table} (shop, kind, owner, note) VALUES (1, 1, 0, {default})"
            execute(insert, insert, f"UPDATE {table} SET shop = 2")
            refreshed(sales.View)
            assert engine.verify(sales.View).equal
            problems = list(changes.find_problems(engine.alias()))
            assert any("cannot be additive" in each for each in problems)
    finally:
        execute("DROP DOMAIN zz_text")


@pytest.mark.usefixtures("alone")
def test_a_view_that_moves_to_another_table_takes_its_new_sums_along() -> None:
    with Sales().tracked() as here, Sales(prefix="Other").tracked() as there:
        of_here, of_there = here.View.source, there.View.source
        here.View.source = of_there
        changes.install(engine.alias())

        assert ViewSums.objects.filter(view__label=here.View._meta.label).count() == 1
        assert not list(changes.find_problems(engine.alias()))
        there.add((1, 2, None))
        refreshed(here.View)
        assert here.rows()[1]["sales"] == 1
        here.View.source = of_here


@pytest.mark.usefixtures("alone")
def test_a_view_that_has_become_invalid_stops_no_installation() -> None:
    with Sales().tracked() as sales:
        other = derived_view(
            lambda cls: sales.Sale._base_manager.values("shop").annotate(most=Max("owner")),
            name="Other", shop=IntegerField(unique=True), most=IntegerField(),
        )  # fmt: skip
        with made(other), pytest.MonkeyPatch.context() as patch:
            wrong = classmethod(lambda cls: sales.Sale._base_manager.values("note"))
            patch.setattr(sales.View, "source", wrong)
            changes.install(engine.alias())
            assert not ViewSums.objects.exists()
        changes.install(engine.alias())
        sales.add((1, 2, None))
        refreshed(sales.View)
        assert verified(sales)


@pytest.mark.only_on("postgres", "mariadb", reason="SQLite locks the whole database")
def test_a_value_log_that_is_locked_is_made_later(sales: Sales) -> None:
    kept = kept_of(sales.View)
    execute(f"ALTER TABLE {kept.table} ADD COLUMN zz integer")
    with held_open(partial(sales.add, (1, 1, None))):
        assert changes.install(engine.alias())

    assert not changes.finish(engine.alias())
    assert not list(changes.find_problems(engine.alias()))
    refreshed(sales.View)
    assert verified(sales)


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", reason="the others have no NaN")
def test_nan_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    with Sales(lambda rows: rows.values("shop").annotate(money=Sum("price"))).tracked() as sales:
        sales.add((1, 1, "1.50"), (2, 1, "2"))
        execute(f"UPDATE {sales.Sale._meta.db_table} SET price = 'NaN' WHERE shop = 1")
        refreshed(sales.View)
        assert engine.verify(sales.View).equal
        assert "differ from its source" not in caplog.text


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("column", ["matviews_entry", "rowid", "Matviews_Weight", "q%ty"])
def test_a_column_named_like_ours_is_refused(column: str) -> None:
    if column == "rowid" and connection.vendor != "sqlite":
        pytest.skip("means nothing there")
    sale = model("Odd", shop=IntegerField(null=True), qty=IntegerField(db_column=column))
    view = derived_view(
        lambda cls: sale._base_manager.values("shop").annotate(total=Sum("qty")),
        options={"additive": True}, shop=IntegerField(unique=True), total=IntegerField(),
    )  # fmt: skip
    with made(sale, view):
        found = check_source(registry.find(view), engine.alias())
        assert any(column in each.msg for each in found if each.id == "matviews.E025")
        assert additive_of(view) is None


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(
            lambda rows: rows.values("shop").annotate(total=Sum("qty", filter=Q(pk__in=[]))),
            "a filter that matches nothing",
            marks=pytest.mark.only_on("sqlite", "postgres", reason="MariaDB has no FILTER"),
        ),
        (lambda rows: rows.values("shop").annotate(mean=StdDev("qty")), "not Count, Sum, Avg"),
        (lambda rows: rows.values("shop").annotate(sales=Max(F("qty") + 1)), "Max of something"),
        (
            lambda rows: rows.values("shop").annotate(sales=Cast(Max("note"), IntegerField())),
            "Cast of aggregates",
        ),
        (lambda rows: rows.values("shop").annotate(sales=Count("qty", distinct=True)), "distinct"),
        (lambda rows: rows.values("shop").annotate(sales=Sum("qty") + 1), "of aggregates"),
        (lambda rows: rows.values("shop").annotate(sales=Count("pk"))[:5], "sliced"),
        (
            lambda rows: rows.values("shop").annotate(mean=Avg("qty")).filter(mean__gt=1),
            "HAVING",
        ),
        (
            lambda rows: rows.values("shop").annotate(sales=Count("pk")).filter(sales__contains=1),
            "HAVING",
        ),
        (
            lambda rows: rows.values("shop").alias(mean=StdDev("qty")).filter(mean__gt=1),
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
        explained = engine.additive_choice(plan_of(definition, engine.alias()))

        errors = [each for each in found if each.id == "matviews.E025"]
        assert any(reason in each.msg for each in errors)
        assert not explained.is_additive
        assert reason in explained.reason
        assert additive_of(sales.View) is None
