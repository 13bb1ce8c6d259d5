"""How many views are refreshed at the same time in a queue; the others wait, and hold nothing."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError

from benchmarks.statements import statements
from matviews import engine, tasks
from matviews.engine import refresh_limit
from matviews.models import Refresh, ViewControl, ViewShard
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers.engine import due, in_another_connection, shard_of, travel, without_sqlite
from tests.helpers.ledger import add_items
from tests.helpers.processes import Workers
from tests.helpers.view_classes import run
from tests.management.test_command import command
from tests.sample.models import Item, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VIEWS: list[type[Any]] = [Limited, Walked, Sharded]


@pytest.fixture(autouse=True)
def rows(settings: Any) -> None:
    engine.sync_controls()
    add_items(30)
    settings.MATVIEWS = {"MAX_REFRESHES": 1, "BATCH_SIZE_INITIAL": 10, "BATCH_SIZE_MAX": 10}


def control(view: type[Any]) -> ViewControl:
    return ViewControl.objects.get(label=view._meta.label)


def message_of(view: type[Any]) -> engine.Message | None:
    return engine.close_finished(shard_of(view).pk).message


def reason(view: type[Any]) -> str:
    (status,) = engine.view_statuses([view._meta.label])
    return status.wait_reason


def begun(view: type[Any]) -> Refresh:
    """A refresh of which one batch is done, of several."""
    refresh = engine.request(view, phases=["insert"])
    engine.run_batch(due(view))
    return refresh


def waiting(view: type[Any]) -> Refresh:
    refresh = engine.request(view, phases=["insert"])
    assert message_of(view) is None
    return refresh


class TestWaiting:
    def test_the_next_view_waits_holds_nothing_and_says_why(self) -> None:
        first = begun(Limited)
        waiting(Walked)
        assert reason(Walked) == "at most 1 view is refreshed at the same time"
        assert "waits: at most 1 view" in command("--list", "--models", "Walked").out
        assert not shard_of(Walked).is_claimed
        assert not Walked.objects.exists()
        # and the first goes on
        assert message_of(Limited) is not None
        assert inline.run_to_end(first).state == RefreshState.SUCCEEDED
        assert Limited.objects.count() == 30

    def test_a_worker_asks_before_the_batch(self) -> None:
        refresh = engine.request(Walked, phases=["insert"])
        message = due(Walked)
        ViewControl.objects.update(slot=None)
        begun(Limited)
        tasks.insert_batch.run(message.shard_id, message.token)
        assert not Walked.objects.exists()
        assert Refresh.objects.get(pk=refresh.pk).state == RefreshState.OPEN

    def test_the_end_of_one_wakes_the_one_that_has_waited_longest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[engine.Message] = []

        def send(messages: list[engine.Message]) -> bool:
            sent.extend(messages)
            return True

        monkeypatch.setattr(tasks, "send", send)
        begun(Limited)
        for view in (Walked, Sharded):
            waiting(view)
            travel(timedelta(seconds=1))
        while (message := message_of(Limited)) is not None:
            tasks.insert_batch.run(message.shard_id, message.token)
        assert [each.shard_id for each in sent if each.shard_id != shard_of(Limited).pk] == [
            shard_of(Walked).pk
        ]
        assert control(Walked).slot == ""
        assert waits_still(Sharded)

    def test_nobody_overtakes_one_that_waits(self) -> None:
        first = begun(Limited)
        waiting(Walked)
        inline.run_to_end(first)
        # when another view asks before the first in line has been woken
        waiting(Sharded)
        travel(timedelta(minutes=1))
        assert set(engine.wake()) == {control(Walked).pk, control(Sharded).pk}
        assert message_of(Sharded) is None
        assert message_of(Walked) is not None

    @pytest.mark.parametrize("change", [{"paused": True}, {"enabled": False}])
    def test_a_view_that_is_held_lets_others_go_on_and_asks_again(
        self, change: dict[str, bool]
    ) -> None:
        begun(Limited)
        ViewControl.objects.filter(label=Limited._meta.label).update(**change)
        begun(Walked)
        back = {name: not value for name, value in change.items()}
        ViewControl.objects.filter(label=Limited._meta.label).update(**back)
        assert message_of(Limited) is None
        assert waits_still(Limited)

    def test_a_view_that_waits_after_a_failure_does_too(self) -> None:
        begun(Limited)
        ViewControl.objects.filter(label=Limited._meta.label).update(
            failures=1, retry_at=engine.now() + timedelta(hours=1)
        )
        begun(Walked)

    def test_a_batch_that_runs_keeps_the_slot_of_a_view_that_is_paused(self) -> None:
        engine.request(Limited, phases=["insert"])
        message = due(Limited)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=engine.now()
        )
        ViewControl.objects.filter(label=Limited._meta.label).update(paused=True)
        waiting(Walked)

    def test_after_the_longest_wait_it_goes_on_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        begun(Limited)
        refresh = waiting(Walked)
        travel(timedelta(minutes=31))
        engine.wake()
        ended = inline.run_to_end(refresh)
        assert (ended.state, ended.waited_out) == (
            RefreshState.SUCCEEDED, "at most 1 view is refreshed at the same time",
        )  # fmt: skip
        assert "it has waited long enough" in caplog.text

    def test_what_cannot_be_counted_stops_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_args: Any) -> bool:
            raise DatabaseError("locked")

        monkeypatch.setattr(refresh_limit, "_takes_slot", broken)
        assert run(Limited).state == RefreshState.SUCCEEDED
        assert "the limit of refreshes cannot be applied" in caplog.text

    def test_without_a_limit_nothing_is_counted(self, settings: Any) -> None:
        settings.MATVIEWS = {}
        begun(Limited)
        with statements() as found:
            begun(Walked)
        assert not any("slot" in each and "UPDATE" in each for each in found)
        assert control(Walked).slot is None


def waits_still(view: type[Any]) -> bool:
    return "refreshed at the same time" in control(view).wait_reason


class TestQueues:
    def test_each_queue_has_its_own_slots(self) -> None:
        ViewControl.objects.filter(label=Walked._meta.label).update(queue="reports")
        begun(Limited)
        begun(Walked)
        assert {control(Limited).slot, control(Walked).slot} == {"", "reports"}

    def test_a_limit_is_that_of_its_queue(self, settings: Any) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": {"reports": 2}}
        ViewControl.objects.filter(label__in=[each._meta.label for each in VIEWS]).update(
            queue="reports"
        )
        begun(Limited)
        begun(Walked)
        waiting(Sharded)
        assert reason(Sharded) == (
            "at most 2 views of the queue reports are refreshed at the same time"
        )
        ViewControl.objects.filter(label=Sharded._meta.label).update(
            queue="", retry_at=None, wait_reason=""
        )
        assert message_of(Sharded) is not None


def ask(view: type[Any]) -> None:
    message_of(view)


@without_sqlite
def test_two_that_ask_at_once_do_not_both_get_the_last_slot() -> None:
    for view in VIEWS:
        engine.request(view, phases=["insert"])
    for _round in range(5):
        ViewControl.objects.update(slot=None, governed_since=None, retry_at=None, wait_reason="")
        asking = [in_another_connection(partial(ask, view)) for view in VIEWS]
        for each in asking:
            each.join()
        assert ViewControl.objects.exclude(slot=None).count() == 1


def test_two_workers_refresh_one_view_after_the_other(workers: Workers) -> None:
    """With two free processes, the batches of two views never mix."""
    workers.start(2, children=1)
    for view in (Limited, Walked):
        view.refresh()
    workers.wait_for(
        lambda: Limited.objects.count() == Walked.objects.count() == Item.objects.count()
    )
    workers.wait_until_quiet()
    first, second = Refresh.objects.order_by("started_at")
    assert first.finished_at is not None
    assert second.started_at is not None
    assert first.finished_at <= second.started_at
    assert workers.lines("ERROR") == []
