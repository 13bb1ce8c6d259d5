"""Stopping a refresh between two batches, whoever is at work and whoever waits for it."""

from collections.abc import Iterable
from typing import Any

import pytest
from django.utils import timezone

from matviews import engine, tasks
from matviews.engine import Message, Outcome
from matviews.engine.batches import batch
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.registry import registry
from matviews.signals import refresh_finished
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers.engine import (
    begun_together,
    due,
    held_by_another_worker,
    in_another_connection,
    items,
    let_time_pass,
    request_apart,
    shard_of,
    shards_of,
    without_sqlite,
)
from tests.helpers.view_classes import run
from tests.sample.models import Copy, Fault, Item, Ledger, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


def ask(view: type[Any], *phases: str) -> Refresh:
    return engine.request(view, phases=phases or ["insert"], batch_size=2)


def stop(refresh: Refresh) -> list[Message]:
    """Ask for the stop and settle, as `dispatch` does; the messages that are due after it."""
    assert engine.request_stop(refresh.pk)
    return [each.message for each in engine.close_finished_in_view(refresh.view_id) if each.message]


def now(refresh: Refresh) -> RefreshState:
    return RefreshState(Refresh.objects.get(pk=refresh.pk).state)


def assert_copied(view: type[Copy]) -> None:
    rows = view._base_manager.order_by("key").values_list("key", "value")
    assert list(rows) == list(Item.objects.order_by("pk").values_list("pk", "value"))


class TestWhoeverIsAtWork:
    def test_between_two_batches_it_ends_at_once_and_what_was_committed_stays(self) -> None:
        # given a refresh that has done one of several batches
        items(6)
        refresh = ask(Ledger)
        engine.run_batch(due(Ledger))
        ended: list[Refresh] = []

        def note(refresh: Refresh, **_kwargs: Any) -> None:
            ended.append(refresh)

        refresh_finished.connect(note)
        # when
        messages = stop(refresh)
        refresh_finished.disconnect(note)
        # then
        assert (messages, ended, now(refresh)) == ([], [refresh], RefreshState.STOPPED)
        stopped = PhaseRun.objects.get()
        assert (stopped.state, stopped.rows, stopped.error) == (RunState.STOPPED, 2, "")
        assert stopped.finished_at is not None
        assert Ledger.objects.count() == 2
        assert ViewControl.objects.get(label="sample.Ledger").last_insert is None
        assert Refresh.objects.get().error == ""

    def test_one_that_no_batch_has_seen_ends_too(self) -> None:
        refresh = ask(Limited, "insert", "update", "delete")

        assert stop(refresh) == []

        assert now(refresh) == RefreshState.STOPPED
        assert set(refresh.runs.values_list("state", flat=True)) == {RunState.STOPPED}

    def test_phases_that_have_succeeded_stay_so(self) -> None:
        items(1)
        refresh = ask(Walked, "insert", "update", "delete")
        engine.run_batch(due(Walked))

        stop(refresh)

        states = dict(refresh.runs.values_list("phase", "state"))
        assert states == {"insert": "succeeded", "update": "stopped", "delete": "stopped"}
        control = ViewControl.objects.get(label="sample.Walked")
        assert control.last_insert is not None
        assert control.last_update is None

    def test_a_failure_weighs_more_than_the_stop(self) -> None:
        Fault.objects.create(view="Limited", hook="needs_insert", action="raise")
        refresh = ask(Limited, "insert", "update")
        engine.run_batch(due(Limited))

        stop(refresh)

        assert now(refresh) == RefreshState.FAILED

    @without_sqlite
    def test_while_a_batch_is_at_work_nobody_waits(self) -> None:
        items(4)
        refresh = ask(Ledger)
        with held_by_another_worker(shard_of(Ledger)):
            stop(refresh)
            assert now(refresh) == RefreshState.OPEN

    def test_the_batch_at_work_commits_and_its_worker_ends_the_refresh(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a stop that is asked for while the batch writes its rows
        items(6)
        refresh = ask(Ledger)
        message = due(Ledger)

        def ask_to_stop(_view: type[Any], hook: str) -> None:
            if hook == "do_insert":
                asked.append(engine.request_stop(refresh.pk))

        asked: list[bool] = []
        monkeypatch.setattr(Fault, "commit", ask_to_stop)
        # when
        report = engine.run_batch(message)
        settled = engine.close_finished(message.shard_id)
        # then
        assert (asked, report.rows) == ([True], 2)
        assert (settled.message, settled.closed) == (None, (refresh,))
        assert now(refresh) == RefreshState.STOPPED
        assert Ledger.objects.count() == 2

    def test_a_batch_that_is_claimed_and_not_begun_is_superseded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a worker that has claimed its batch
        items(4)
        refresh = ask(Ledger)
        message = due(Ledger)
        run_claimed = batch._run_claimed

        def stopped_first(attempt: Any) -> Any:
            assert stop(refresh) == []
            return run_claimed(attempt)

        monkeypatch.setattr(batch, "_run_claimed", stopped_first)
        # when the refresh is stopped before it begins
        report = engine.run_batch(message)
        # then it does nothing
        assert report.outcome is Outcome.SUPERSEDED
        assert now(refresh) == RefreshState.STOPPED
        assert Ledger.objects.count() == 0

    def test_a_batch_that_begins_with_a_stop_does_nothing_else(self) -> None:
        # given a batch that took its worker down three times, and another request
        items(4)
        refresh, other = ask(Ledger), engine.request(Ledger, batch_size=3)
        message = due(Ledger)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=timezone.now(), attempts=3
        )
        let_time_pass()
        # when it is stopped, nobody settles, and a worker comes
        engine.request_stop(refresh.pk)
        report = engine.run_batch(message)
        # then the kills are not the other's
        assert (report.outcome, report.rows) == (Outcome.DONE, 0)
        assert inline.run_to_end(other).state == RefreshState.SUCCEEDED
        assert now(refresh) == RefreshState.STOPPED

    def test_a_dead_worker_keeps_nobody_from_stopping(self) -> None:
        refresh = ask(Ledger)
        message = due(Ledger)
        ViewShard.objects.filter(pk=message.shard_id).update(
            claimed_token=message.token, claimed_at=timezone.now(), worker="vm-1:4711"
        )

        stop(refresh)

        assert now(refresh) == RefreshState.STOPPED

    @without_sqlite
    def test_a_batch_that_fails_after_its_refresh_was_stopped_blames_nobody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a refresh, and a request for the same after its message was sent
        items(4)
        refresh = ask(Ledger)
        message = due(Ledger)
        other = request_apart(Ledger, phases=["insert"], batch_size=2)

        def ask_to_stop() -> None:
            assert engine.request_stop(refresh.pk)

        def stop_and_fail(_view: type[Any], _hook: str) -> None:
            in_another_connection(ask_to_stop).join()
            raise RuntimeError("as the stop came")

        # when it is stopped while a batch is at work, which then fails
        with monkeypatch.context() as patch:
            patch.setattr(Fault, "commit", stop_and_fail)
            report = engine.run_batch(message)
        # then the other has a fresh start
        assert report.outcome is Outcome.FAILED
        assert set(PhaseRun.objects.values_list("refresh", "state", "failures")) == {
            (refresh.pk, RunState.STOPPED, 0),
            (other.pk, RunState.PENDING, 0),
        }
        assert inline.run_to_end(other).state == RefreshState.SUCCEEDED

    def test_maintenance_ends_what_nobody_settled(self) -> None:
        refresh = ask(Ledger)
        engine.request_stop(refresh.pk)
        let_time_pass()

        assert engine.rescue() == []

        assert now(refresh) == RefreshState.STOPPED


class TestWhateverTheViewIsLike:
    @pytest.mark.parametrize("switch", [{"paused": True}, {"enabled": False}])
    @pytest.mark.parametrize("settles", [True, False])
    def test_a_view_that_is_held_lets_its_refresh_be_stopped(
        self, switch: dict[str, bool], settles: bool
    ) -> None:
        items(4)
        refresh, other = ask(Ledger), engine.request(Ledger, batch_size=3)
        ViewControl.objects.update(**switch)

        assert engine.request_stop(refresh.pk)
        let_time_pass()
        messages = (
            [each.message for each in engine.close_finished_in_view(refresh.view_id)]
            if settles
            else engine.rescue()
        )

        assert [message for message in messages if message] == []
        assert (now(refresh), now(other)) == (RefreshState.STOPPED, RefreshState.OPEN)

    def test_a_view_that_has_left_the_code(self) -> None:
        items(4)
        refresh = ask(Ledger)
        engine.run_batch(due(Ledger))
        with registry.preserved():
            registry.unregister("sample.Ledger")
            assert stop(refresh) == []
        assert now(refresh) == RefreshState.STOPPED

    def test_each_of_several_shards(self) -> None:
        # given two shards, of which one is at work and has done a batch
        items(8)
        refresh = ask(Sharded)
        engine.run_batch(due(Sharded))
        # when
        stop(refresh)
        # then
        assert now(refresh) == RefreshState.STOPPED
        assert list(refresh.runs.values_list("state", "rows")) == [("stopped", 2), ("stopped", 0)]

    def test_a_shard_that_has_done_all_keeps_its_success(self) -> None:
        items(8)
        refresh = ask(Sharded)
        first, second = shards_of(refresh.view_id)
        while message := engine.close_finished(first).message:
            engine.run_batch(message)

        stop(refresh)

        states = dict(refresh.runs.values_list("shard", "state"))
        assert states == {first: RunState.SUCCEEDED, second: RunState.STOPPED}
        assert now(refresh) == RefreshState.STOPPED
        assert ViewControl.objects.get(label="sample.Sharded").last_insert is None

    @without_sqlite
    def test_a_shard_at_work_is_ended_by_its_worker(self) -> None:
        items(8)
        refresh = ask(Sharded)
        first, second = shards_of(refresh.view_id)
        with held_by_another_worker(ViewShard.objects.get(pk=first)):
            stop(refresh)
            assert now(refresh) == RefreshState.OPEN
            assert set(refresh.runs.values_list("shard", "state")) == {(second, "stopped")}
        engine.close_finished(first)
        assert now(refresh) == RefreshState.STOPPED


class TestAskedInVain:
    def test_twice_is_once(self) -> None:
        refresh = ask(Ledger)
        assert engine.request_stop(refresh.pk)

        assert stop(refresh) == []

        assert now(refresh) == RefreshState.STOPPED
        assert not engine.request_stop(refresh.pk)

    def test_one_that_has_ended_or_never_was(self) -> None:
        refresh = run(Ledger)

        assert not engine.request_stop(refresh.pk)
        assert not engine.request_stop(refresh.pk + 1)

        refresh.refresh_from_db()
        assert (refresh.state, refresh.stop_requested) == (RefreshState.SUCCEEDED, False)

    def test_one_whose_last_batch_has_been_done_succeeds(self) -> None:
        items(1)
        refresh = ask(Ledger)
        engine.run_batch(due(Ledger))
        token = shard_of(Ledger).token

        stop(refresh)

        assert now(refresh) == RefreshState.SUCCEEDED
        assert shard_of(Ledger).token == token


class TestMerged:
    """Who was merged into a refresh that is stopped has a right to the whole of the work."""

    def test_the_oldest_goes_on_from_the_start_and_the_others_join_it(self) -> None:
        # given a pass over the keys that others were merged into as it began
        items(5)
        first, second, third = begun_together(Walked, 3, phases=["insert"], batch_size=2)
        assert set(PhaseRun.objects.exclude(refresh=first).values_list("merged_into__refresh")) == {
            (first.pk,)
        }
        # when the first is stopped half way, and a key that it has passed changes
        (message,) = stop(first)
        Item.objects.filter(pk=Item.objects.order_by("pk").values("pk")[:1]).update(value=9)
        # then the second does the whole pass, and the third shares it
        assert message.phase is Phase.INSERT
        assert inline.run_to_end(third).state == RefreshState.SUCCEEDED
        own, joined = PhaseRun.objects.exclude(refresh=first)
        assert (own.merged_into, own.batches, own.rows) == (None, 3, 3)
        assert joined.merged_into == own
        assert [now(each) for each in (first, second)] == ["stopped", "succeeded"]
        assert Refresh.objects.get(pk=third.pk).merged_into_id == second.pk

    def test_a_chain_of_stops_leaves_the_last_its_work(self) -> None:
        items(5)
        asked = begun_together(Walked, 4, phases=["insert"], batch_size=2)
        for refresh in asked[:3]:
            stop(refresh)
            engine.run_batch(due(Walked))

        assert inline.run_to_end(asked[3]).state == RefreshState.SUCCEEDED

        assert [now(each) for each in asked[:3]] == [RefreshState.STOPPED] * 3
        assert_copied(Walked)

    def test_several_are_stopped_at_once(self) -> None:
        items(5)
        asked = begun_together(Walked, 4, phases=["insert"], batch_size=2)
        for refresh in asked[:3]:
            engine.request_stop(refresh.pk)

        assert inline.run_to_end(asked[3]).state == RefreshState.SUCCEEDED

        assert [now(each) for each in asked[:3]] == [RefreshState.STOPPED] * 3
        assert_copied(Walked)

    def test_who_was_merged_may_be_stopped_alone(self) -> None:
        items(5)
        first, second = begun_together(Walked, 2, phases=["insert"], batch_size=2)

        stop(second)

        assert (now(first), now(second)) == (RefreshState.OPEN, RefreshState.STOPPED)
        assert inline.run_to_end(first).runs.get().batches == 3
        assert Refresh.objects.get(pk=second.pk).merged_into is None

    def test_one_that_the_shard_has_not_seen_does_not_join_what_is_stopped(self) -> None:
        # given a refresh under way that another could join
        items(5)
        first = ask(Limited)
        engine.run_batch(due(Limited))
        second = ask(Limited)
        # when the first is stopped before a batch has seen the second
        stop(first)
        # then
        assert inline.run_to_end(second).runs.get().merged_into is None
        assert_copied(Limited)

    def test_in_every_shard(self) -> None:
        items(8)
        first, second = begun_together(Sharded, 2, phases=["insert"], batch_size=2)
        # of which the other shard has seen neither

        assert len(stop(first)) == 2

        assert inline.run_to_end(second).state == RefreshState.SUCCEEDED
        assert now(first) == RefreshState.STOPPED
        assert_copied(Sharded)


def test_dispatch_sends_what_is_due_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Message] = []

    def send(messages: Iterable[Message]) -> bool:
        sent.extend(messages)
        return True

    monkeypatch.setattr(tasks, "send", send)
    items(5)
    first, second = ask(Limited), engine.request(Limited, phases=["insert"], batch_size=3)
    engine.request_stop(first.pk)

    assert tasks.dispatch(first.view_id)

    assert now(first) == RefreshState.STOPPED
    assert [each.token for each in sent] == [shard_of(Limited).token]
    assert now(second) == RefreshState.OPEN


def test_whoever_works_off_a_refresh_hears_that_it_was_stopped() -> None:
    items(6)
    refresh = ask(Ledger)

    def ask_to_stop(_report: engine.BatchReport) -> None:
        assert engine.request_stop(refresh.pk)

    ended = inline.run_to_end(refresh, on_report=ask_to_stop)

    assert ended.state == RefreshState.STOPPED
    assert Ledger.objects.count() == 2
