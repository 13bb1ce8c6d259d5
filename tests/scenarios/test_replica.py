"""The governor and a real streaming replica: a refresh waits while it is behind, then goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from matviews import engine
from matviews.databases.postgresql.load import PostgreSQLLoad
from matviews.engine.dispatch import governor
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.chaos.servers import PostgreSQL, Replica, absence
from tests.helpers import services
from tests.helpers.engine import travel
from tests.helpers.ledger import add_items
from tests.helpers.processes import DEADLINE
from tests.sample.models import Limited

pytestmark = [pytest.mark.long, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def reader() -> PostgreSQLLoad:
    """What reads the load of the primary."""
    return PostgreSQLLoad(engine.alias())


@pytest.fixture
def replica(transactional_db: None, reader: PostgreSQLLoad) -> Iterator[Replica]:
    """A replica of a server of its own."""
    if problem := absence("postgres"):
        (pytest.fail if services.in_ci() else pytest.skip)(problem)
    with TemporaryDirectory(prefix="matviews-replica-") as folder, ExitStack() as ended:
        folders = [Path(folder, name) for name in ("primary", "replica")]
        for each in (Path(folder), *folders):
            each.mkdir(exist_ok=True)
            each.chmod(0o755)  # the server runs as another user
        primary = PostgreSQL(folders[0])
        ended.callback(primary.kill)
        primary.start()
        copy = Replica(folders[1], primary)
        ended.callback(copy.kill)
        copy.start()
        address = urlsplit(primary.url)
        settings = {
            **connections.settings["default"],
            "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres",
            "HOST": address.hostname, "PORT": address.port, "OPTIONS": {},
        }  # fmt: skip
        reader.connection = DatabaseWrapper(settings, engine.alias())
        ended.callback(reader.connection.close)
        yield copy


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def execute(url: str, sql: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql)


def test_a_refresh_waits_until_the_replica_has_caught_up(
    replica: Replica, reader: PostgreSQLLoad, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lag() -> float:
        return reader.read().replication_lag or 0.0

    settings.MATVIEWS = {"GOVERNOR_REPLICATION_LAG": 1}
    monkeypatch.setattr(governor, "load_reader_of", lambda _using: reader)
    monkeypatch.setattr(governor, "_READINGS", {})
    engine.sync_controls()
    add_items(3)
    execute(replica.primary.url, "CREATE TABLE written (number integer)")

    # when the replica stops applying what the primary writes
    execute(replica.url, "SELECT pg_wal_replay_pause()")

    def write_and_look() -> bool:
        execute(replica.primary.url, "INSERT INTO written VALUES (1)")
        return lag() > 1

    until(write_and_look)
    refresh = engine.request(Limited)
    assert inline.run_to_end(refresh).state == RefreshState.OPEN
    (status,) = engine.view_statuses(["sample.Limited"])
    assert "s of replication lag, of at most 1" in str(status.wait)

    # when it goes on
    execute(replica.url, "SELECT pg_wal_replay_resume()")
    until(lambda: lag() < 1)
    governor._READINGS.clear()
    travel(governor.ASK_AGAIN)
    engine.wake()
    assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
