"""Hints after commits: what is noted, what is sent, and that no request waits for it."""

import math
import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from django.db import connection, transaction
from django.test import override_settings

from matviews import changes, engine, tasks
from matviews.models import RefreshSchedule, ViewControl
from matviews.tasks import heartbeat, hints
from matviews.tasks.hints import Hinter
from tests.helpers.source_views import sourced_up_to_date
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

TABLE = Item._meta.db_table
HANGS = 60.0  # seconds, at most


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ('INSERT INTO "sample_item" ("value") VALUES (%s)', "sample_item"),
        ("INSERT IGNORE INTO `sample_item` VALUES (1)", "sample_item"),
        ('INSERT OR IGNORE INTO "sample_item" VALUES (1)', "sample_item"),
        ("REPLACE INTO sample_item VALUES (1)", "sample_item"),
        ('UPDATE "sample_item" SET "value" = 1', "sample_item"),
        ("delete from sample_item", "sample_item"),
        ('SELECT * FROM "sample_item"', None),
        ("UPDATED", None),
        ("INSERT", None),
    ],
)
def test_the_table_that_a_statement_writes_to(sql: str, table: str | None) -> None:
    found = hints.TABLE.match(sql)

    assert (found and found[1]) == table


class TestNoted:
    @pytest.fixture
    def noted(self, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[list[str]]:
        """The tables that were noted."""
        settings.MATVIEWS = {"HINT_ON_COMMIT": True}
        tables = list[str]()
        monkeypatch.setattr(hints, "_HINTER", SimpleNamespace(note=tables.append))
        connection.ensure_connection()
        hints._watch(connection=connection)
        hints._watch(connection=connection)  # connected again
        yield tables
        connection.execute_wrappers.remove(hints._execute)
        hints._NOTED.clear()

    def test_each_way_to_write(self, noted: list[str]) -> None:
        item = Item.objects.create(value=1)
        counts = [len(noted)]
        Item.objects.filter(pk=item.pk).update(value=2)
        counts.append(len(noted))
        item.delete()
        counts.append(len(noted))
        Item.objects.bulk_create([Item(value=3), Item(value=4)])
        counts.append(len(noted))
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {TABLE} SET value = 5")
        counts.append(len(noted))

        assert set(noted) == {TABLE}
        assert counts == sorted(set(counts))

    def test_reading_is_not_noted(self, noted: list[str]) -> None:
        list(Item.objects.all())

        assert noted == []

    def test_the_outermost_commit_counts_and_once(self, noted: list[str]) -> None:
        with transaction.atomic():
            with transaction.atomic():
                for value in range(5):
                    Item.objects.create(value=value)
            before = list(noted)

        assert before == []
        assert noted == [TABLE]

    def test_each_transaction_is_noted(self, noted: list[str]) -> None:
        for value in range(2):
            with transaction.atomic():
                Item.objects.create(value=value)

        assert noted == [TABLE, TABLE]

    @pytest.mark.parametrize("inner", [False, True])
    def test_what_is_rolled_back_is_not(self, noted: list[str], inner: bool) -> None:
        with transaction.atomic(), transaction.atomic():
            Item.objects.create(value=1)
            transaction.set_rollback(True)

        assert noted == []

    @pytest.mark.django_db(transaction=False)
    def test_nothing_is_noted_within_the_transaction_of_a_test(self, noted: list[str]) -> None:
        Item.objects.create(value=1)

        assert noted == []

    def test_no_connection_is_watched_if_nobody_wants_hints(self) -> None:
        hints._watch(connection=connection)

        assert hints._execute not in connection.execute_wrappers

    @pytest.mark.parametrize(("changed", "watched"), [({}, True), ({"NAME": "another"}, False)])
    def test_another_alias_counts_if_it_leads_to_the_same_database(
        self, changed: dict[str, str], watched: bool
    ) -> None:
        other: Any = SimpleNamespace(
            alias="other",
            settings_dict={**connection.settings_dict, **changed},
            execute_wrappers=[],
        )
        with override_settings(MATVIEWS={"HINT_ON_COMMIT": True}):
            hints._watch(connection=other)

        assert other.execute_wrappers == [hints._execute] * watched


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.moment = 1_000.0

    def monotonic(self) -> float:
        return self.moment


class TestSent:
    @pytest.fixture(autouse=True)
    def clock(self, own_views: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
        """Workers take pulses, and a tracked view follows the items at once."""
        clock = Clock()
        monkeypatch.setattr(hints, "time", clock)
        monkeypatch.setattr(hints, "connections", mock.Mock())  # its thread is this one
        control = ViewControl.objects.get(label=sourced_up_to_date()._meta.label)
        RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")
        heartbeat.record(pulsed_at=engine.now())
        yield clock
        changes.remove(engine.alias())

    @pytest.fixture
    def send(self) -> mock.Mock:
        return mock.Mock()

    @pytest.fixture
    def hinter(self, send: mock.Mock) -> Hinter:
        """One whose steps the test takes."""
        hinter = Hinter(send)
        hinter._thread = threading.current_thread()
        return hinter

    def written(self, hinter: Hinter, table: str = TABLE, due: float = math.inf) -> float:
        hinter.note(table)
        return hinter.step(due)

    def test_a_table_that_a_view_reads(self, hinter: Hinter, send: mock.Mock) -> None:
        due = self.written(hinter)

        assert send.call_count == 1
        assert due == math.inf

    def test_nothing_for_other_tables(self, hinter: Hinter, send: mock.Mock) -> None:
        self.written(hinter, "elsewhere")
        hinter.note("elsewhere")

        assert send.call_count == 0
        assert not hinter._wake.is_set() or not hinter._written

    @pytest.mark.parametrize("changed", [{"enabled": False}, {"every": None}, {"every": 60}])
    def test_nothing_for_schedules_that_a_pulse_serves_as_well(
        self, hinter: Hinter, send: mock.Mock, changed: dict[str, Any]
    ) -> None:
        RefreshSchedule.objects.update(**changed)
        self.written(hinter)

        assert send.call_count == 0

    def test_nothing_while_workers_take_no_pulses(self, hinter: Hinter, send: mock.Mock) -> None:
        heartbeat.record(pulsed_at=None)
        self.written(hinter)

        assert send.call_count == 0

    def test_it_is_sent_when_the_view_is_due(
        self, hinter: Hinter, send: mock.Mock, clock: Clock
    ) -> None:
        """However often the source changes meanwhile."""
        RefreshSchedule.objects.update(every=4)
        due = self.written(hinter)
        clock.moment += 3
        due = self.written(hinter, due=due)
        early = send.call_count
        clock.moment += 1.1
        due = hinter.step(due)

        assert early == 0
        assert send.call_count == 1
        assert due == math.inf

    def test_at_most_one_in_so_long(self, hinter: Hinter, send: mock.Mock, clock: Clock) -> None:
        due = math.inf
        for _write in range(100):
            due = self.written(hinter, due=due)
            clock.moment += 0.01

        assert 9 <= send.call_count <= 11

    def test_schedules_are_read_again_after_a_while(
        self, hinter: Hinter, send: mock.Mock, clock: Clock
    ) -> None:
        RefreshSchedule.objects.update(enabled=False)
        self.written(hinter)
        RefreshSchedule.objects.update(enabled=True)
        self.written(hinter)
        clock.moment += hints.TRUSTED
        soon = send.call_count
        self.written(hinter)

        assert soon == 0
        assert send.call_count == 1


class TestThread:
    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The items matter, which takes no database to find out."""
        monkeypatch.setattr(Hinter, "_read_delays", lambda self: self._delays.update({TABLE: 0.0}))

    def test_a_request_does_not_wait_for_a_broker_that_hangs(self) -> None:
        hangs, goes_on, sent = threading.Event(), threading.Event(), threading.Event()

        def send() -> None:
            hangs.set()
            goes_on.wait(HANGS)
            sent.set()

        hinter = Hinter(send)
        hinter.note(TABLE)
        assert hangs.wait(HANGS)
        for _request in range(1_000):
            hinter.note(TABLE)
        still_hangs = not sent.is_set()
        goes_on.set()

        assert still_hangs
        assert sent.wait(HANGS)
        assert len(hinter._written) <= 1

    def test_silence_after_one_that_could_not_be_sent(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed = threading.Event()
        monkeypatch.setattr(hints, "log", lambda *_words, **_facts: failed.set())
        hinter = Hinter(mock.Mock(side_effect=OSError("refused")))
        hinter.note(TABLE)
        assert failed.wait(HANGS)
        hinter._written[TABLE] = None

        assert hinter._silent_until > time.monotonic()
        assert hinter._next_due() == math.inf

    def test_a_process_that_was_forked_has_its_own(self) -> None:
        hints._HINTER._thread = threading.current_thread()
        child = os.fork()
        if child == 0:
            os._exit(0 if hints._HINTER._thread is None else 1)
        _pid, status = os.waitpid(child, 0)
        hints._HINTER.forget()

        assert status == 0


@pytest.mark.parametrize("eager", [False, True])
def test_a_hint_is_a_pulse_that_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    apply_async = mock.Mock()
    monkeypatch.setattr(tasks.pulse, "apply_async", apply_async)
    conf = SimpleNamespace(task_always_eager=eager)
    monkeypatch.setattr(hints, "current_app", SimpleNamespace(conf=conf))
    hints._send()

    assert apply_async.call_args_list == [mock.call(queue=None, retry=False)] * (not eager)
