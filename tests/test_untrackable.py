"""Tables whose triggers would not tell of every change: they are named, and full passes keep the view right."""

from typing import Any

import pytest
from django.core.checks import Tags, run_checks
from django.db import connection, transaction
from django.db.models import F

from matviews import changes, engine, tasks
from matviews.models import WatchedTable
from matviews.states import RefreshState
from tests import defining
from tests.shapes.models import Region
from tests.tables import defined, derived_view, execute, key, made, refreshed, tracked_view_of

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

ORDINARY = "it is not an ordinary table"
FAMILY = "it is partitioned, or inherits from another table"
UNLOGGED = "it is unlogged: a crash empties it, and tells nobody"
ENGINE = (
    "its engine is not InnoDB, so what is rolled back of it and of the log need not be the same"
)
PARTITIONED = "it is partitioned, and partitions that are truncated or dropped fire no trigger here"
ACTION = "a foreign key of it has ON DELETE or ON UPDATE, which fires no trigger here"

on_postgres = pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL's own")
on_mysql = pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB's and MySQL's own")
on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's own")


def assert_untracked(view: type[Any], table: str, reason: str) -> None:
    """The check names the table and the reason; no trigger is believed."""
    messages = run_checks(tags=[Tags.database], databases=["default"])
    assert [each.msg for each in messages if each.id == "matviews.W011"] == [
        f"Changes of {table}, which shapes.Made reads, cannot be logged: {reason}."
    ]
    assert not WatchedTable.objects.filter(table=table).exists()
    assert not view.is_fresh()
    assert contents(view) == {1: 1}


def contents(view: type[Any]) -> dict[int, int | None]:
    """Refresh a view, which has to look at all keys; its rows."""
    refresh = defining.run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert {each.reason for each in refresh.runs.all()} == {
        f"no triggers log all changes of {view.source().model._meta.db_table}"
    }
    return dict(view.objects.values_list("ref", "n"))


def test_a_view_of_the_database() -> None:
    with defined(
        "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)",
        "INSERT INTO made_rows VALUES (1, 1)",
        "CREATE VIEW made_view AS SELECT id, n FROM made_rows WHERE n < 10",
        undone=("DROP VIEW made_view", "DROP TABLE made_rows"),
    ), tracked_view_of("made_view") as view:  # fmt: skip
        assert_untracked(view, "made_view", ORDINARY)

        execute("INSERT INTO made_rows VALUES (2, 2)", "UPDATE made_rows SET n = 11 WHERE id = 1")

        assert contents(view) == {2: 2}


LATER = {
    "inherited": (
        "CREATE TABLE made_child () INHERITS (made_rows)",
        "INSERT INTO made_child VALUES (2, 2)",
        "DROP TABLE made_child",
        FAMILY,
    ),
    "unlogged": (
        "ALTER TABLE made_rows SET UNLOGGED",
        "INSERT INTO made_rows VALUES (2, 2)",
        "ALTER TABLE made_rows SET LOGGED",
        UNLOGGED,
    ),
    "engine": (
        "ALTER TABLE made_rows ENGINE = MyISAM",
        "INSERT INTO made_rows VALUES (2, 2)",
        "ALTER TABLE made_rows ENGINE = InnoDB",
        ENGINE,
    ),
}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("inherited", marks=on_postgres),
        pytest.param("unlogged", marks=on_postgres),
        pytest.param("engine", marks=on_mysql),
    ],
)
def test_a_table_that_becomes_so_is_noticed_by_watch(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    becomes, write, mends, reason = LATER[way]
    with defined(
        "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)",
        "INSERT INTO made_rows VALUES (1, 1)",
        undone="DROP TABLE made_rows",
    ), tracked_view_of("made_rows") as view:  # fmt: skip
        refreshed(view)
        assert view.is_fresh()
        with defined(becomes, undone=mends):
            tasks.watch()

            execute(write)

            assert f"table=made_rows reason={reason}" in caplog.text
            assert not view.is_fresh()
            assert contents(view) == {1: 1, 2: 2}
            caplog.clear()
            tasks.watch()
            assert "made_rows" not in caplog.text
        changes.install(engine.alias())
        refreshed(view)
        assert view.is_fresh()


def test_a_table_that_is_not_there() -> None:
    with tracked_view_of("made_rows"):
        assert list(changes.find_problems(engine.alias())) == [
            "Changes of made_rows, which shapes.Made reads, cannot be logged: there is no such table."
        ]


@on_postgres
class TestPostgreSQL:
    def test_a_materialized_view_of_the_database(self) -> None:
        with defined(
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)",
            "INSERT INTO made_rows VALUES (1, 1)",
            "CREATE MATERIALIZED VIEW made_view AS SELECT id, n FROM made_rows",
            undone="DROP TABLE made_rows CASCADE",
        ), tracked_view_of("made_view") as view:  # fmt: skip
            assert_untracked(view, "made_view", ORDINARY)

            execute("UPDATE made_rows SET n = 2", "REFRESH MATERIALIZED VIEW made_view")

            assert contents(view) == {1: 2}

    def test_a_partitioned_table(self) -> None:
        with defined(
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) PARTITION BY RANGE (id)",
            "CREATE TABLE made_part PARTITION OF made_rows DEFAULT",
            "INSERT INTO made_rows VALUES (1, 1)",
            undone="DROP TABLE made_rows",
        ), tracked_view_of("made_rows") as view:  # fmt: skip
            assert_untracked(view, "made_rows", FAMILY)

            execute("UPDATE made_part SET n = 2", "INSERT INTO made_part VALUES (3, 3)")

            assert contents(view) == {1: 2, 3: 3}

    def test_a_partition(self) -> None:
        with defined(
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) PARTITION BY RANGE (id)",
            "CREATE TABLE made_part PARTITION OF made_rows DEFAULT",
            "INSERT INTO made_rows VALUES (1, 1)",
            undone="DROP TABLE made_rows",
        ), tracked_view_of("made_part") as view:  # fmt: skip
            assert_untracked(view, "made_part", FAMILY)

            execute("UPDATE made_rows SET n = 2", "INSERT INTO made_rows VALUES (3, 3)")

            assert contents(view) == {1: 2, 3: 3}

    def test_a_table_that_another_inherits_from(self) -> None:
        with defined(
            "CREATE TABLE made_rows (id bigint, n integer)",
            "CREATE TABLE made_child () INHERITS (made_rows)",
            "INSERT INTO made_child VALUES (1, 1)",
            undone="DROP TABLE made_rows CASCADE",
        ), tracked_view_of("made_rows") as view:  # fmt: skip
            assert_untracked(view, "made_rows", FAMILY)

            execute("UPDATE made_child SET n = 2", "INSERT INTO made_child VALUES (3, 3)")

            assert contents(view) == {1: 2, 3: 3}

    def test_a_table_that_inherits_from_another(self) -> None:
        with defined(
            "CREATE TABLE made_rows (id bigint, n integer)",
            "CREATE TABLE made_child () INHERITS (made_rows)",
            "INSERT INTO made_child VALUES (1, 1)",
            undone="DROP TABLE made_rows CASCADE",
        ), tracked_view_of("made_child") as view:  # fmt: skip
            assert_untracked(view, "made_child", FAMILY)

            execute("UPDATE made_rows SET n = 2")

            assert contents(view) == {1: 2}

    def test_an_unlogged_table(self) -> None:
        with (
            defined(
                "CREATE UNLOGGED TABLE made_rows (id bigint PRIMARY KEY, n integer)",
                "INSERT INTO made_rows VALUES (1, 1)",
                undone="DROP TABLE made_rows",
            ),
            tracked_view_of("made_rows") as view,
        ):
            assert_untracked(view, "made_rows", UNLOGGED)

            execute("UPDATE made_rows SET n = 2")

            assert contents(view) == {1: 2}

    def test_a_foreign_table(self) -> None:
        def rows(*several: tuple[int, int]) -> str:
            lines = "".join(f"{pk},{n}\\n" for pk, n in several)
            return f"program $$printf '{lines}'$$"

        with defined(
            "CREATE EXTENSION file_fdw",
            "CREATE SERVER made_files FOREIGN DATA WRAPPER file_fdw",
            "CREATE FOREIGN TABLE made_rows (id bigint, n integer) SERVER made_files "
            f"OPTIONS (format 'csv', {rows((1, 1))})",
            undone="DROP EXTENSION file_fdw CASCADE",
        ), tracked_view_of("made_rows") as view:  # fmt: skip
            assert_untracked(view, "made_rows", ORDINARY)

            execute(f"ALTER FOREIGN TABLE made_rows OPTIONS (SET {rows((1, 2), (3, 3))})")

            assert contents(view) == {1: 2, 3: 3}

    def test_other_tables_are_watched_all_the_same(self) -> None:
        """A foreign table that nobody can read, for its wrapper has no handler, stops no other's triggers."""
        other = derived_view(
            lambda cls: Region.objects.values(ref=F("pk")), name="Other", ref=key()
        )
        with defined(
            "CREATE FOREIGN DATA WRAPPER made_nothing",
            "CREATE SERVER made_nowhere FOREIGN DATA WRAPPER made_nothing",
            "CREATE FOREIGN TABLE made_rows (id bigint, n integer) SERVER made_nowhere",
            undone="DROP FOREIGN DATA WRAPPER made_nothing CASCADE",
        ), made(other), tracked_view_of("made_rows"):  # fmt: skip
            assert [each.table for each in WatchedTable.objects.all()] == [Region._meta.db_table]


@on_mysql
@pytest.mark.parametrize(
    ("action", "change", "left"),
    [
        ("ON DELETE CASCADE", "DELETE FROM made_other WHERE n = 1", {}),
        ("ON DELETE SET NULL", "DELETE FROM made_other WHERE n = 1", {1: None}),
        ("ON UPDATE CASCADE", "UPDATE made_other SET n = 5 WHERE n = 1", {1: 5}),
        ("ON UPDATE SET NULL", "UPDATE made_other SET n = 5 WHERE n = 1", {1: None}),
    ],
)
def test_a_table_that_foreign_keys_act_on(
    action: str, change: str, left: dict[int, int | None]
) -> None:
    with defined(
        "CREATE TABLE made_other (n integer PRIMARY KEY)",
        "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer, "
        f"FOREIGN KEY (n) REFERENCES made_other (n) {action})",
        "INSERT INTO made_other VALUES (1)",
        "INSERT INTO made_rows VALUES (1, 1)",
        undone=("DROP TABLE made_rows", "DROP TABLE made_other"),
    ), tracked_view_of("made_rows") as view:  # fmt: skip
        assert_untracked(view, "made_rows", ACTION)

        execute(change)

        assert contents(view) == left


@on_mysql
def test_a_table_that_rolls_nothing_back() -> None:
    with (
        defined(
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) ENGINE = MyISAM",
            "INSERT INTO made_rows VALUES (1, 1)",
            undone="DROP TABLE made_rows",
        ),
        tracked_view_of("made_rows") as view,
    ):
        assert_untracked(view, "made_rows", ENGINE)

        with transaction.atomic():
            execute("UPDATE made_rows SET n = 2")
            transaction.set_rollback(True)

        assert contents(view) == {1: 2}


@on_mysql
def test_a_table_of_which_partitions_may_go() -> None:
    with (
        defined(
            "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer) PARTITION BY RANGE (id) "
            "(PARTITION old VALUES LESS THAN (5), PARTITION new VALUES LESS THAN MAXVALUE)",
            "INSERT INTO made_rows VALUES (1, 1)",
            undone="DROP TABLE made_rows",
        ),
        tracked_view_of("made_rows") as view,
    ):
        assert_untracked(view, "made_rows", PARTITIONED)

        execute("INSERT INTO made_rows VALUES (7, 7)", "ALTER TABLE made_rows DROP PARTITION old")

        assert contents(view) == {7: 7}


@pytest.mark.skipif(connection.vendor == "mysql", reason="actions fire no trigger there")
@pytest.mark.parametrize(
    ("action", "change", "left"),
    [
        ("ON DELETE CASCADE", "DELETE FROM made_other WHERE n = 1", {}),
        ("ON DELETE SET NULL", "DELETE FROM made_other WHERE n = 1", {1: None}),
        ("ON UPDATE CASCADE", "UPDATE made_other SET n = 5 WHERE n = 1", {1: 5}),
    ],
)
def test_where_actions_of_foreign_keys_fire_triggers_such_a_table_is_tracked(
    action: str, change: str, left: dict[int, int | None]
) -> None:
    with defined(
        "CREATE TABLE made_other (n integer PRIMARY KEY)",
        "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer "
        f"REFERENCES made_other (n) {action} DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO made_other VALUES (1)",
        "INSERT INTO made_rows VALUES (1, 1)",
        undone=("DROP TABLE made_rows", "DROP TABLE made_other"),
    ), tracked_view_of("made_rows") as view:  # fmt: skip
        refreshed(view)
        assert view.is_fresh()

        execute(change)

        assert not view.is_fresh()
        refreshed(view)
        assert dict(view.objects.values_list("ref", "n")) == left
        assert view.is_fresh()


@on_sqlite
def test_a_virtual_table() -> None:
    with defined(
        "CREATE VIRTUAL TABLE made_rows USING fts5 (id, n)",
        "INSERT INTO made_rows VALUES (1, 1)",
        undone="DROP TABLE made_rows",
    ), tracked_view_of("made_rows") as view:  # fmt: skip
        assert_untracked(view, "made_rows", ORDINARY)

        execute("UPDATE made_rows SET n = 2", "INSERT INTO made_rows VALUES (3, 3)")

        assert contents(view) == {1: 2, 3: 3}
