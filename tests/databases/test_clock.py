"""No process's own clock decides: what is compared with a stored time is the database's."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.utils import timezone

import matviews
from matviews import engine, tasks
from matviews.databases import clock
from matviews.engine.batches import claim
from matviews.models import Heartbeat, Refresh, ViewControl, ViewShard
from matviews.states import RefreshState, ViewState
from matviews.tasks import expiry, schedules
from tests.helpers.engine import due, items, without_sqlite
from tests.helpers.processes import Workers
from tests.helpers.view_classes import run
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

FAR = timedelta(days=40)
SOON = timedelta(minutes=5)


@pytest.fixture(autouse=True)
def _read_again() -> Iterator[None]:
    clock._READINGS.clear()
    engine.sync_controls()
    yield
    clock._READINGS.clear()
    engine.now()


@pytest.fixture(params=[FAR, -FAR], ids=["ahead", "behind"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this process is far from that of the database."""
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + request.param)


def test_the_clock_is_that_of_the_database(settings: Any) -> None:
    assert abs(engine.now() - datetime.now(UTC)) < SOON
    settings.USE_TZ = False
    assert abs(engine.now() - datetime.now()) < SOON  # noqa: DTZ005 - as Django has it then


def test_without_time_zones_it_is_the_projects_whatever_a_request_has_activated(
    settings: Any,
) -> None:
    settings.USE_TZ = False
    with timezone.override("Asia/Tokyo"):
        assert abs(engine.now() - datetime.now()) < SOON  # noqa: DTZ005 - as Django has it then


@pytest.mark.parametrize("uses_zones", [True, False])
def test_since_when_a_worker_is_at_a_batch_is_told_in_the_projects_time(
    settings: Any, uses_zones: bool
) -> None:
    # given a worker in a project that is hours away from UTC
    settings.USE_TZ, settings.TIME_ZONE = uses_zones, "Asia/Tokyo"
    items(1)
    refresh = engine.request(Limited)
    assert claim.claim(due(Limited))
    ViewShard.objects.update(worker="elsewhere:1")
    # when somebody asks who works
    (status,) = engine.view_statuses(["sample.Limited"])
    told = [*status.running, *(each.claim for each in engine.progress_of(refresh))]
    # then each answer has the time at which the batch began
    sinces = [each.since for each in told if each]
    assert len(sinces) == 2
    assert all(abs(engine.now() - since) < SOON for since in sinces)


@without_sqlite  # its clock is that of the process
@pytest.mark.usefixtures("wrong_clock")
def test_a_worker_with_a_wrong_clock_keeps_the_history_and_its_times() -> None:
    # given refreshes that have just ended
    items(1)
    for _ in range(3):
        run(Limited)
    # when a worker trims the history, by its clock weeks later or earlier
    tasks.maintain()
    # then they are all there, and their times are true
    assert Refresh.objects.count() == 3
    for refresh in Refresh.objects.filter(state=RefreshState.SUCCEEDED):
        for moment in (refresh.requested_at, refresh.started_at, refresh.finished_at):
            assert moment is not None
            assert abs(moment - datetime.now(UTC)) < SOON
    control = ViewControl.objects.get(label="sample.Limited")
    assert control.last_insert is not None
    assert abs(control.last_insert - datetime.now(UTC)) < SOON
    # and so is what is told of the view
    (status,) = engine.view_statuses(["sample.Limited"])
    assert status.age is not None
    assert abs(status.age) < SOON
    assert status.state is ViewState.NO_TARGET


@without_sqlite
@pytest.mark.usefixtures("wrong_clock")
def test_a_wrong_clock_neither_silences_nor_raises_the_warning_of_maintenance() -> None:
    schedules.reconcile()
    tasks.maintain()
    assert schedules.maintenance_problem() == ""
    Heartbeat.objects.update(maintenance_ended_at=datetime.now(UTC) - timedelta(hours=1))
    assert "has not run for 1 h" in schedules.maintenance_problem()


@without_sqlite
@pytest.mark.usefixtures("wrong_clock")
def test_a_message_of_beat_expires_by_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    headers: dict[str, Any] = {expiry.GOOD_FOR: 60}
    expiry._note_time(headers=headers)
    assert not expiry.is_expired(headers)
    headers[expiry.SENT_AT] -= 61
    assert expiry.is_expired(headers)


@without_sqlite
@pytest.mark.parametrize("wrong", [FAR, -FAR], ids=["ahead", "behind"])
def test_a_start_is_spread_by_the_databases_clock(
    wrong: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's countdown starts at the sender's time: others would keep the message for weeks."""
    sent: list[Any] = []
    now = current_app.now

    def send(*_args: Any, eta: datetime | None = None, **options: Any) -> None:
        sent.append(eta or current_app.now() + timedelta(seconds=options["countdown"]))

    monkeypatch.setattr(current_app, "now", lambda: now() + wrong)
    monkeypatch.setattr(tasks.refresh, "apply_async", send)
    tasks.refresh("sample.Limited", jitter=100)
    (due,) = sent
    assert abs(due - datetime.now(UTC)) < SOON


@pytest.mark.parametrize("sent", [None, "now", True, [], 10**400])
def test_a_message_that_does_not_say_when_it_was_sent_is_followed(sent: Any) -> None:
    assert not expiry.is_expired({expiry.GOOD_FOR: 60, expiry.SENT_AT: sent})


def test_workers_leave_messages_that_are_too_old(workers: Workers) -> None:
    (worker,) = workers.start()
    items(1)
    for age in (1000, 0):
        headers = {expiry.GOOD_FOR: 60, expiry.SENT_AT: engine.timestamp() - age}
        workers._app.send_task("matviews.refresh", ["sample.Limited"], headers=headers)
    workers.wait_for(Refresh.objects.filter(state=RefreshState.SUCCEEDED).exists)
    assert worker.lines("message expired task=matviews.refresh")
    assert Refresh.objects.count() == 1


def test_no_module_asks_for_the_time_of_its_process() -> None:
    """But for when a crontab is due next: Celery tells that by the clock of the process."""
    package = Path(matviews.__file__).parent
    asks = re.compile(
        r"\btimezone\.now\b|\bdatetime\.(now|today|utcnow)\b|\bdate\.today\b"
        r"|\btime\.time(_ns)?\b|\blocal(date|time)\(\)"
        r"|\bauto_now|\bcountdown=|\{% now\b|\|(timesince|timeuntil|naturaltime|naturalday)\b"
    )
    found = {
        str(path.relative_to(package))
        for folder in (package, package / "tasks")  # a link
        for path in folder.rglob("*.*")
        if path.suffix in (".py", ".html") and asks.search(path.read_text())
    }
    # SQLite has no clock of its own: there the catalog asks the process.
    assert found == {"databases/base/catalog.py", "databases/clock.py", "tasks/periodic.py"}
