"""Batches that wait while the database is unwell, by what the server really tells."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction

from benchmarks.statements import statements
from matviews import checks, engine, tasks
from matviews.databases import Load, load_reader_of
from matviews.databases.base.load import LoadReader
from matviews.engine.dispatch import governor
from matviews.health import check_health
from matviews.models import Refresh, ViewControl
from matviews.states import RefreshState, ViewState
from matviews.tasks import inline
from tests.helpers import roles
from tests.helpers.engine import due, held_open, in_another_connection, travel
from tests.helpers.ledger import add_items
from tests.helpers.source_views import sourced
from tests.helpers.view_classes import run
from tests.management.test_command import command
from tests.sample.models import Item, Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LABEL = "sample.Limited"
ON = {"GOVERNOR_ACTIVE_SESSIONS": 10}
WELL, UNWELL = Load(active_sessions=1), Load(active_sessions=11)
on_postgresql = pytest.mark.only_on("postgres", reason="about PostgreSQL")
on_a_server = pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no sessions")


@pytest.fixture(autouse=True)
def rows(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.sync_controls()
    add_items(3)
    settings.MATVIEWS = ON
    monkeypatch.setattr(governor, "_READINGS", {})
    monkeypatch.setattr(governor, "_LOGGED", {engine.alias()})


@contextmanager
def load(found: Load | Exception) -> Iterator[mock.Mock]:
    """What the database tells within the block; an earlier reading does not count."""
    governor._READINGS.clear()
    answer: Any = (
        {"side_effect": found} if isinstance(found, Exception) else {"return_value": found}
    )
    with mock.patch.object(type(load_reader_of(engine.alias())), "read", **answer) as read:
        yield read
    governor._READINGS.clear()


def control() -> Any:
    return ViewControl.objects.get(label=LABEL)


def state_of(refresh: Refresh) -> str:
    return Refresh.objects.get(pk=refresh.pk).state


def reason() -> str:
    (status,) = engine.view_statuses([LABEL])
    return str(status.wait or "")


class TestWaiting:
    def test_no_message_is_sent_while_it_is_unwell_and_maintenance_asks_again(self) -> None:
        refresh = engine.request(Limited)
        with load(UNWELL):
            (step,) = engine.close_finished_in_view(refresh.view_id)
            assert step.message is None
            assert reason() == "11 active sessions, of at most 10"
            for option in ("--list", "--check"):
                assert "waits: 11 active sessions" in command(option, "--models", "Limited").out
            travel(timedelta(minutes=1))
            assert engine.wake() == [refresh.view_id]
            assert inline.run_to_end(refresh).state == RefreshState.OPEN
        travel(timedelta(minutes=1))
        engine.wake()
        with load(WELL):
            assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
        assert (reason(), control().governed_since) == ("", None)

    def test_a_worker_asks_before_the_batch(self) -> None:
        refresh = engine.request(Limited)
        with load(WELL):
            message = due(Limited)
        with load(UNWELL):
            tasks.insert_batch.run(message.shard_id, message.token)
        assert not Limited.objects.exists()
        assert state_of(refresh) == RefreshState.OPEN

    def test_after_the_longest_wait_it_goes_on_to_its_end_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        refresh = engine.request(Limited)
        with load(UNWELL):
            engine.close_finished_in_view(refresh.view_id)
            travel(timedelta(minutes=29))
            assert inline.run_to_end(refresh).state == RefreshState.OPEN
            travel(timedelta(minutes=2))
            ended = inline.run_to_end(refresh)
        assert (ended.state, str(ended.proceeded_despite)) == (
            RefreshState.SUCCEEDED, "11 active sessions, of at most 10",
        )  # fmt: skip
        assert "it has waited long enough" in caplog.text
        assert control().governed_since is None

    def test_the_command_says_what_it_waits_for_and_goes_on_by_itself(self) -> None:
        seen: list[Load] = []

        def read(_self: object) -> Load:
            governor._READINGS.clear()
            seen.append(UNWELL if len(seen) < 3 else WELL)
            return seen[-1]

        reader = type(load_reader_of(engine.alias()))
        with (
            mock.patch.object(governor, "READ_EVERY", -1.0),
            mock.patch.object(reader, "read", read),
        ):
            done = command("--models", "Limited")

        assert "waits, at most 0:30:00: 11 active sessions" in done.out + done.err
        assert Limited.objects.count() == 3

    def test_a_forced_refresh_waits_too_which_is_no_lack_of_workers(self) -> None:
        refresh = engine.request(Limited, force=True)
        with load(UNWELL):
            assert engine.close_finished_in_view(refresh.view_id)[0].message is None
        Refresh.objects.update(requested_at=engine.now() - timedelta(hours=1))
        (status,) = engine.view_statuses([LABEL])
        assert status.state != ViewState.WAITING
        assert not [each for each in check_health().problems if each.kind == "no worker"]

    def test_what_cannot_be_read_stops_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        with load(DatabaseError("denied")):
            assert run(Limited).state == RefreshState.SUCCEEDED
        assert "the load of the database cannot be read" in caplog.text

    def test_each_process_reads_it_once_in_a_while(self) -> None:
        with load(WELL) as read:
            run(Limited)
            run(Limited)
        assert read.call_count == 1

    def test_without_a_limit_nothing_is_asked(self, settings: Any) -> None:
        settings.MATVIEWS = {}
        with load(UNWELL) as read, statements() as found:
            assert run(Limited).state == RefreshState.SUCCEEDED
        assert read.call_count == 0
        assert not any("pg_stat" in each or "Threads" in each for each in found)

    @pytest.mark.parametrize(
        ("setting", "found", "said"),
        [
            ({"GOVERNOR_REPLICATION_LAG": 5}, Load(replication_lag=7.0), "7 s of replication lag"),
            ({"GOVERNOR_TRANSACTION_AGE": 5}, Load(transaction_age=9.0), "9 s since a transaction"),
            (
                {"GOVERNOR_VACUUM": True},
                Load(vacuumed=frozenset({Limited._meta.db_table, "other"})),
                "sample_limited is being vacuumed",
            ),
        ],
    )
    def test_each_limit_has_its_reason(
        self, settings: Any, setting: dict[str, Any], found: Load, said: str
    ) -> None:
        settings.MATVIEWS = setting
        refresh = engine.request(Limited)
        with load(found):
            engine.close_finished_in_view(refresh.view_id)
        assert said in reason()

    def test_a_vacuum_of_another_table_is_no_reason(self, settings: Any) -> None:
        settings.MATVIEWS = {"GOVERNOR_VACUUM": True}
        with load(Load(vacuumed=frozenset({"other"}))):
            assert run(Limited).state == RefreshState.SUCCEEDED


class TestServers:
    @on_a_server
    def test_sessions_at_work_are_counted(self) -> None:
        before = read().active_sessions
        assert before is not None
        sleep = "SELECT pg_sleep(%s)" if connection.vendor == "postgresql" else "SELECT SLEEP(%s)"

        def work() -> None:
            with connection.cursor() as cursor:
                cursor.execute(sleep, [3])

        busy = [in_another_connection(work) for _number in range(4)]
        counts = []
        while any(thread.is_alive() for thread in busy):
            counts.append(read().active_sessions or 0)
        assert max(counts) >= 4

    @on_postgresql
    def test_the_oldest_transaction_is_known(self) -> None:
        def begin() -> None:
            Item.objects.count()

        with held_open(begin):
            first, second = read().transaction_age, read().transaction_age
        assert first is not None
        assert second is not None
        assert 0 < first < second

    @on_postgresql
    def test_a_table_that_is_being_vacuumed_is_known_and_its_views_wait(
        self, settings: Any
    ) -> None:
        settings.MATVIEWS = {"GOVERNOR_VACUUM": True}
        table, pid = Item._meta.db_table, []
        Item.objects.bulk_create(Item(value=number) for number in range(20_000))

        def vacuum() -> None:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_backend_pid(), set_config('vacuum_cost_delay', '100', false)"
                )
                pid.append(cursor.fetchone()[0])
                cursor.execute("SET vacuum_cost_limit = 1")
                with suppress(OperationalError):  # it is cancelled
                    cursor.execute(f"VACUUM {table}")

        vacuuming = in_another_connection(vacuum)
        try:
            while table not in read().vacuumed:
                assert vacuuming.is_alive()
            view = sourced(options={"tracking": False})
            assert inline.run_to_end(engine.request(view)).state == RefreshState.OPEN
            (status,) = engine.view_statuses([view._meta.label])
            assert str(status.wait) == f"{table} is being vacuumed"
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_cancel_backend(%s)", pid)
            vacuuming.join()

    @on_postgresql
    def test_a_role_that_may_not_see_is_told_and_blocks_nothing(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.MATVIEWS = {"GOVERNOR_ACTIVE_SESSIONS": 1, "GOVERNOR_TRANSACTION_AGE": 1}
        governor._LOGGED.clear()
        with roles.database_role("blind") as role, roles.as_role(role), transaction.atomic():
            assert engine.ineffective_limits().keys() == set(settings.MATVIEWS)
            governor._load()
            governor._READINGS.clear()
            governor._load()
            problems = checks.check_governor(databases=[engine.alias()])
        assert caplog.text.count("a limit of the governor has no effect") == 2
        assert {each.id for each in problems} == {"matviews.W045"}
        assert "not a member of pg_monitor" in problems[0].msg

    def test_limits_that_the_database_does_not_know_are_named(self, settings: Any) -> None:
        settings.MATVIEWS = {"GOVERNOR_REPLICATION_LAG": 5, "GOVERNOR_ACTIVE_SESSIONS": 5}
        unknown = {
            "postgresql": set(),
            "mysql": {"GOVERNOR_REPLICATION_LAG"},
            "sqlite": set(settings.MATVIEWS),
        }
        assert engine.ineffective_limits().keys() == unknown[connection.vendor]
        assert len(checks.check_governor(databases=[engine.alias()])) == len(
            engine.ineffective_limits()
        )
        assert checks.check_governor(databases=["other"]) == []
        settings.MATVIEWS = {}
        assert checks.check_governor(databases=[engine.alias()]) == []


def read() -> Load:
    return load_reader_of(engine.alias()).read()


def test_a_database_that_tells_nothing() -> None:
    reader = LoadReader(engine.alias())
    assert (reader.read(), reader.may_see(), reader.known) == (Load(), True, frozenset())


def waits_again(view: type[Any] = Limited) -> bool:
    """Whether a refresh that is requested now waits, and is not let go at once."""
    refresh = engine.request(view)
    engine.wake()
    (step,) = engine.close_finished_in_view(refresh.view_id)
    return step.message is None and control().governed_since is not None


class TestAWaitThatSomethingElseEnded:
    """The next wait may be as long as the first."""

    @pytest.fixture(autouse=True)
    def governed(self) -> Iterator[Refresh]:
        with load(UNWELL):
            refresh = engine.request(Limited)
            engine.close_finished_in_view(refresh.view_id)
            yield refresh

    def test_by_a_stop(self, governed: Refresh) -> None:
        engine.request_stop(governed.pk)
        engine.close_finished_in_view(governed.view_id)
        assert state_of(governed) == RefreshState.STOPPED
        travel(timedelta(hours=4))
        assert waits_again()

    def test_by_a_pause(self, governed: Refresh) -> None:
        travel(timedelta(hours=4))
        for paused in (True, False):
            changed = control()
            changed.paused = paused
            changed.save()
        assert waits_again()

    def test_by_quiet_hours(self, governed: Refresh) -> None:
        now = engine.utc_now()
        travel(timedelta(seconds=20))
        engine.wake()
        views = ViewControl.objects.filter(label=LABEL)
        hours = {"quiet_from": now - timedelta(minutes=1), "quiet_until": now + timedelta(hours=8)}
        views.update(**{name: at.time() for name, at in hours.items()}, quiet_zone="UTC")
        engine.close_finished_in_view(governed.view_id)
        travel(timedelta(hours=8, minutes=1))
        views.update(quiet_from=None, quiet_until=None)
        assert waits_again()


def test_while_one_goes_on_that_has_waited_long_enough_others_do_not_hold_it_up() -> None:
    first = engine.request(Limited, phases=["update"])
    with load(UNWELL):
        engine.close_finished_in_view(first.view_id)
        travel(timedelta(minutes=31))
        engine.wake()
        (step,) = engine.close_finished_in_view(first.view_id)
        assert step.message
        engine.request(Limited, phases=["insert"])
        engine.wake()
        (step,) = engine.close_finished_in_view(first.view_id)
        assert step.message
        assert control().governed_since is None


def test_a_load_that_cannot_be_read_at_all_stops_nothing() -> None:
    with load(InterfaceError("connection already closed")):
        assert run(Limited).state == RefreshState.SUCCEEDED


def test_quiet_hours_that_were_removed_hold_no_longer_after_maintenance() -> None:
    now, views = engine.utc_now(), ViewControl.objects.filter(label=LABEL)
    hours = {"quiet_from": now - timedelta(minutes=1), "quiet_until": now + timedelta(hours=8)}
    views.update(**{name: at.time() for name, at in hours.items()}, quiet_zone="UTC")
    refresh = engine.request(Limited)
    engine.close_finished_in_view(refresh.view_id)
    engine.end_quiet_hours()
    assert engine.is_waiting(refresh.view_id)

    views.update(quiet_from=None, quiet_until=None)
    engine.end_quiet_hours()
    assert engine.wake() == [refresh.view_id]
