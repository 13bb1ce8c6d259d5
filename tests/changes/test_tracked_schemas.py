"""Change tracking and traps of others' schemas: names, keys, managers, rights, migrations."""

# ruff: noqa: N806 - variables that are models

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import DatabaseError, connection, models
from django.db.models import Count, F, Sum
from django.db.models.signals import post_migrate

from matviews import changes, engine
from matviews.models import Change, ViewControl
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.engine import in_another_connection, without_sqlite
from tests.helpers.tables import (
    defined,
    derived_view,
    execute,
    key,
    made,
    model,
    refreshed,
    tracked_view_of,
    unique,
)
from tests.shapes.models import Order, Region, Tag

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")
on_sqlite = pytest.mark.only_on("sqlite", reason="SQLite's own")

NAMES = [
    "it's",
    'say "so"' if connection.vendor == "mysql" else "say `so`",
    "Größe",
    "back\\slash",
    "CAPITALS",
    "x" * (64 if connection.vendor == "mysql" else 63),
    *(["100%", "%(name)s"] if connection.vendor == "sqlite" else []),
]
ROWS = "CREATE TABLE made_rows (id bigint PRIMARY KEY, n integer)"
GONE = "DROP TABLE made_rows"


@pytest.fixture(autouse=True)
def _removed() -> Iterator[None]:
    yield
    changes.remove(engine.alias())


def number(**options: Any) -> Any:
    return models.IntegerField(**{"null": True, **options})


def install() -> None:
    assert changes.install(engine.alias()) == {}
    assert list(changes.find_problems(engine.alias())) == []


def keys_of(view: type[Any], *writes: Callable[[], object]) -> list[int]:
    """How many keys a refresh looks at after each write, and then the view equals its source."""
    counts = []
    refreshed(view)
    for write in writes:
        refreshed(view)
        assert view.is_fresh()
        write()
        assert not view.is_fresh()
        refresh = view_classes.run(view)
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        runs = refresh.runs.all()
        assert {each.full_refresh_reason for each in runs} == {""}
        [keys_scanned] = {each.keys_scanned for each in runs}
        counts.append(keys_scanned)
        assert view.verify().equal
    return counts


def written(*statements: str) -> Callable[[], object]:
    return lambda: execute(*statements)


def of_names(name: str) -> tuple[type[Any], type[Any]]:
    """A table of that name with columns of that name, and a view of it."""
    Rows = model(
        "Rows", ref=models.IntegerField(db_column=name, unique=True),
        n=number(db_column=f"n {name}"[:60]), meta={"db_table": name},
    )  # fmt: skip
    view = derived_view(
        lambda cls: Rows.objects.values("ref", "n"), ref=number(null=False, unique=True), n=number()
    )
    return Rows, view


def copy_of(rows: type[Any]) -> type[Any]:
    return derived_view(
        lambda cls: rows.objects.values("n", ref=F("pk")),
        name=f"Of{rows.__name__}",
        ref=key(),
        n=number(),
    )


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_names_are_quoted_in_triggers_and_in_the_log(self, name: str) -> None:
        Rows, view = of_names(name)
        with made(Rows, view):
            install()
            Rows.objects.create(ref=1, n=1)

            assert keys_of(
                view,
                lambda: Rows.objects.update(n=2),
                lambda: Rows.objects.update(ref=2),
                lambda: Rows.objects.all().delete(),
            ) == [1, 2, 1]

    @on_mysql
    @pytest.mark.parametrize("mode", ["ANSI_QUOTES", "PIPES_AS_CONCAT", "NO_BACKSLASH_ESCAPES"])
    @pytest.mark.parametrize("name", ["back\\slash", "it's", 'say "so"'])
    def test_whatever_sql_mode_makes_of_quotes(self, mode: str, name: str) -> None:
        execute(f"SET sql_mode = '{mode}'")
        try:
            Rows, view = of_names(name)
            with made(Rows, view):
                install()
                Rows.objects.create(ref=1, n=1)

                assert keys_of(view, lambda: Rows.objects.update(n=2)) == [1]
        finally:
            connection.close()


class TestModels:
    def test_many_to_many(self) -> None:
        view = derived_view(
            lambda cls: Tag.objects.values(ref=F("pk")).annotate(n=Count("order")),
            ref=key(),
            n=number(),
        )
        with made(view):
            install()
            a, b, c = (Tag.objects.create(label=each) for each in "abc")
            order, other = (Order.objects.create(price=1, paid=True) for _ in range(2))
            other.tags.add(a)

            assert keys_of(
                view,
                lambda: order.tags.add(a, b),
                lambda: order.tags.set([b, c]),
                lambda: order.tags.remove(b),
                order.tags.clear,
                other.delete,
                a.delete,
            ) == [2, 2, 1, 1, 1, 1]

    @pytest.mark.parametrize("proxy", [False, True])
    def test_a_parent_and_its_child(self, proxy: bool) -> None:
        Place = model("Place", title=models.CharField(max_length=10))
        Bar = model("Bar", bases=(Place,), beers=number())
        Source = model("Proxy", bases=(Bar,), meta={"proxy": True}) if proxy else Bar
        view = derived_view(
            lambda cls: Source.objects.values("title", "beers", ref=F("pk")),
            ref=key(), title=models.CharField(max_length=10), beers=number(),
        )  # fmt: skip
        with made(Place, Bar, view):
            install()
            bar = Bar.objects.create(title="one", beers=1)

            assert keys_of(
                view,
                lambda: Place.objects.update(title="two"),
                lambda: Bar.objects.update(beers=2),
                lambda: bar.delete(keep_parents=True),
            ) == [1, 1, 1]

    def test_a_primary_key_of_several_columns(self) -> None:
        Rows = model(
            "Rows", pk=models.CompositePrimaryKey("a", "b"), a=number(), b=number(), n=number()
        )
        view = derived_view(
            lambda cls: Rows.objects.values("a", "b", "n"), key=["a", "b"],
            a=number(null=False), b=number(null=False), n=number(), meta=unique("a", "b"),
        )  # fmt: skip
        with made(Rows, view):
            install()
            Rows.objects.bulk_create(Rows(a=1, b=b, n=0) for b in (1, 2))

            assert keys_of(
                view,
                lambda: Rows.objects.filter(b=1).update(n=2),
                lambda: Rows.objects.filter(b=2).update(b=3),
                lambda: Rows.objects.filter(b=3).delete(),
            ) == [1, 2, 1]

    def test_such_a_key_of_a_table_that_a_callable_maps(self) -> None:
        Rows = model(
            "Rows", pk=models.CompositePrimaryKey("a", "b"), a=number(), b=number(), n=number()
        )
        view = derived_view(
            lambda cls: Region.objects.filter(
                pk__in=Rows.objects.filter(n=1).values("a")
            ).values(ref=F("pk")),
            ref=key(),
            options={"depends_on": {Rows: lambda rows: rows.values_list("a", flat=True)}},
        )  # fmt: skip
        with made(Rows, view):
            install()
            Region.objects.bulk_create(Region(pk=pk, name="") for pk in (1, 2, 3))

            assert keys_of(
                view,
                lambda: Rows.objects.create(a=1, b=1, n=1),
                lambda: Rows.objects.update(n=2),
            ) == [1, 1]

    # PostgreSQL has no others before 18, and triggers would not see them.
    @pytest.mark.parametrize("persistent", sorted({True, connection.vendor == "postgresql"}))
    def test_a_column_that_the_database_computes(self, persistent: bool) -> None:
        Rows = model(
            "Rows", n=number(), twice=models.GeneratedField(
                expression=F("n") * 2, output_field=number(), db_persist=persistent
            ),
        )  # fmt: skip
        view = derived_view(
            lambda cls: Rows.objects.values("twice", ref=F("pk")), ref=key(), twice=number()
        )
        with made(Rows, view):
            install()
            Rows.objects.create(n=1)

            assert keys_of(
                view, lambda: Rows.objects.update(n=2), lambda: Rows.objects.all().delete()
            ) == [1, 1]

    def test_views_of_views_follow_in_their_order(self) -> None:
        first = derived_view(
            lambda cls: Region.objects.values(ref=F("pk"), n=F("pk") * 2),
            name="A",
            ref=key(),
            n=number(),
        )
        second = derived_view(
            lambda cls: first.objects.values("ref").annotate(n=Sum("n")),
            name="B",
            ref=key(),
            n=number(),
        )
        with made(first, second):
            install()
            for view in (first, second, first, second):
                refreshed(view)
            assert (first.is_fresh(), second.is_fresh()) == (True, True)
            Region.objects.create(pk=5, name="")

            assert (first.is_fresh(), second.is_fresh()) == (False, True)
            refreshed(first)
            assert not second.is_fresh()
            refreshed(second)
            assert list(second.objects.values_list("ref", "n")) == [(5, 10)]
            assert second.is_fresh()


@on_sqlite
class TestSQLite:
    def test_a_table_without_rowid(self) -> None:
        with (
            defined(f"{ROWS} WITHOUT ROWID", "INSERT INTO made_rows VALUES (1, 1)", undone=GONE),
            tracked_view_of("made_rows") as view,
        ):
            assert keys_of(
                view,
                written("UPDATE made_rows SET n = 2"),
                written("REPLACE INTO made_rows VALUES (1, 3)"),
                written("DELETE FROM made_rows"),
            ) == [1, 1, 1]

    def test_bytes_in_a_column_of_numbers_or_texts_stop_no_writer(self) -> None:
        """SQLite takes any value in any column; JSON takes no bytes."""
        with (
            defined("CREATE TABLE made_rows (id text PRIMARY KEY, n integer)", undone=GONE),
            tracked_view_of("made_rows") as view,
        ):
            execute("INSERT INTO made_rows VALUES (1, 1)")
            refreshed(view)
            refreshed(view)

            execute("INSERT INTO made_rows VALUES (x'0102', 2)")

            assert list(Change.objects.values_list("table", "links")) == [("made_rows", None)]
            assert not view.is_fresh()

    def test_triggers_that_fire_for_what_is_replaced(self) -> None:
        with defined(ROWS, undone=GONE), tracked_view_of("made_rows") as view:
            execute("INSERT INTO made_rows VALUES (1, 1)", "PRAGMA recursive_triggers = ON")
            try:
                assert keys_of(view, written("REPLACE INTO made_rows VALUES (1, 3)")) == [1]
            finally:
                execute("PRAGMA recursive_triggers = OFF")

    def test_what_is_replaced_by_an_index_that_django_does_not_know(self) -> None:
        with (
            defined(ROWS, "CREATE UNIQUE INDEX made_by_hand ON made_rows (n)", undone=GONE),
            tracked_view_of("made_rows") as view,
        ):
            execute("INSERT INTO made_rows VALUES (1, 1), (2, 2)")

            assert keys_of(view, written("REPLACE INTO made_rows VALUES (3, 1)")) == [2]

    def test_what_is_replaced_by_an_index_with_another_collation_than_its_column(self) -> None:
        with (
            defined(
                "CREATE TABLE made_rows (id integer PRIMARY KEY, n integer, note text)",
                "CREATE UNIQUE INDEX made_by_hand ON made_rows (note COLLATE NOCASE)",
                undone=GONE,
            ),
            tracked_view_of("made_rows") as view,
        ):
            execute("INSERT INTO made_rows VALUES (1, 1, 'A'), (2, 2, 'b')")

            assert keys_of(view, written("REPLACE INTO made_rows VALUES (3, 1, 'a')")) == [2]


class TestRights:
    @on_postgres
    def test_a_role_that_may_write_to_the_table_alone(self) -> None:
        with (
            defined(
                ROWS,
                "CREATE ROLE made_writer",
                "GRANT INSERT, UPDATE ON made_rows TO made_writer",
                undone=(GONE, "DROP ROLE made_writer"),
            ),
            tracked_view_of("made_rows") as view,
        ):
            write = written(
                "SET ROLE made_writer", "INSERT INTO made_rows VALUES (1, 1)", "RESET ROLE"
            )
            assert keys_of(view, write) == [1]

    @on_postgres
    def test_a_table_in_another_schema_than_the_log(self) -> None:
        with defined("CREATE SCHEMA made_first", undone="DROP SCHEMA made_first CASCADE"):
            execute("SET search_path = made_first, public", ROWS)
            try:
                with tracked_view_of("made_rows") as view:
                    write = written("INSERT INTO made_rows VALUES (1, 1)")
                    assert keys_of(view, write) == [1]
            finally:
                connection.close()

    @on_mysql
    def test_a_user_who_may_write_to_the_table_alone(self) -> None:
        import pymysql

        def write() -> None:
            settings = connection.settings_dict
            other: Any = pymysql.connect(
                host=settings["HOST"], port=settings["PORT"], user="made_writer", password="x",
                database=settings["NAME"], autocommit=True, ssl_disabled=True,
            )  # fmt: skip
            other.cursor().execute("INSERT INTO made_rows VALUES (1, 1)")
            other.close()

        with (
            defined(
                ROWS,
                "CREATE USER made_writer@'%' IDENTIFIED BY 'x'",
                "GRANT INSERT ON made_rows TO made_writer@'%'",
                undone=(GONE, "DROP USER made_writer@'%'"),
            ),
            tracked_view_of("made_rows") as view,
        ):
            assert keys_of(view, write) == [1]


class TestWhatComesAndGoes:
    def test_a_view_whose_table_was_dropped_and_made_again_by_migrations(self) -> None:
        """`migrate app zero` and back: nothing has changed in its source, and it is empty."""
        view = derived_view(
            lambda cls: Region.objects.values(ref=F("pk"), n=F("pk") * 2), ref=key(), n=number()
        )
        with made(view):
            install()
            Region.objects.create(pk=1, name="")
            refreshed(view)
            refreshed(view)
            assert view.is_fresh()
            with connection.schema_editor() as editor:
                editor.delete_model(view)
            with connection.schema_editor() as editor:
                editor.create_model(view)
            migration = type("Migration", (), {"app_label": "shapes", "operations": []})()
            sender = apps.get_app_config("matviews")

            post_migrate.send(
                sender, app_config=sender, using=engine.alias(), plan=[(migration, False)]
            )

            assert not view.is_fresh()
            refreshed(view)
            assert view.objects.count() == 1

    def test_a_view_whose_bookkeeping_somebody_has_deleted(self) -> None:
        view = derived_view(
            lambda cls: Region.objects.values(ref=F("pk"), n=F("pk") * 2), ref=key(), n=number()
        )
        with made(view):
            install()
            ViewControl.objects.filter(label="shapes.Made").delete()
            Region.objects.create(pk=1, name="")
            engine.move_log()
            assert not Change.objects.exists()

            engine.sync_controls()

            refreshed(view)
            assert view.verify().equal
            install()
            assert keys_of(view, lambda: Region.objects.create(pk=2, name="")) == [1]

    @without_sqlite
    def test_two_processes_that_install_at_once(self) -> None:
        """One may fail, and says so; views trust only what is logged; the next install mends it."""
        several = [model(f"Rows{each}", n=number()) for each in range(3)]
        views = [copy_of(rows) for rows in several]
        with made(*several, *views):
            for thread in [in_another_connection(_install_if_possible) for _ in range(2)]:
                thread.join()
            for rows, view in zip(several, views, strict=True):
                rows.objects.create(n=1)
                refreshed(view)
                rows.objects.update(n=2)
                refreshed(view)
                assert view.verify().equal

            install()
            for rows, view in zip(several, views, strict=True):
                assert keys_of(view, partial(rows.objects.update, n=3)) == [1]


def _install_if_possible() -> None:
    with suppress(DatabaseError):
        changes.install(engine.alias())
