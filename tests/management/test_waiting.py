"""`--enqueue --wait`: the command follows what workers do, and says if none does anything."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction

from matviews import engine, tasks
from matviews.management import progress, reporting, waiting
from matviews.models import Heartbeat, Refresh, ViewControl
from matviews.tasks import inline
from matviews.waits import Wait, WaitCode
from tests.helpers.engine import in_another_connection
from tests.helpers.ledger import add_items, fault
from tests.management.test_command import command
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

ARGUMENTS = ("--enqueue", "--wait", "--models", "Limited")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    engine.sync_controls()
    monkeypatch.setattr(waiting, "SECONDS_BETWEEN_UPDATES", 0.01)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another thread takes what is sent."""
    started: list[threading.Thread] = []

    def send(messages: Any) -> bool:
        shards = [message.shard_id for message in messages]
        started.append(in_another_connection(lambda: inline.run_until_idle(shards)))
        return True

    monkeypatch.setattr(tasks, "send", send)
    yield
    for thread in started:
        thread.join()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker takes messages, and no worker takes them from it."""
    monkeypatch.setattr(tasks, "send", lambda messages: bool(list(messages)))
    monkeypatch.setattr(waiting, "MAX_SECONDS_UNTAKEN", 0.0)


def look(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Do this at the third look."""
    sleep, looks = time.sleep, iter(range(100))

    def count(seconds: float) -> None:
        sleep(seconds)
        if next(looks) == 3:
            then()

    monkeypatch.setattr(time, "sleep", count)


@pytest.mark.usefixtures("worker")
class TestWithWorker:
    def test_it_shows_the_end_of_each_phase_and_succeeds(self) -> None:
        add_items(3)
        ran = command(*ARGUMENTS)

        assert (ran.status, ran.err) == (0, "")
        assert "sample.Limited insert: 3 rows in 1 batch" in ran.out
        assert Limited.objects.count() == 3

    def test_as_json_it_is_what_the_refresh_did(self) -> None:
        add_items(3)
        ran = command(*ARGUMENTS, "--format", "json")

        (view,) = ran.document["views"]
        assert (view["state"], view["sent"]) == ("succeeded", True)
        assert view["phases"][0]["rows"] == 3

    def test_a_failure_is_one_as_if_the_command_had_run_it(self) -> None:
        add_items(3)
        with fault(Limited, "do_insert", "raise"):
            ran = command(*ARGUMENTS)

        assert ran.status == 1
        assert "sample.Limited: insert: RuntimeError" in ran.err
        assert "1 of 1 views failed" in ran.err

    def test_several_views_are_followed_one_after_the_other(self) -> None:
        add_items(3)
        ran = command("--enqueue", "--wait", "--models", "Limited,Whole")

        assert ran.status == 0
        assert Refresh.objects.filter(state="succeeded").count() == 2


@pytest.mark.usefixtures("nobody")
class TestWithoutWorker:
    def stop(self) -> None:
        Refresh.objects.update(stop_requested=True)
        engine.close_finished_in_view(Refresh.objects.get().view_id)

    def test_it_says_so_and_goes_on_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add_items(3)
        look(monkeypatch, lambda: inline.run_to_end(Refresh.objects.get()))
        ran = command(*ARGUMENTS)

        assert ran.status == 0
        assert ran.err.count("no worker has taken the refresh for 0 ms. Check that one runs") == 1
        assert "The broker" not in ran.err

    def test_it_names_the_queue_of_the_view(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add_items(3)
        ViewControl.objects.filter(label="sample.Limited").update(queue="big")
        look(monkeypatch, self.stop)

        assert "listens to the queue 'big'" in command(*ARGUMENTS).err

    def test_no_batch_takes_time_that_nobody_has_begun(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_items(3)
        monkeypatch.setattr(progress, "MAX_SILENT_BATCH", 0.0)
        monkeypatch.setattr(reporting, "SECONDS_BETWEEN_LINES", 0.0)
        monkeypatch.setattr(reporting, "SECONDS_BETWEEN_UPDATES", 0.0)
        look(monkeypatch, self.stop)
        ran = command(*ARGUMENTS)

        assert "sample.Limited insert: 0 rows, waiting for a worker (" in ran.out
        assert "this batch" not in ran.out

    def test_what_the_refresh_waits_for_is_no_lack_of_workers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_items(3)
        ViewControl.objects.filter(label="sample.Limited").update(
            wait=Wait(WaitCode.ACTIVE_SESSIONS, {"found": 11, "limit": 10})
        )
        look(monkeypatch, lambda: inline.run_to_end(Refresh.objects.get()))
        ran = command(*ARGUMENTS)

        assert ran.status == 0
        assert ran.err.count("sample.Limited waits: 11 active sessions") == 1
        assert "no worker" not in ran.err

    def test_it_names_the_error_of_the_broker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add_items(3)
        Heartbeat.objects.create(pk=1, send_failed_at=engine.now(), send_error="no route")
        look(monkeypatch, self.stop)
        ran = command(*ARGUMENTS)

        assert "The broker could not be reached: no route. The refresh begins" in ran.err
        assert "was stopped by an operator" in ran.err
        assert ran.status == 1

    def test_ctrl_c_ends_the_waiting_and_not_the_refresh(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_items(3)
        look(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
        ran = command(*ARGUMENTS)

        assert ran.status == 130
        assert "The refreshes go on; only this command stops waiting." in ran.err
        assert "Stopped waiting for 1 refresh: workers go on with it." in ran.err
        assert Refresh.objects.get().state == "open"

    def test_a_view_that_is_paused_meanwhile_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_items(3)
        look(monkeypatch, lambda: ViewControl.objects.update(paused=True))
        ran = command(*ARGUMENTS)

        assert ran.status == 1
        assert "is paused; the refresh continues when it is resumed" in ran.err


def test_if_there_is_nothing_to_wait_for_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "send", lambda _messages: pytest.fail("nothing has changed"))
    ViewControl.objects.filter(label="sample.Limited").update(enabled=False)
    ran = command(*ARGUMENTS)

    assert ran.status == 1
    assert "disabled" in ran.err


def test_within_a_transaction_it_would_wait_for_itself() -> None:
    with transaction.atomic():
        ran = command(*ARGUMENTS)

    assert ran.status == 2
    assert not Refresh.objects.exists()


def test_without_enqueue_there_is_nothing_to_wait_for() -> None:
    ran = command("--wait")

    assert ran.status == 2
    assert "--wait is for --enqueue: add that, or leave it out." in ran.err
