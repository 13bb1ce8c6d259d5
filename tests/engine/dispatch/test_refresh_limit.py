"""How many views are refreshed at the same time in a queue; the others wait, and hold nothing."""

import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, transaction

from benchmarks.statements import statements
from matviews import engine, tasks
from matviews.engine.dispatch import refresh_limit
from matviews.models import Refresh, RefreshPermit, RefreshSchedule, ViewControl, ViewShard
from matviews.states import RefreshState
from matviews.tasks import inline
from matviews.tasks.following import Follower
from matviews.waits import WaitCode
from tests.helpers.engine import (
    due,
    held_by_another_worker,
    in_another_connection,
    shard_of,
    travel,
    without_sqlite,
)
from tests.helpers.ledger import add_items, fault
from tests.helpers.processes import Workers
from tests.helpers.view_classes import run
from tests.management.test_command import command
from tests.sample.models import Item, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

VIEWS: list[type[Any]] = [Limited, Walked, Sharded]
LONGER_THAN_A_LEASE = timedelta(minutes=2)


@pytest.fixture(autouse=True)
def rows(settings: Any) -> None:
    engine.sync_controls()
    add_items(30)
    settings.MATVIEWS = {"MAX_REFRESHES": 1, "BATCH_SIZE_INITIAL": 10, "BATCH_SIZE_MAX": 10}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[engine.Message]:
    """The messages that tasks send."""
    messages: list[engine.Message] = []

    def send(due_now: list[engine.Message]) -> bool:
        messages.extend(due_now)
        return True

    monkeypatch.setattr(tasks, "send", send)
    return messages


def control(view: type[Any]) -> ViewControl:
    return ViewControl.objects.get(label=view._meta.label)


def change(view: type[Any], **values: Any) -> None:
    ViewControl.objects.filter(label=view._meta.label).update(**values)


def message_of(view: type[Any]) -> engine.Message | None:
    return engine.close_finished(shard_of(view).pk).message


def reason(view: type[Any]) -> str:
    (status,) = engine.view_statuses([view._meta.label])
    return str(status.wait or "")


def with_permit(queue: str = "") -> list[str]:
    """The views that have a permit of a queue."""
    permits = RefreshPermit.objects.filter(queue=queue, number__isnull=False)
    return sorted(permits.values_list("view__label", flat=True))


def begun(view: type[Any]) -> Refresh:
    """A refresh of which one batch is done, of several."""
    refresh = engine.request(view, phases=["insert"])
    engine.run_batch(due(view))
    return refresh


def waiting(view: type[Any]) -> Refresh:
    """A refresh that has been refused a permit; the next one that is comes after it."""
    refresh = engine.request(view, phases=["insert"])
    assert message_of(view) is None
    assert waits_still(view)
    travel(timedelta(seconds=1))
    return refresh


def follow(*views: type[Any]) -> None:
    """Follow views until all their refreshes have ended."""
    labels = [view._meta.label for view in views]
    at_once = {"on_change": True, "every": 0, "period": "seconds"}
    RefreshSchedule.objects.bulk_create(  # a saved one would send the messages of its view
        RefreshSchedule(view=control(view), **at_once) for view in views
    )
    still_open = Refresh.objects.filter(view__label__in=labels, state=RefreshState.OPEN)
    deadline = time.monotonic() + 30
    Follower(
        stop=lambda: not still_open.exists() or time.monotonic() > deadline,
        report_alive=lambda: None,
        labels=labels,
    ).run()
    assert not still_open.exists()


def waits_still(view: type[Any]) -> bool:
    wait = control(view).wait
    return wait is not None and wait.code == WaitCode.MAX_REFRESHES


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
        assert with_permit() == []

    def test_a_worker_asks_before_the_batch(self) -> None:
        refresh = engine.request(Walked, phases=["insert"])
        message = due(Walked)
        RefreshPermit.objects.all().delete()
        begun(Limited)
        tasks.insert_batch.run(message.shard_id, message.token)
        assert not Walked.objects.exists()
        assert Refresh.objects.get(pk=refresh.pk).state == RefreshState.OPEN

    def test_the_end_of_one_wakes_the_one_that_has_waited_longest(
        self, sent: list[engine.Message]
    ) -> None:
        begun(Limited)
        for view in (Walked, Sharded):
            waiting(view)
        while (message := message_of(Limited)) is not None:
            tasks.insert_batch.run(message.shard_id, message.token)
        others = [each.shard_id for each in sent if each.shard_id != shard_of(Limited).pk]
        assert others == [shard_of(Walked).pk]
        assert with_permit() == [Walked._meta.label]
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

    def test_a_refresh_that_ends_while_another_begins_to_wait_wakes_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = begun(Limited)
        stand_in_line = refresh_limit._stand_in_line

        def and_then_the_first_ends(view_id: int, queue: str) -> None:
            monkeypatch.undo()
            inline.run_to_end(first)
            stand_in_line(view_id, queue)

        monkeypatch.setattr(refresh_limit, "_stand_in_line", and_then_the_first_ends)
        engine.request(Walked, phases=["insert"])
        assert message_of(Walked) is not None
        assert not waits_still(Walked)

    def test_so_does_the_end_of_one_that_the_command_runs(self, sent: list[engine.Message]) -> None:
        begun(Limited)
        for view in (Walked, Sharded):
            waiting(view)
        done = command("--models", "Limited")
        assert (done.status, Limited.objects.count()) == (0, 30)
        assert [each.shard_id for each in sent] == [shard_of(Walked).pk]
        assert with_permit() == [Walked._meta.label]
        assert waits_still(Sharded)

    @pytest.mark.parametrize("follows_both", [True, False])
    def test_so_does_the_end_of_one_that_a_follower_runs(
        self, follows_both: bool, sent: list[engine.Message]
    ) -> None:
        begun(Limited)
        waiting(Walked)
        follow(Limited, *([Walked] if follows_both else []))
        if follows_both:  # which needs no workers for it
            assert (sent, Walked.objects.count()) == ([], 30)
        else:
            assert [each.shard_id for each in sent] == [shard_of(Walked).pk]
            assert with_permit() == [Walked._meta.label]
        assert Limited.objects.count() == 30

    def test_the_next_refresh_of_the_same_view_comes_after_those_that_wait(self) -> None:
        first = begun(Limited)
        waiting(Walked)
        add_items(30)
        with transaction.atomic():
            engine.request(Limited)
        inline.run_to_end(first)
        assert message_of(Limited) is None
        assert engine.wake_next_in_line() == [control(Walked).pk]

    @pytest.mark.parametrize("held", [{"paused": True}, {"enabled": False}])
    def test_a_view_that_is_held_lets_others_go_on_and_asks_again(
        self, held: dict[str, bool]
    ) -> None:
        begun(Limited)
        change(Limited, **held)
        assert message_of(Limited) is None
        begun(Walked)
        change(Limited, **{name: not value for name, value in held.items()})
        assert message_of(Limited) is None
        assert waits_still(Limited)

    @pytest.mark.parametrize("held", [{"paused": True}, {"enabled": False}])
    def test_a_view_that_is_held_while_it_waits_delays_nobody(self, held: dict[str, bool]) -> None:
        first = begun(Limited)
        waiting(Walked)
        change(Walked, **held)
        inline.run_to_end(first)
        begun(Sharded)

    def test_a_view_that_fails_does_too(self) -> None:
        begun(Limited)
        Refresh.objects.update(stop_requested=True)
        assert message_of(Limited) is None
        begun(Walked)

    def test_a_batch_that_runs_keeps_the_permit_of_a_view_that_is_paused(self) -> None:
        engine.request(Limited, phases=["insert"])
        message = due(Limited)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=engine.now()
        )
        change(Limited, paused=True)
        assert message_of(Limited) is None
        waiting(Walked)

    def test_after_the_longest_wait_it_goes_on_and_says_so(
        self, caplog: pytest.LogCaptureFixture, settings: Any
    ) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "LEASE": 7200.0}
        begun(Limited)
        refresh = waiting(Walked)
        travel(timedelta(minutes=31))
        engine.wake()
        engine.run_batch(due(Walked))
        # it counts, though it is one too many
        assert with_permit() == [Limited._meta.label, Walked._meta.label]
        waiting(Sharded)
        ended = inline.run_to_end(refresh)
        assert (ended.state, str(ended.proceeded_despite)) == (
            RefreshState.SUCCEEDED, "at most 1 view is refreshed at the same time",
        )  # fmt: skip
        assert "it has waited long enough" in caplog.text
        assert engine.wake_next_in_line() == []

    def test_what_cannot_be_counted_stops_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_args: Any) -> bool:
            raise DatabaseError("locked")

        monkeypatch.setattr(refresh_limit, "_take", broken)
        assert run(Limited).state == RefreshState.SUCCEEDED
        assert "the limit of refreshes cannot be applied" in caplog.text

    def test_without_a_limit_no_statement_is_made(self, settings: Any) -> None:
        settings.MATVIEWS = {}
        with statements() as found:
            inline.run_to_end(begun(Limited))
        assert not any("refreshpermit" in each for each in found)


class TestMovingOn:
    """Nobody has to do anything for those that wait."""

    def test_a_killed_worker_frees_the_permit_after_a_lease(self) -> None:
        engine.request(Limited, phases=["insert"])
        message = due(Limited)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=engine.now()
        )
        waiting(Walked)
        travel(LONGER_THAN_A_LEASE)
        assert engine.wake() == [control(Walked).pk]
        assert message_of(Walked) is not None
        assert with_permit() == [Walked._meta.label]
        # when it is rescued it waits like any other
        assert message_of(Limited) is None
        assert waits_still(Limited)

    def test_so_does_a_message_that_nobody_takes(self) -> None:
        engine.request(Limited, phases=["insert"])
        assert message_of(Limited) is not None
        waiting(Walked)
        travel(LONGER_THAN_A_LEASE)
        engine.wake()
        assert message_of(Walked) is not None

    @without_sqlite
    def test_a_batch_that_runs_for_longer_keeps_it(self) -> None:
        engine.request(Limited, phases=["insert"])
        message = due(Limited)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=engine.now()
        )
        travel(LONGER_THAN_A_LEASE)
        engine.request(Walked, phases=["insert"])
        with held_by_another_worker(shard_of(Limited)):
            assert message_of(Walked) is None
            assert waits_still(Walked)

    @pytest.mark.parametrize("limit", [2, 3, None, {"reports": 1}])
    def test_if_the_limit_is_raised_the_others_go_on_in_their_order(
        self, limit: Any, settings: Any
    ) -> None:
        begun(Limited)
        waiting(Walked)
        waiting(Sharded)
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": limit}
        travel(timedelta(minutes=1))
        assert message_of(Limited) is not None  # which uses its permit
        assert set(engine.wake()) == {control(Walked).pk, control(Sharded).pk}
        if limit == 2:
            assert message_of(Sharded) is None
        assert message_of(Walked) is not None
        assert (message_of(Sharded) is None) == (limit == 2)

    def test_the_next_end_wakes_as_many_as_there_are_permits(
        self, settings: Any, sent: list[engine.Message]
    ) -> None:
        begun(Limited)
        waiting(Walked)
        waiting(Sharded)
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": 2}
        while (message := message_of(Limited)) is not None:
            tasks.insert_batch.run(message.shard_id, message.token)
        assert with_permit() == [Sharded._meta.label, Walked._meta.label]

    def test_a_lowered_limit_holds_for_those_that_begin(self, settings: Any) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": 2}
        first, second = begun(Limited), begun(Walked)
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": 1}
        waiting(Sharded)
        inline.run_to_end(first)
        assert engine.wake_next_in_line() == []
        inline.run_to_end(second)
        assert engine.wake_next_in_line() == [control(Sharded).pk]


class TestQueues:
    def test_each_queue_has_its_own_permits(self) -> None:
        change(Walked, queue="reports")
        begun(Limited)
        begun(Walked)
        assert (with_permit(), with_permit("reports")) == (
            [Limited._meta.label], [Walked._meta.label],
        )  # fmt: skip

    def test_a_limit_is_that_of_its_queue(self, settings: Any) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": {"reports": 2}}
        for view in VIEWS:
            change(view, queue="reports")
        begun(Limited)
        begun(Walked)
        waiting(Sharded)
        assert reason(Sharded) == (
            "at most 2 views of the queue reports are refreshed at the same time"
        )
        change(Sharded, queue="", retry_at=None, wait=None)
        assert message_of(Sharded) is not None

    def test_a_view_that_is_moved_counts_where_it_is(self) -> None:
        begun(Limited)
        change(Limited, queue="reports")
        assert message_of(Limited) is not None
        assert (with_permit(), with_permit("reports")) == ([], [Limited._meta.label])


def test_the_database_gives_a_permit_to_one_view_only() -> None:
    permits = RefreshPermit.objects
    permits.create(view=control(Limited), queue="", number=0, used_at=engine.now())
    with pytest.raises(IntegrityError):
        permits.create(view=control(Walked), queue="", number=0, used_at=engine.now())


def ask(view: type[Any]) -> None:
    message_of(view)


@without_sqlite
@pytest.mark.parametrize("limit", [1, 2])
def test_those_that_ask_at_once_do_not_get_more_than_there_are(limit: int, settings: Any) -> None:
    settings.MATVIEWS = {**settings.MATVIEWS, "MAX_REFRESHES": limit}
    for view in VIEWS:
        engine.request(view, phases=["insert"])
    for _round in range(5):
        RefreshPermit.objects.all().delete()
        ViewControl.objects.update(governed_since=None, retry_at=None, wait=None)
        asking = [in_another_connection(partial(ask, view)) for view in VIEWS]
        for each in asking:
            each.join()
        assert len(with_permit()) == limit
        assert sum(map(waits_still, VIEWS)) == len(VIEWS) - limit


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


@without_sqlite
def test_a_worker_that_is_killed_holds_nobody_up(workers: Workers, settings: Any) -> None:
    settings.MATVIEWS = {**settings.MATVIEWS, "LEASE": 2.0}
    [victim] = workers.start()
    with fault(Limited, "do_insert", "sleep", seconds=600):
        Limited.refresh()
        workers.wait_for(lambda: shard_of(Limited).is_claimed)
        Walked.refresh()
        assert waits_still(Walked)
        victim.kill()
    workers.start()
    workers.wait_until_quiet(meanwhile=workers.maintain)
    assert Limited.objects.count() == Walked.objects.count() == Item.objects.count()
    workers.wait_for(lambda: not RefreshPermit.objects.exists())
