"""A view or source whose table or column is not in the database: one sentence, everywhere."""

# ruff: noqa: N806 - variables that are models

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import F
from django.test import Client, override_settings
from django.urls import reverse

import matviews
from matviews import MaterializedView, changes, checks, engine
from matviews.exceptions import ViewNotReady
from matviews.models import ViewControl
from matviews.states import RefreshState
from tests.helpers import tables, view_classes
from tests.management.test_command import command

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    pytest.mark.database,
]

WAY_OUT = "run `manage.py makemigrations` and `manage.py migrate`."


def copied(**more: Any) -> tuple[type[Any], type[Any]]:
    Rows = tables.model("Rows", n=models.IntegerField())
    view = tables.derived_view(
        lambda cls: Rows.objects.values("n", ref=F("pk")),
        ref=tables.key(),
        n=models.IntegerField(),
        **more,
    )
    return Rows, view


@contextmanager
def without_its_table() -> Iterator[type[Any]]:
    Rows, view = copied()
    with tables.made(Rows):
        Rows.objects.create(n=1)
        engine.sync_controls()
        yield view


def test_a_refresh_names_the_table_and_the_way_out() -> None:
    with without_its_table() as view:
        refresh = view_classes.run(view)
        assert refresh.state == RefreshState.FAILED
        assert "The database has no table shapes_made (of shapes.Made): " in refresh.error
        assert refresh.error.count(WAY_OUT) == 1
        assert not connection.in_atomic_block


@pytest.mark.parametrize("action", ["--verify", "--explain", "--models=Made"])
def test_the_command_names_the_table_once_and_fails(action: str) -> None:
    with without_its_table():
        ran = command(action)
    assert ran.status == 1
    assert ran.err.count("The database has no table shapes_made (of shapes.Made)") == 1
    assert WAY_OUT in ran.err


def test_the_list_names_the_view_without_a_table() -> None:
    with without_its_table():
        ran = command("--list")
    assert "shapes.Made: has no table: run manage.py makemigrations and migrate" in ran.out


def test_a_table_that_the_source_reads_is_named_too() -> None:
    _Rows, view = copied()
    with tables.made(view):
        error = view_classes.run(view).error
    assert "no table shapes_rows (of shapes.Rows)" in error


def test_a_column_is_named() -> None:
    Rows, view = copied(late=models.IntegerField(null=True))
    late = view._meta.get_field("late")
    view._meta.local_fields.remove(late)
    with tables.made(Rows, view):
        Rows.objects.create(n=1)
        view._meta.local_fields.append(late)
        view._meta._expire_cache()
        view.source = classmethod(lambda cls: Rows.objects.values("n", ref=F("pk"), late=F("n")))
        error = view_classes.run(view).error
    assert "The database has no column late in shapes_made (of shapes.Made): " in error


def test_a_view_of_hooks_is_told_of_its_own_table() -> None:
    hooks = view_classes.six_hooks(needs_insert=classmethod(lambda cls: cls.objects.exists()))
    view = tables.model("Hooked", bases=(MaterializedView, models.Model), **hooks)
    engine.sync_controls()
    error = view_classes.run(view).error
    assert error == (
        f"insert: ViewNotReady: The database has no table shapes_hooked (of shapes.Hooked): "
        f"{WAY_OUT}"
    )


def test_another_error_stays_what_it_is() -> None:
    Rows, view = copied()
    with tables.made(Rows, view):
        view.source = classmethod(
            lambda cls: Rows.objects.extra(select={"x": "nowhere.x"}).values()
        )
        assert "The database has no" not in view_classes.run(view).error


@pytest.mark.parametrize(
    "action", ["--list", "--schedules", "--check", "--verify", "--explain", "-v1"]
)
def test_without_the_tables_of_matviews_the_command_says_to_migrate(action: str) -> None:
    with tables.defined(
        "ALTER TABLE matviews_viewcontrol RENAME TO matviews_elsewhere",
        undone="ALTER TABLE matviews_elsewhere RENAME TO matviews_viewcontrol",
    ):
        copied()
        ran = command(action)
    assert ran.status == 1
    assert "Tables of matviews are missing or out of date: run `manage.py migrate`" in ran.err


@pytest.mark.parametrize("action", ["refresh", "is_fresh", "mark_dirty", "verify"])
def test_without_the_tables_of_matviews_python_says_to_migrate(action: str) -> None:
    _Rows, view = copied()
    with (
        tables.defined(
            "ALTER TABLE matviews_viewcontrol RENAME TO matviews_elsewhere",
            undone="ALTER TABLE matviews_elsewhere RENAME TO matviews_viewcontrol",
        ),
        pytest.raises(ViewNotReady, match="Tables of matviews are missing"),
    ):
        getattr(view, action)()


def test_a_missing_table_of_the_project_is_not_blamed_on_matviews() -> None:
    Rows, _view = copied()
    with pytest.raises(DatabaseError), matviews.untracked(Rows):
        Rows.objects.create(n=1)


def test_check_says_what_to_do_about_a_view_without_a_table() -> None:
    with without_its_table() as view:
        new = command("--check", "--models", "Made")
        view_classes.run(view)
        failed = command("--check", "--models", "Made")
    assert "shapes.Made: not on time: its table or its bookkeeping is missing; run " in new.out
    assert "shapes.Made: not on time: failed: " in failed.out
    assert "The database has no table shapes_made (of shapes.Made): " in failed.out
    assert (new.status, failed.status) == (1, 1)


def test_the_admin_says_what_to_do_about_a_missing_table(admin_client: Client) -> None:
    with without_its_table() as view:
        control = ViewControl.objects.get(label=view._meta.label)
        page = admin_client.get(reverse("admin:matviews_viewcontrol_change", args=[control.pk]))
        listed = admin_client.get(reverse("admin:matviews_viewcontrol_changelist"))
    for shown in (page.content.decode(), listed.content.decode()):
        assert "Its table or its bookkeeping is missing: run makemigrations and migrate." in shown
        assert "Not listed" not in shown


def test_migrate_makes_no_table_of_an_unmanaged_model() -> None:
    with without_its_table() as view:
        view._meta.managed = False
        error = view_classes.run(view).error
        listed = command("--list").out
    assert (
        "no table shapes_made (of shapes.Made): migrate leaves models with managed = False alone"
        in error
    )
    assert "makemigrations" not in error
    assert "makemigrations" not in listed
    assert "managed = False" in listed


def test_the_sql_of_triggers_says_which_table_is_missing() -> None:
    missing = (
        "-- Changes to shapes_rows (read by shapes.Made) cannot be logged: there is no such table: "
        f"{WAY_OUT}"
    )
    _Rows, view = copied()
    Others = tables.model("Others", n=models.IntegerField())
    other = tables.derived_view(
        lambda cls: Others.objects.values(ref=F("pk")), name="Other", ref=tables.key()
    )
    with tables.made(view, other):
        engine.sync_controls()
        assert missing in command("--triggers", "sql").out
        with tables.made(Others):
            with_sql = command("--triggers", "sql").out
    assert missing in with_sql
    assert re.search(r"CREATE (OR REPLACE )?TRIGGER", with_sql)


# The checks of `migrate` run before it makes a table or a trigger

MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    initial = True
"""


@pytest.fixture
def _to_be_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A migration of the app `shapes` has yet to run."""
    package = tmp_path / "migrations_to_run"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "0001_initial.py").write_text(MIGRATION)
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(MIGRATION_MODULES={"shapes": package.name}):
        yield
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


def checked() -> list[str]:
    return [problem.msg for problem in checks.check_triggers(databases=[engine.alias()])]


@pytest.mark.usefixtures("_to_be_migrated")
def test_nothing_is_said_of_tables_that_pending_migrations_may_make() -> None:
    copied()
    assert checked() == []


@pytest.mark.usefixtures("_to_be_migrated")
def test_nothing_is_said_of_what_a_view_reads_that_pending_migrations_may_make() -> None:
    with without_its_table():
        assert checked() == []


@pytest.mark.usefixtures("_to_be_migrated")
def test_what_is_there_lacks_its_triggers_whatever_is_pending() -> None:
    Rows, view = copied()
    with tables.made(Rows, view):
        assert checked() == ["The triggers on shapes_rows (read by shapes.Made) are missing."]


@pytest.mark.usefixtures("_to_be_migrated")
def test_what_one_view_reads_lacks_triggers_though_another_view_is_still_to_be_made() -> None:
    Rows, view = copied()
    tables.derived_view(
        lambda cls: Rows.objects.values(ref=F("pk"), other=F("n")),
        name="Other",
        ref=tables.key(),
        other=models.IntegerField(),
    )
    with tables.made(Rows, view):
        assert checked() == ["The triggers on shapes_rows (read by shapes.Made) are missing."]
        changes.install(engine.alias())
        assert checked() == []
        changes.remove(engine.alias())


def test_without_a_migration_a_missing_table_is_named_with_the_way_out() -> None:
    copied()
    (said,) = checked()
    assert said.startswith("Changes to shapes_rows (read by shapes.Made) cannot be logged: ")
    assert said.endswith(WAY_OUT)


def test_a_check_names_the_error_and_the_view_once() -> None:
    Rows, view = copied()
    view.source = classmethod(lambda cls: Rows.objects.values("n", ref=F("pk"), more=F("n")))
    with tables.made(Rows, view):
        engine.sync_controls()
        ran = command("--check", "--models", "Made")
        refreshed = command("--models", "Made")
    assert "shapes.Made: not on time: invalid: " in ran.out
    assert "'more'" in ran.out
    assert "shapes.Made: shapes.Made" not in ran.out + refreshed.err


# --explain without its SQL


@pytest.mark.parametrize("options", [[], ["--no-sql"]])
def test_an_explanation_may_do_without_the_sql(options: list[str]) -> None:
    Rows, view = copied()
    with tables.made(Rows, view):
        text = command("--explain", *options).out
        (entry,) = command("--explain", "--format", "json", *options).document["views"]
    assert ("INSERT INTO" in text) is (not options)
    assert bool(entry["statements"]) is (not options)
    assert entry["strategy"] == "windowed"


def test_no_sql_is_for_explain() -> None:
    ran = command("--no-sql")
    assert (ran.status, ran.err) == (
        2, "CommandError: --no-sql is for --explain: add that, or leave it out.\n",
    )  # fmt: skip
