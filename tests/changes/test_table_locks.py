"""Triggers are made and removed table by table while a writer's transaction is open.

Nobody waits for us.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError
from django.db import connection, models
from django.db.models import F
from django.db.models.signals import post_migrate, pre_migrate

from matviews import changes, engine, tasks
from matviews.databases import triggers_of
from matviews.models import TrackedTable
from tests.helpers.engine import held_open, in_another_connection, without_sqlite
from tests.helpers.tables import derived_view, execute, key, made, model

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
    without_sqlite,
]

NAMES = ("Ones", "Twos", "Threes")
TABLES = ["made_ones", "made_threes", "made_twos"]
LOCKED = {"made_twos": changes.LOCKED}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matviews.changes.table_locks.PAUSE_SECONDS", 0.05)


@pytest.fixture
def rows() -> Iterator[dict[str, type[Any]]]:
    several = {
        name: model(
            name, n=models.IntegerField(null=True), meta={"db_table": f"made_{name.lower()}"}
        )
        for name in NAMES
    }
    views = [_copy_of(each) for each in several.values()]
    with made(*several.values(), *views):
        yield several
        changes.remove(engine.alias())


def _copy_of(rows: type[Any]) -> type[Any]:
    return derived_view(
        lambda cls: rows.objects.values("n", ref=F("pk")),
        name=f"Of{rows.__name__}", ref=key(), n=models.IntegerField(null=True),
    )  # fmt: skip


def held(rows: type[Any]) -> AbstractContextManager[None]:
    """A transaction that has written to a table stays open."""
    return held_open(lambda: rows.objects.create(n=1))


def tracked() -> list[str]:
    """The tables that have triggers."""
    return sorted(triggers_of(engine.alias()).installed_triggers())


def migrated(signal: Any, label: str = "shapes") -> str:
    migration = type("Migration", (), {"app_label": label, "operations": []})()
    sender, out = apps.get_app_config("matviews"), StringIO()
    signal.send(
        sender, app_config=sender, using=engine.alias(), apps=apps, plan=[(migration, False)],
        stdout=out, verbosity=1, interactive=False,
    )  # fmt: skip
    return out.getvalue()


def test_installing_leaves_what_is_locked_and_does_the_others(rows: dict[str, type[Any]]) -> None:
    with held(rows["Twos"]):
        told = migrated(post_migrate)

        assert "The triggers of made_twos were not created: another transaction has written" in told
        assert tracked() == ["made_ones", "made_threes"]
        tasks.maintain()
        assert tracked() == ["made_ones", "made_threes"]
    tasks.maintain()

    assert tracked() == TABLES
    assert list(changes.find_problems(engine.alias())) == []


def test_the_maintenance_task_makes_no_triggers_that_another_version_has_left(
    rows: dict[str, type[Any]],
) -> None:
    changes.install(engine.alias())
    changes.remove(engine.alias(), ["made_twos"])
    TrackedTable.objects.create(table="made_twos", pending_version="01234567")

    tasks.maintain()

    assert tracked() == ["made_ones", "made_threes"]


def test_the_maintenance_task_names_the_command_where_it_may_not(
    rows: dict[str, type[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with held(rows["Twos"]):
        assert changes.install(engine.alias()) == LOCKED
    monkeypatch.setattr(
        "matviews.databases.base.triggers.Triggers.create", lambda *_given: ["DROP nonsense"]
    )

    tasks.maintain()

    assert (
        "run `manage.py update_materialized_views --triggers install` as the owner" in caplog.text
    )


@pytest.mark.parametrize("label", ["shapes", "matviews"])
def test_removing_stops_migrate_and_takes_no_tables_triggers(
    rows: dict[str, type[Any]], label: str
) -> None:
    changes.install(engine.alias())
    with held(rows["Twos"]):
        with pytest.raises(
            CommandError, match="The triggers of made_twos must be dropped before it is altered"
        ):
            migrated(pre_migrate, label)
        assert tracked() == TABLES
    for each in rows.values():
        each.objects.create(n=2)
    migrated(pre_migrate, label)

    assert tracked() == []
    assert migrated(post_migrate, label) == ""
    assert list(changes.find_problems(engine.alias())) == []


@pytest.mark.parametrize("work", ["install", "drop_before_migrate"])
def test_no_writer_waits_longer_than_a_second(
    rows: dict[str, type[Any]], work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of its own a second longer, for what the machine adds."""
    if work == "drop_before_migrate":
        changes.install(engine.alias())
    waited: list[float] = []
    done = threading.Event()

    def write() -> None:
        name = (
            "lock_timeout = '2s'" if connection.vendor == "postgresql" else "lock_wait_timeout = 2"
        )
        execute(f"SET {name}")
        while not done.is_set():
            rows["Twos"].objects.create(n=3)
            waited.append(1)
            time.sleep(0.01)

    with held(rows["Twos"]):
        thread = in_another_connection(write)
        _until(lambda: bool(waited))
        if work == "install":
            assert changes.install(engine.alias()) == LOCKED
        else:
            with pytest.raises(CommandError):
                migrated(pre_migrate)
        done.set()
        thread.join()

    assert len(waited) > 1  # an error of the thread fails the test


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
