"""The path of a batch, step by step."""

import time
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from matviews import engine
from matviews.engine import Message, Outcome, locking
from matviews.engine.batches import claim
from matviews.models import PhaseRun, Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.helpers.engine import (
    HELD,
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
from tests.sample.models import Fault, Item, Ledger, Limited, Sharded, Walked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


class TestToken:
    def test_a_message_delivered_twice_does_one_batch(self) -> None:
        items(3)
        engine.request(Ledger)
        message = due(Ledger)
        first, second = engine.run_batch(message), engine.run_batch(message)
        assert (first.outcome, first.rows, second.outcome) == (Outcome.DONE, 3, Outcome.STALE)
        assert Ledger.objects.count() == 3

    def test_a_batch_and_its_bookkeeping_are_rolled_back_together(self) -> None:
        items(3)
        Fault.objects.create(view="Ledger", hook="do_insert", action="raise")
        refresh = inline.run_to_end(engine.request(Ledger))
        run = refresh.runs.get()
        assert (Ledger.objects.count(), run.rows, run.batches) == (0, 0, 0)
        assert (refresh.state, run.state) == (RefreshState.FAILED, RunState.FAILED)
        assert run.error == "RuntimeError: do_insert was told to fail"
        assert "commit" in run.traceback
        assert refresh.error == f"insert: {run.error}"

    def test_a_run_of_one_batch_has_begun_before_it(self) -> None:
        items(3)
        Fault.objects.create(view="Limited", hook="do_insert", action="sleep", seconds=0.05)
        refresh = inline.run_to_end(engine.request(Limited))
        run = refresh.runs.get(phase=Phase.INSERT)
        assert run.started_at
        assert run.finished_at
        assert (run.finished_at - run.started_at).total_seconds() >= 0.05

    def test_the_next_request_tries_a_failed_phase_again(self) -> None:
        items(3)
        fault = Fault.objects.create(view="Ledger", hook="do_insert", action="raise")
        inline.run_to_end(engine.request(Ledger))
        fault.delete()
        assert inline.run_to_end(engine.request(Ledger, force=True)).state == RefreshState.SUCCEEDED
        assert Ledger.objects.count() == 3

    def test_the_other_phases_go_on_when_one_fails(self) -> None:
        items(3)
        inline.run_to_end(engine.request(Limited))
        Item.objects.filter(value=0).update(value=9)
        Item.objects.filter(value=1).delete()
        Fault.objects.create(view="Limited", hook="do_update", action="raise")
        refresh = inline.run_to_end(engine.request(Limited))
        states = dict(refresh.runs.values_list("phase", "state"))
        assert states == {"insert": "succeeded", "update": "failed", "delete": "succeeded"}
        control = ViewControl.objects.get(label="sample.Limited")
        assert control.last_delete is not None
        assert control.last_update is not None
        assert control.last_delete > control.last_update


@without_sqlite
class TestNobodyWaits:
    @pytest.mark.parametrize("which", [1, 2])
    def test_a_row_that_is_locked_for_a_moment_is_tried_again(
        self, which: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given that the claim, or the batch, finds the row locked by no batch
        items(3)
        engine.request(Ledger)
        message, update, calls = due(Ledger), locking.update_if_current, []

        def locked_once(*arguments: Any, **changes: Any) -> bool:
            calls.append(arguments)
            return len(calls) != which and update(*arguments, **changes)

        monkeypatch.setattr(claim, "update_if_current", locked_once)
        # then the message is not lost
        assert engine.run_batch(message).outcome is Outcome.DONE

    def test_a_message_for_a_shard_at_work_is_turned_away_at_once(self) -> None:
        items(1)
        engine.request(Ledger)
        message = due(Ledger)
        with held_by_another_worker(shard_of(Ledger)):
            started = time.monotonic()
            assert engine.run_batch(message).outcome is Outcome.BUSY
            assert time.monotonic() - started < HELD / 2
        assert engine.run_batch(message).outcome is Outcome.DONE

    def test_asking_does_not_wait_for_a_running_batch(self) -> None:
        with held_by_another_worker(shard_of(Ledger)):
            started = time.monotonic()
            engine.request(Ledger)
            assert due(Ledger).phase is Phase.INSERT
            assert time.monotonic() - started < HELD / 2

    def test_maintenance_leaves_a_shard_at_work_alone(self) -> None:
        items(1)
        engine.request(Ledger)
        let_time_pass()
        with held_by_another_worker(shard_of(Ledger)):
            assert engine.rescue() == []
        assert len(engine.rescue()) == 1


class TestWatch:
    def test_a_lost_message_is_sent_again(self) -> None:
        engine.request(Ledger)
        lost = due(Ledger)
        assert engine.rescue() == [lost]

    def test_it_is_twice_as_patient_each_time_that_nobody_takes_the_message(self) -> None:
        engine.request(Ledger)
        waits = []
        for _ in range(8):
            let_time_pass()
            before = timezone.now()
            assert len(engine.rescue()) == 1
            assert engine.rescue() == []
            after = shard_of(Ledger).resend_after
            assert after is not None
            waits.append(round((after - before).total_seconds()))
        assert waits == pytest.approx([120, 240, 480, 960, 1920, 3600, 3600, 3600], abs=5)

    def test_a_worker_that_comes_back_makes_it_impatient_again(self) -> None:
        items(2)
        engine.request(Ledger, batch_size=1)
        let_time_pass()
        (message,) = engine.rescue()
        engine.run_batch(message)
        assert shard_of(Ledger).resends == 0

    def test_it_leaves_a_disabled_view_alone_until_it_is_enabled(self) -> None:
        engine.request(Ledger)
        ViewControl.objects.filter(label="sample.Ledger").update(enabled=False)
        assert engine.rescue() == []
        assert engine.close_finished(shard_of(Ledger).pk).message is None
        ViewControl.objects.filter(label="sample.Ledger").update(enabled=True)
        assert len(engine.rescue()) == 1

    def test_it_closes_a_refresh_whose_last_worker_died_after_its_commit(self) -> None:
        refresh = engine.request(Ledger)
        engine.run_batch(due(Ledger))
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.OPEN
        let_time_pass()
        assert engine.rescue() == []
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED


class TestKilledWorkers:
    def die(self, monkeypatch: pytest.MonkeyPatch, message: Message) -> None:
        """As far as the database can tell, a worker claims a batch and is killed."""

        class Killed(SystemExit):
            pass

        def kill(_view: type[Any], _hook: str) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Fault, "commit", kill)
            with pytest.raises(Killed):
                engine.run_batch(message)

    def test_the_batch_is_halved_for_each_and_given_up_after_three_at_the_floor(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items(100)
        with override_settings(MATVIEWS={"BATCH_SIZE_INITIAL": 40, "BATCH_SIZE_MIN": 10}):
            refresh = engine.request(Ledger)
            message = due(Ledger)
            for _ in range(5):
                self.die(monkeypatch, message)
                assert engine.run_batch(message).outcome is Outcome.BUSY
                let_time_pass()
            report = engine.run_batch(message)
            engine.close_finished(message.shard_id)
        run = refresh.runs.get()
        assert (report.rows, run.state, Ledger.objects.count()) == (0, RunState.FAILED, 0)
        assert "killed its worker 5 times, the last time with a batch size of 10" in run.error

    def test_a_smaller_batch_that_lives_goes_on_from_its_size(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items(100)
        with override_settings(MATVIEWS={"BATCH_SIZE_INITIAL": 40, "BATCH_SIZE_MIN": 10}):
            engine.request(Ledger)
            message = due(Ledger)
            self.die(monkeypatch, message)
            let_time_pass()
            report = engine.run_batch(message)
        assert (report.limit, report.rows) == (20, 20)
        assert shard_of(Ledger).is_claimed is False

    def test_a_keyboard_interrupt_withdraws_the_claim(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items(1)
        engine.request(Ledger)
        message = due(Ledger)

        def interrupt(_view: type[Any], _hook: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Fault, "commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.run_batch(message)
        assert engine.run_batch(message).outcome is Outcome.DONE


class TestRequestsMerge:
    def test_requests_before_the_first_batch_share_it(self) -> None:
        items(3)
        asked = [request_apart(Walked, phases=["insert"]) for _ in range(3)]
        inline.run_until_idle([shard_of(Walked).pk])
        first, *others = Refresh.objects.filter(pk__in=[refresh.pk for refresh in asked])
        assert first.merged_into is None
        assert {other.merged_into_id for other in others} == {first.pk}
        assert {each.state for each in (first, *others)} == {RefreshState.SUCCEEDED}
        assert PhaseRun.objects.filter(batches__gt=0).count() == 1

    def test_a_request_while_a_cursor_is_on_its_way_gets_a_pass_of_its_own(self) -> None:
        items(5)
        first = Item.objects.earliest("pk").pk
        Item.objects.filter(pk=first).delete()
        engine.request(Walked, phases=["insert"], batch_size=2)
        engine.run_batch(due(Walked))
        later = engine.request(Walked, phases=["insert"])
        Item.objects.create(pk=first, value=0)
        inline.run_until_idle([shard_of(Walked).pk])
        later.refresh_from_db()
        assert (later.state, later.merged_into_id) == (RefreshState.SUCCEEDED, None)
        assert Walked.objects.count() == 5

    def test_a_request_while_a_limited_phase_is_on_its_way_joins_it(self) -> None:
        items(4)
        first = engine.request(Limited, phases=["insert"], batch_size=2)
        engine.run_batch(due(Limited))
        later = engine.request(Limited, phases=["insert"])
        items(1)
        inline.run_until_idle([shard_of(Limited).pk])
        later.refresh_from_db()
        assert later.merged_into_id == first.pk
        assert Limited.objects.count() == 5

    def test_new_phases_take_turns_with_one_that_is_on_its_way(self) -> None:
        items(6)
        inline.run_to_end(engine.request(Limited))
        Item.objects.update(value=-1)
        engine.request(Limited, phases=["update"], batch_size=1)
        engine.run_batch(due(Limited))
        items(3)
        engine.request(Limited, phases=["insert"], batch_size=1)
        turns: list[str] = []
        while (message := engine.close_finished(shard_of(Limited).pk).message) and len(turns) < 6:
            turns.append(str(message.phase))
            engine.run_batch(message)
        assert turns == ["update", "insert", "update", "insert", "update", "insert"]

    def test_phases_of_one_refresh_follow_each_other(self) -> None:
        items(4)
        inline.run_to_end(engine.request(Walked))
        engine.request(Walked, batch_size=2)
        turns = []
        while message := engine.close_finished(shard_of(Walked).pk).message:
            turns.append(str(message.phase))
            engine.run_batch(message)
        assert turns == sorted(turns, key=lambda phase: Phase(phase).order)
        assert set(turns) == set(Phase)


class TestRequests:
    def test_a_rolled_back_request_was_never_made(self) -> None:
        with transaction.atomic():
            Ledger.refresh()
            transaction.set_rollback(True)
        assert not Refresh.objects.exists()

    def test_messages_are_sent_only_after_the_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Message] = []
        monkeypatch.setattr("matviews.tasks.send", sent.extend)
        with transaction.atomic():
            Ledger.refresh()
            assert sent == []
        assert [message.phase for message in sent] == [Phase.INSERT]

    def test_eager_tasks_work_a_request_off_after_the_commit(self, settings: Any) -> None:
        from celery import current_app

        items(5)
        before = current_app.conf.task_always_eager
        current_app.conf.task_always_eager = True
        try:
            refresh = Limited.refresh()
        finally:
            current_app.conf.task_always_eager = before
        refresh.refresh_from_db()
        assert (refresh.state, Limited.objects.count()) == (RefreshState.SUCCEEDED, 5)
        assert Limited.is_fresh()

    def test_a_phase_that_left_the_code_fails_with_a_sentence(self) -> None:
        refresh = engine.request(Ledger)
        Refresh.objects.update(phases=["insert", "delete"])
        inline.run_until_idle([shard_of(Ledger).pk])
        refresh.refresh_from_db()
        assert refresh.error == "delete: sample.Ledger no longer has the phase delete."


class TestLimitsOfStatements:
    def test_they_hold_within_the_batch_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if connection.vendor == "sqlite":
            queries = []
        elif connection.vendor == "postgresql":
            queries = ["SHOW statement_timeout", "SHOW idle_in_transaction_session_timeout"]
        else:
            queries = ["SELECT @@max_statement_time", "SELECT @@idle_transaction_timeout"]
        within: list[Any] = []

        def read() -> list[Any]:
            found = []
            for query in queries:
                with connection.cursor() as cursor:
                    cursor.execute(query)
                    found.append(cursor.fetchone()[0])
            return found

        monkeypatch.setattr(Fault, "commit", lambda _view, _hook: within.append(read()))
        before = read()
        items(1)
        with override_settings(MATVIEWS={"STATEMENT_TIMEOUT": 7}):
            inline.run_to_end(engine.request(Ledger))
        assert [str(value).rstrip("s") for value in within[0]] in (
            [],
            ["7", "7"],
            ["7.0", "7"],
            ["7.000000", "7"],
        )
        assert read() == before

    @pytest.mark.only_on("mariadb", reason="MariaDB and MySQL alone share-lock")
    def test_a_batch_reads_what_is_committed_whatever_the_connection_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "isolation_level", "repeatable read")
        seen: list[int] = []

        def insert_elsewhere(_view: type[Any], _hook: str) -> None:
            seen.append(Item.objects.count())
            in_another_connection(lambda: items(1)).join()
            seen.append(Item.objects.count())

        items(1)
        monkeypatch.setattr(Fault, "commit", insert_elsewhere)
        engine.request(Ledger)
        engine.run_batch(due(Ledger))
        assert seen[:2] == [1, 2]


class TestShards:
    def test_their_number_follows_the_control_once_no_refresh_is_open(self) -> None:
        control = ViewControl.objects.get(label="sample.Sharded")
        ViewControl.objects.filter(pk=control.pk).update(shard_count=3)
        refresh = engine.request(Sharded)
        engine.sync_controls()
        assert control.shards.count() == 2
        inline.run_to_end(refresh)
        engine.sync_controls()
        assert control.shards.count() == 3
        items(10)
        assert inline.run_to_end(engine.request(Sharded)).state == RefreshState.SUCCEEDED
        ViewControl.objects.filter(pk=control.pk).update(shard_count=1)
        engine.sync_controls()
        assert list(control.shards.values_list("number", flat=True)) == [0]
        assert Sharded.objects.count() == 10

    def test_a_refresh_closes_only_when_every_shard_is_done(self) -> None:
        items(4)
        refresh = engine.request(Sharded)
        first, second = shards_of(refresh.view_id)
        inline.run_until_idle([first])
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.OPEN
        inline.run_until_idle([second])
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED


class TestControls:
    def test_migrate_makes_the_rows_of_new_views_and_keeps_what_an_operator_set(self) -> None:
        ViewControl.objects.filter(label="sample.Ledger").delete()
        ViewControl.objects.filter(label="sample.Limited").update(enabled=False)
        call_command("migrate", verbosity=0)
        controls = ViewControl.objects.in_bulk(field_name="label")
        assert set(controls) == {definition.label for definition in registry}
        assert controls["sample.Ledger"].include_in_refresh_all is False
        assert controls["sample.Limited"].enabled is False


class TestReplicas:
    def test_bookkeeping_is_read_where_it_is_written(self) -> None:
        class Router:
            def db_for_read(self, model: Any, **_hints: Any) -> str:
                return "replica"

            def db_for_write(self, model: Any, **_hints: Any) -> str:
                return "default"

        with override_settings(DATABASE_ROUTERS=[Router()]):
            managers = [model.objects for model in (ViewShard, Refresh, PhaseRun, ViewControl)]
            assert {manager.all().db for manager in managers} == {"default"}
