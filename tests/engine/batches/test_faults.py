"""What hooks, workers and brokers do wrong, and what becomes of the refresh."""

import importlib
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import pytest
from django.db import InterfaceError, OperationalError, connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import engine, tasks
from matviews.engine import BatchReport, Message, Outcome
from matviews.engine.batches import batch
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
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
from tests.sample.models import Fault, Item, Ledger, Limited, Sharded, Walked, Whole

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

TWO_LEASES = timedelta(seconds=130)


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


class Killed(SystemExit):
    pass


def next_message(message: Message) -> Message | None:
    return engine.close_finished(message.shard_id).message


def work_off_with_kills(message: Message | None, most: int = 40) -> None:
    """Deliver each message, again and again where it takes the worker down."""
    for _ in range(most):
        if message is None:
            return
        let_time_pass()
        with suppress(Killed, SystemExit):
            engine.run_batch(message)
        message = next_message(message)
    pytest.fail(f"still due after {most} batches: {message}")


class TestHooksThatFail:
    def test_the_phase_whose_needs_hook_fails_is_blamed_not_the_one_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_cls: type[Any]) -> NoReturn:
            raise RuntimeError("needs_update is broken")

        monkeypatch.setattr(Limited, "needs_update", classmethod(broken))
        refresh = inline.run_to_end(engine.request(Limited))
        states = dict(refresh.runs.values_list("phase", "state"))
        assert states == {"insert": "succeeded", "update": "failed", "delete": "succeeded"}

    def test_a_request_made_while_a_batch_fails_is_tried_itself(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a hook that fails once, and somebody who asks just before that is written down
        items(3)
        later: list[Refresh] = []
        calls: list[int] = []
        do_insert, record = Ledger.do_insert, batch._Attempt.record_failure

        def fail_once(_cls: type[Any], limit: int) -> int:
            calls.append(limit)
            if len(calls) == 1:
                raise RuntimeError("once")
            return do_insert(limit)

        def ask_first(attempt: Any, error: Exception) -> BatchReport:
            later.append(engine.request(Ledger, force=True))
            return record(attempt, error)

        monkeypatch.setattr(Ledger, "do_insert", classmethod(fail_once))
        monkeypatch.setattr(batch._Attempt, "record_failure", ask_first)
        engine.request(Ledger)
        message = due(Ledger)
        # When
        engine.run_batch(message)
        inline.run_until_idle([message.shard_id])
        # Then
        later[0].refresh_from_db()
        assert later[0].state == RefreshState.SUCCEEDED

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_followers_end_is_its_leaders(self, fails: bool) -> None:
        # Given a follower that is there before the leader's first batch, and one that joins it
        items(4)
        asked = begun_together(Limited, 2, phases=["insert"], batch_size=2)
        asked.append(engine.request(Limited, phases=["insert"]))
        if fails:
            Fault.objects.create(view="Limited", hook="do_insert", action="raise")
        # When
        inline.run_until_idle([shard_of(Limited).pk])
        # Then
        leader, *followers = PhaseRun.objects.filter(refresh__in=asked)
        state = RunState.FAILED if fails else RunState.SUCCEEDED
        assert (leader.state, leader.merged_into_id) == (state, None)
        assert [run.merged_into_id for run in followers] == [leader.pk, leader.pk]
        ends = {(run.state, run.error, run.started_at, run.finished_at) for run in followers}
        assert ends == {(leader.state, leader.error, leader.started_at, leader.finished_at)}
        ended = Refresh.objects.filter(pk__in=[refresh.pk for refresh in asked])
        assert len(set(ended.values_list("state", "error"))) == 1


class TestHooksThatKill:
    def test_a_needs_hook_that_always_kills_ends_as_a_failed_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def kill(_cls: type[Any]) -> NoReturn:
            raise Killed

        monkeypatch.setattr(Whole, "needs_update", classmethod(kill))
        refresh = engine.request(Whole)
        work_off_with_kills(due(Whole))
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.FAILED
        assert refresh.runs.get(phase="update").state == RunState.FAILED

    def test_hooks_that_always_exit_are_counted_and_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a hook that leaves by sys.exit whenever it is called
        items(1)
        exits: list[int] = []

        def leave(_cls: type[Any]) -> NoReturn:
            exits.append(1)
            sys.exit(1)

        monkeypatch.setattr(Whole, "do_insert", classmethod(leave))
        refresh = engine.request(Whole)
        # When
        work_off_with_kills(due(Whole))
        # Then
        refresh.refresh_from_db()
        states = dict(refresh.runs.values_list("phase", "state"))
        assert states == {"insert": "failed", "update": "succeeded", "delete": "succeeded"}
        assert len(exits) == 3
        assert "killed its worker 3 times" in refresh.error

    def test_a_pinned_size_that_killed_is_not_tried_again_at_each_batch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items(200)
        engine.request(Ledger, batch_size=80)
        limits: list[int] = []
        do_insert = Ledger.do_insert

        def kill_when_large(_cls: type[Any], limit: int) -> int:
            limits.append(limit)
            if limit > 50:
                raise Killed
            return do_insert(limit)

        monkeypatch.setattr(Ledger, "do_insert", classmethod(kill_when_large))
        work_off_with_kills(due(Ledger))
        assert limits.count(80) == 1
        assert Ledger.objects.count() == 200


class TestSizes:
    def test_the_size_of_a_pinned_run_is_not_the_next_runs_first_size(self) -> None:
        with override_settings(MATVIEWS={"BATCH_SIZE_MAX": 2000}):
            items(5)
            inline.run_to_end(engine.request(Ledger, batch_size=1_000_000))
            items(5)
            engine.request(Ledger)
            report = engine.run_batch(due(Ledger))
        assert report.limit is not None
        assert report.limit <= 2000

    def test_hundreds_of_open_requests_end_in_few_statements(self) -> None:
        # Given a leader, and 299 requests that are merged into it
        items(4)
        for _ in range(300):
            request_apart(Walked, phases=["insert"], batch_size=4)
        engine.run_batch(due(Walked))
        message = due(Walked)
        assert Refresh.objects.filter(state=RefreshState.SUCCEEDED).count() == 0
        # When
        with CaptureQueriesContext(connection) as queries:
            engine.run_batch(message)
            engine.close_finished(message.shard_id)
        # Then
        assert Refresh.objects.filter(state=RefreshState.SUCCEEDED).count() == 300
        assert len(queries) < 50


class TestTurns:
    def test_frequent_inserts_do_not_starve_an_update(self) -> None:
        items(20)
        inline.run_to_end(engine.request(Walked))
        long = engine.request(Walked, phases=["update"], batch_size=2)
        engine.run_batch(due(Walked))
        for _ in range(20):
            engine.request(Walked, phases=["insert"])
            engine.run_batch(due(Walked))
        assert long.runs.get().batches > 1

    def test_a_busy_source_does_not_keep_a_refresh_in_its_first_phase(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given rows to update, and a writer who commits a row during each batch of inserts
        items(3)
        inline.run_to_end(engine.request(Limited))
        Item.objects.update(value=77)
        do_insert = Limited.do_insert

        def never_done(_cls: type[Any], limit: int) -> int:
            rows = do_insert(limit)
            items(1)
            return rows

        monkeypatch.setattr(Limited, "do_insert", classmethod(never_done))
        items(1)
        refresh = engine.request(Limited)
        # When
        for _ in range(30):
            if message := engine.close_finished(shard_of(Limited).pk).message:
                engine.run_batch(message)
        # Then
        assert refresh.runs.get(phase="update").state == RunState.SUCCEEDED

    def test_an_update_asked_for_alone_does_not_wait_for_a_long_insert(self) -> None:
        items(20)
        inline.run_to_end(engine.request(Walked))
        engine.request(Walked, batch_size=2)
        engine.run_batch(due(Walked))
        engine.request(Walked, phases=["update"])
        turns = []
        for _ in range(4):
            message = due(Walked)
            turns.append(message.phase)
            engine.run_batch(message)
        assert Phase.UPDATE in turns


class TestShards:
    def test_a_view_whose_hooks_know_no_shards_gets_one_shard_only(self) -> None:
        ViewControl.objects.filter(label="sample.Ledger").update(shard_count=2)
        engine.sync_controls()
        assert ViewShard.objects.filter(view__label="sample.Ledger").count() == 1

    def test_a_count_of_no_shards_leaves_one(self) -> None:
        ViewControl.objects.filter(label="sample.Ledger").update(shard_count=0)
        engine.sync_controls()
        assert ViewShard.objects.filter(view__label="sample.Ledger").count() == 1

    @without_sqlite
    @pytest.mark.parametrize("made_by_hand", [False, True])
    def test_shards_of_a_view_that_knows_none_do_not_double_rows(
        self, monkeypatch: pytest.MonkeyPatch, made_by_hand: bool
    ) -> None:
        # Given a view whose hooks declare no shard, and an operator who wants two
        control = ViewControl.objects.get(label="sample.Ledger")
        ViewControl.objects.filter(pk=control.pk).update(shard_count=2)
        engine.sync_controls()
        if made_by_hand:
            ViewShard.objects.create(view=control, number=1)
        items(5)
        refresh = engine.request(Ledger)
        shards = shards_of(control.pk)
        barrier = threading.Barrier(len(shards), timeout=10)

        def meet(_view: type[Any], hook: str) -> None:
            if hook == "before_insert":
                barrier.wait()

        monkeypatch.setattr(Fault, "commit", meet)

        def work(shard: int) -> None:
            message = engine.close_finished(shard).message
            assert message is not None
            engine.run_batch(message)

        # When the shards work side by side
        threads = [in_another_connection(partial(work, pk)) for pk in shards]
        for thread in threads:
            thread.join()
        # Then
        for pk in shards:
            engine.close_finished(pk)
        refresh.refresh_from_db()
        if made_by_hand:
            assert "has 2 shards, but its hooks do not declare shard" in refresh.error
            assert Ledger.objects.count() == 0
        else:
            assert refresh.state == RefreshState.SUCCEEDED
            assert Ledger.objects.count() == 5

    def test_a_shard_of_a_disabled_view_does_not_do_the_batch_that_was_due(self) -> None:
        # Given a message for each of two shards of a view that is then disabled
        items(8)
        refresh = engine.request(Sharded, phases=["insert"], batch_size=2)
        controls = ViewControl.objects.filter(label="sample.Sharded")
        shards = shards_of(refresh.view_id)
        messages = [engine.close_finished(pk).message for pk in shards]
        controls.update(enabled=False)
        # When
        outcomes = [engine.run_batch(message).outcome for message in messages if message]
        let_time_pass()
        # Then they do nothing, and nothing is due any more
        assert outcomes == [Outcome.DONE, Outcome.DONE]
        assert [engine.close_finished(pk).message for pk in shards] == [None, None]
        assert engine.rescue() == []
        assert Sharded.objects.count() == 0
        # And when the view is enabled again, it goes on
        controls.update(enabled=True)
        assert {message.shard_id for message in engine.rescue()} == set(shards)
        assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED
        assert Sharded.objects.count() == 8


class TestWatch:
    def test_it_keeps_its_patience_for_messages_that_were_sent(self) -> None:
        # Given a shard that is done, and another that is long at work
        items(4)
        refresh = engine.request(Sharded)
        first, _second = shards_of(refresh.view_id)
        inline.run_until_idle([first])
        for _ in range(7):
            let_time_pass()
            engine.rescue()
        done = ViewShard.objects.get(pk=first)
        # When its next message is lost
        items(4)
        engine.request(Sharded)
        # Then one lease and one run of maintenance later it is sent again
        assert done.resend_after is not None
        assert done.resend_after <= timezone.now() + TWO_LEASES
        assert done.resends == 0
        assert first in {message.shard_id for message in engine.rescue()}

    def test_one_broken_view_does_not_stop_it_for_the_others(self) -> None:
        items(1)
        broken = engine.request(Limited)
        engine.request(Ledger)
        Refresh.objects.filter(pk=broken.pk).update(phases=["nonsense"])
        for _ in range(3):
            let_time_pass()
            assert [message.shard_id for message in engine.rescue()] == [shard_of(Ledger).pk]

    @without_sqlite
    def test_a_message_that_comes_while_it_looks_is_not_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a shard that maintenance finds, and a message for another that it might find
        engine.request(Whole)
        items(3)
        engine.request(Ledger)
        let_time_pass()
        message = due(Ledger)
        ViewShard.objects.filter(pk=message.shard_id).update(
            resend_after=timezone.now() + TWO_LEASES
        )
        module = importlib.import_module("matviews.engine.dispatch.rescue")
        update = module.update_if_current
        outcomes: list[Outcome] = []

        def update_and_meet(*args: Any, **changes: Any) -> bool:
            claimed: bool = update(*args, **changes)
            in_another_connection(lambda: outcomes.append(engine.run_batch(message).outcome)).join()
            return claimed

        monkeypatch.setattr(module, "update_if_current", update_and_meet)
        # When
        sent = engine.rescue()
        # Then
        assert [each.shard_id for each in sent] == [shard_of(Whole).pk]
        assert outcomes == [Outcome.DONE]


class TestBrokers:
    def test_one_that_is_down_for_hours_does_not_make_maintenance_patient(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given
        items(1)
        engine.request(Ledger)

        class Down:
            name = "matviews.insert_batch"

            @staticmethod
            def apply_async(*_args: Any, **_options: Any) -> NoReturn:
                raise ConnectionError("broker")

        monkeypatch.setattr(tasks, "_BATCH_TASKS", dict.fromkeys(Phase, Down))
        # When
        for _ in range(8):
            let_time_pass()
            tasks.maintain()
        # Then the next maintenance run finds the message again at once
        shard = shard_of(Ledger)
        assert (shard.resend_after, shard.resends) == (None, 0)
        assert engine.rescue() == [due(Ledger)]


class TestWorkers:
    @without_sqlite
    def test_a_row_held_between_claim_and_batch_is_no_kill(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items(3)
        engine.request(Ledger)
        message = due(Ledger)
        run = batch._Attempt.run

        def held(attempt: Any) -> BatchReport:
            with held_by_another_worker(shard_of(Ledger)):
                return run(attempt)

        with monkeypatch.context() as patch:
            patch.setattr(batch._Attempt, "run", held)
            assert engine.run_batch(message).outcome is Outcome.BUSY
        assert engine.run_batch(message).outcome is Outcome.DONE

    def test_failures_that_could_not_be_recorded_are_no_kills(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a database that is gone for the hook, and for whoever writes down that it failed
        items(3)
        refresh = engine.request(Whole, phases=["insert"])
        message = due(Whole)

        def gone(*_args: Any) -> NoReturn:
            raise OperationalError("server closed the connection unexpectedly")

        with monkeypatch.context() as patch:
            patch.setattr(batch._Attempt, "record_failure", gone)
            patch.setattr(Whole, "do_insert", classmethod(gone))
            for _ in range(3):
                let_time_pass()
                assert engine.run_batch(message).outcome is Outcome.LOST
        # When it is back
        let_time_pass()
        engine.run_batch(message)
        inline.run_until_idle([message.shard_id])
        # Then
        refresh.refresh_from_db()
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")

    def test_a_commit_whose_answer_is_lost_goes_on_with_the_next_batch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a connection that is lost after the server has committed the batch
        items(6)
        engine.request(Ledger, batch_size=3)
        message = due(Ledger)
        sent: list[Message] = []
        written: list[str] = []
        commit = connection.commit

        def note(execute: Any, sql: str, *arguments: Any) -> Any:
            if sql.startswith("INSERT") and Ledger._meta.db_table in sql:
                written.append(sql)
            return execute(sql, *arguments)

        def commit_and_lose_the_answer() -> None:
            commit()
            if written:
                written.clear()
                raise InterfaceError("connection already closed")

        def send(messages: Iterable[Message]) -> bool:
            sent.extend(messages)
            return True

        monkeypatch.setattr(tasks, "send", send)
        monkeypatch.setattr(connection, "commit", commit_and_lose_the_answer)
        # When
        with connection.execute_wrapper(note):
            tasks.insert_batch(message.shard_id, message.token)
        # Then
        assert Ledger.objects.count() == 3
        assert [each.token for each in sent] == [message.token + 1]
