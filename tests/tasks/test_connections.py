"""Tasks in a process whose connection a server has closed, and which Celery keeps."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection

from matviews import engine, tasks
from matviews.models import Heartbeat, Refresh
from tests.helpers.engine import due, shard_of
from tests.helpers.ledger import add_items
from tests.sample.models import Ledger, Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


def lose_connection() -> None:
    """Close the connection without Django's knowledge, as the end of the server does."""
    connection.ensure_connection()
    server = connection.connection
    getattr(server, "_force_close", server.close)()  # PyMySQL closes no connection twice


def request() -> None:
    tasks.refresh(Limited._meta.label)


def run_batch() -> None:
    tasks.insert_batch(shard_of(Ledger).pk, due(Ledger).token)


@pytest.mark.parametrize("work", [request, run_batch])
def test_a_task_after_one_that_has_failed_has_a_connection(work: Callable[[], None]) -> None:
    add_items(1)
    engine.request(Ledger)
    lose_connection()
    with suppress(DatabaseError, InterfaceError):
        tasks.refresh(Limited._meta.label)
    work()
    assert Refresh.objects.filter(view__label=Limited._meta.label).exists() == (work is request)
    assert Ledger.objects.exists() == (work is run_batch)


def test_in_an_outage_maintenance_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> float:
        raise OperationalError("connection refused")

    monkeypatch.setattr(engine, "timestamp", refused)
    tasks.maintain()

    (record,) = caplog.records
    assert record.getMessage().startswith("maintenance did not run, the database cannot be reached")
    assert record.exc_info is None


def test_maintenance_does_its_work_all_the_same() -> None:
    lose_connection()
    tasks.maintain()
    assert Heartbeat.objects.exists()
