"""Tables whose names are nearly the same, or say where they are.

They are kept apart, and tracked where that is possible.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import F

from matviews import changes, engine
from matviews.models import Change, TrackedTable
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.tables import defined, derived_view, execute, key, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

on_postgres = pytest.mark.only_on("postgres", reason="PostgreSQL's own")
on_mysql = pytest.mark.only_on("mariadb", reason="MariaDB's and MySQL's own")

NOT_THERE = "there is no such table: run `manage.py makemigrations` and `manage.py migrate`"
COLUMNS = "(id bigint PRIMARY KEY, n integer)"


def view_of(name: str, table: str) -> type[Any]:
    """A view of a table that is there already."""
    rows = model(
        f"Rows{name}", n=models.IntegerField(null=True), meta={"db_table": table, "managed": False}
    )
    return derived_view(
        lambda cls: rows.objects.values("n", ref=F("pk")),
        name=name, ref=key(), n=models.IntegerField(null=True),
    )  # fmt: skip


@contextmanager
def tracked(*views: type[Any]) -> Iterator[None]:
    with made(*views):
        try:
            assert changes.install(engine.alias()) == {}
            assert list(changes.find_problems(engine.alias())) == []
            for view in views:
                refreshed(view)
                assert view.is_fresh()
            yield
        finally:
            changes.remove(engine.alias())


def keys_looked_at(view: type[Any]) -> int:
    refresh = view_classes.run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    runs = refresh.runs.all()
    assert {each.full_refresh_reason for each in runs} == {""}
    return max(each.keys_scanned for each in runs)


def follows(view: type[Any], other: type[Any], write: Callable[[], object]) -> None:
    """What is written is one key of the one view, and nothing to the other."""
    write()
    assert not view.is_fresh()
    assert other.is_fresh()
    assert keys_looked_at(view) == 1
    assert view.verify().equal
    assert other.verify().equal


@on_postgres
class TestSchemas:
    @pytest.fixture(autouse=True)
    def _schemas(self) -> Iterator[None]:
        with defined(
            "CREATE SCHEMA made_legacy", f"CREATE TABLE made_legacy.item {COLUMNS}",
            f"CREATE TABLE public.item {COLUMNS}", 'CREATE SCHEMA "Made Other"',
            f'CREATE TABLE "Made Other"."It\'em" {COLUMNS}', f'CREATE TABLE "odd""na.me" {COLUMNS}',
            f'CREATE TABLE "Made Other"."""q""" {COLUMNS}',
            undone=(
                "DROP SCHEMA made_legacy CASCADE", 'DROP SCHEMA "Made Other" CASCADE',
                "DROP TABLE public.item", 'DROP TABLE "odd""na.me"',
            ),
        ):  # fmt: skip
            yield

    @pytest.mark.parametrize(
        ("name", "sql"),
        [
            ('made_legacy"."item', "made_legacy.item"),
            ('"made_legacy"."item"', "made_legacy.item"),
            ('Made Other"."It\'em', '"Made Other"."It\'em"'),
            ('odd""na.me', '"odd""na.me"'),
            ('Made Other"."""q""', '"Made Other"."""q"""'),
        ],
    )
    def test_equal_names_are_kept_apart(self, name: str, sql: str) -> None:
        one, other = view_of("One", name), view_of("Other", "item")
        with tracked(one, other):
            follows(one, other, lambda: execute(f"INSERT INTO {sql} VALUES (1, 1)"))
            follows(other, one, lambda: execute("INSERT INTO item VALUES (1, 1)"))
            follows(one, other, lambda: execute(f"UPDATE {sql} SET n = 2"))
            follows(one, other, lambda: execute(f"DELETE FROM {sql}"))

    def test_whatever_the_search_path_is(self) -> None:
        one, other = view_of("One", 'made_legacy"."item'), view_of("Other", "item")
        with tracked(one, other):
            execute("SET search_path = made_legacy")
            execute("INSERT INTO item VALUES (1, 1)", "INSERT INTO public.item VALUES (2, 2)")
            connection.close()

            assert dict(Change.objects.values_list("table", "links")) == {
                'made_legacy"."item': [["id"], ["1"]],
                "item": [["id"], ["2"]],
            }
            assert [keys_looked_at(each) for each in (one, other)] == [1, 1]

    def test_one_table_that_is_named_twice(self) -> None:
        one, other = view_of("One", 'public"."item'), view_of("Other", "item")
        with tracked(one, other):
            execute("INSERT INTO item VALUES (1, 1)")

            assert [keys_looked_at(each) for each in (one, other)] == [1, 1]
        assert not TrackedTable.objects.exists()

    @pytest.mark.parametrize("name", [
        "nothing", 'made_legacy"."nothing', '"made_legacy"."nothing"', "made_legacy.item",
        'nothing"."item', 'odd"name', 'odd""name', '"', '""', '"odd', 'odd"', 'a"."', '"."b',
        '""."b"', 'a"".""b', 'a"."b"."c"."d',
        " ", ".", "'", "\\", "%s", "\ud800", "nu\0l", "x" * 63, 'ä"."b',
    ])  # fmt: skip
    def test_a_table_that_is_not_there(self, name: str) -> None:
        with made(view_of("One", name), view_of("Two", "item")):
            # what is no name in SQL either is not taken for what the statement reads
            faults = changes.install(engine.alias())
            assert faults in ({}, {name: NOT_THERE})
            assert list(changes.find_problems(engine.alias())) == [
                f"Changes to {each} (read by shapes.One) cannot be logged: {why}."
                for each, why in faults.items()
            ]
            assert engine.missing_rights() == []
            assert TrackedTable.objects.get().table == "item"
            changes.remove(engine.alias())

    @pytest.mark.parametrize(
        ("name", "sql"),
        [("ä" * 32, '"' + "ä" * 31 + '"'), ("x" * 64, "x" * 63)],
    )
    def test_a_name_that_the_database_shortens(self, name: str, sql: str) -> None:
        view = view_of("One", name)
        with defined(f"CREATE TABLE {sql} {COLUMNS}", undone=f"DROP TABLE {sql}"), made(view):
            assert changes.install(engine.alias()) == {name: "its name is longer than 63 bytes"}
            for number in (1, 2):
                execute(f"INSERT INTO {sql} VALUES ({number}, 1)")
                refreshed(view)
                assert view.objects.count() == number

    def test_a_name_that_names_the_database(self) -> None:
        view = view_of("One", f'{connection.settings_dict["NAME"]}"."made_legacy"."item')
        with made(view):
            changes.install(engine.alias())
            for number in (1, 2):
                execute(f"INSERT INTO made_legacy.item VALUES ({number}, 1)")
                refreshed(view)
                assert view.objects.count() == number


@on_mysql
def test_a_table_of_another_database_is_a_full_refresh_that_says_so() -> None:
    database = f"made_other_{os.getpid()}"
    name = f"{database}`.`item"
    with defined(
        f"CREATE DATABASE {database}", f"CREATE TABLE {database}.item {COLUMNS}",
        undone=f"DROP DATABASE {database}",
    ), made(view := view_of("One", name)):  # fmt: skip
        faults = changes.install(engine.alias())

        assert faults == {
            name: (
                "its name includes a database, and triggers work in the connection's database only"
            )
        }
        for number in (1, 2):
            execute(f"INSERT INTO {database}.item VALUES ({number}, 1)")
            refreshed(view)
            assert view.objects.count() == number


@on_mysql
def test_names_that_differ_by_case_alone_are_kept_apart() -> None:
    with defined(
        f"CREATE TABLE made_item {COLUMNS}", f"CREATE TABLE Made_Item {COLUMNS}",
        undone=("DROP TABLE made_item", "DROP TABLE Made_Item"),
    ):  # fmt: skip
        one, other = view_of("One", "made_item"), view_of("Other", "Made_Item")
        with tracked(one, other):
            assert TrackedTable.objects.count() == 2
            follows(one, other, lambda: execute("INSERT INTO made_item VALUES (1, 1)"))
            follows(other, one, lambda: execute("INSERT INTO Made_Item VALUES (1, 1)"))
            both = [each.source().model.objects.all() for each in (one, other)]
            for rows in both:
                rows.update(n=3)
            assert [keys_looked_at(each) for each in (one, other)] == [1, 1]
