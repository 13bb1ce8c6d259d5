"""Faults found by the review; every test here fails on the reviewed code."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from matviews import engine
from matviews.engine import Message, Outcome
from matviews.models import PhaseRun, Refresh, Stripe, ViewControl
from matviews.phases import Phase
from matviews.states import RefreshState, RunState
from matviews.tasks import inline
from tests.sample.models import Fault, Item, Ledger, Limited, Striped, Walked, Whole
from tests.test_engine import due, items, let_time_pass, stripe_of, in_another_connection, held_by_another_worker, without_sqlite

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _controls() -> None:
    engine.sync_controls()


class Killed(BaseException):
    pass


def test_the_phase_whose_needs_hook_fails_is_blamed_not_the_one_before(monkeypatch) -> None:
    items(0)

    def broken(cls):
        raise RuntimeError("needs_update is broken")

    monkeypatch.setattr(Limited, "needs_update", classmethod(broken))
    refresh = inline.run_to_end(engine.request(Limited))
    states = dict(refresh.runs.values_list("phase", "state"))
    assert states == {"insert": "succeeded", "update": "failed", "delete": "succeeded"}, refresh.error


def test_a_needs_hook_that_always_kills_ends_as_a_failed_run(monkeypatch) -> None:
    def kill(cls):
        raise Killed

    monkeypatch.setattr(Whole, "needs_update", classmethod(kill))
    refresh = engine.request(Whole)
    message = due(Whole)
    for _ in range(40):
        let_time_pass()
        try:
            engine.run_batch(message)
        except Killed:
            pass
        message = engine.settle(message.stripe_id).message
        if message is None:
            break
    refresh.refresh_from_db()
    print(stripe_of(Whole).attempts, list(refresh.runs.values_list("phase", "state", "error")))
    assert refresh.state == RefreshState.FAILED
    assert refresh.runs.get(phase="update").state == "failed"


def test_the_size_of_a_pinned_run_is_not_the_next_runs_first_size() -> None:
    with override_settings(MATVIEWS={"BATCH_SIZE_CEILING": 2000}):
        items(5)
        inline.run_to_end(engine.request(Ledger, batch_size=1_000_000))
        items(5)
        engine.request(Ledger)
        report = engine.run_batch(due(Ledger))
    assert report.limit is not None and report.limit <= 2000


def test_a_pinned_size_that_killed_is_not_tried_again_at_each_batch(monkeypatch) -> None:
    items(200)
    engine.request(Ledger, batch_size=80)
    limits = []
    original = Ledger.do_insert.__func__

    def do_insert(cls, limit: int) -> int:
        limits.append(limit)
        if limit > 50:
            raise Killed
        return original(cls, limit)

    monkeypatch.setattr(Ledger, "do_insert", classmethod(do_insert))
    message = due(Ledger)
    while message:
        let_time_pass()
        try:
            engine.run_batch(message)
        except Killed:
            pass
        message = engine.settle(message.stripe_id).message
    assert limits.count(80) == 1, limits


def test_frequent_inserts_do_not_starve_an_update() -> None:
    items(20)
    inline.run_to_end(engine.request(Walked))
    long = engine.request(Walked, phases=["update"], batch_size=2)
    engine.run_batch(due(Walked))
    for _ in range(100):
        engine.request(Walked, phases=["insert"])
        engine.run_batch(due(Walked))
    long.refresh_from_db()
    assert long.runs.get().batches > 1


def test_a_busy_source_does_not_keep_a_refresh_in_its_first_phase(monkeypatch) -> None:
    items(3)
    inline.run_to_end(engine.request(Limited))
    Item.objects.update(value=77)
    original = Limited.do_insert.__func__

    def do_insert(cls, limit):
        rows = original(cls, limit)
        items(1)  # a writer commits a row during each batch
        return rows

    monkeypatch.setattr(Limited, "do_insert", classmethod(do_insert))
    items(1)
    refresh = engine.request(Limited)
    for _ in range(200):
        if message := engine.settle(stripe_of(Limited).pk).message:
            engine.run_batch(message)
    assert refresh.runs.get(phase="update").state == "succeeded"


def test_a_view_whose_hooks_know_no_stripes_gets_one_stripe_only() -> None:
    ViewControl.objects.filter(label="sample.Ledger").update(stripe_count=2)
    engine.sync_controls()
    assert Stripe.objects.filter(view__label="sample.Ledger").count() == 1


@without_sqlite
def test_stripes_of_a_view_that_knows_none_do_not_double_rows(monkeypatch) -> None:
    ViewControl.objects.filter(label="sample.Ledger").update(stripe_count=2)
    engine.sync_controls()
    items(5)
    engine.request(Ledger)
    messages = [engine.settle(pk).message for pk in Stripe.objects.filter(view__label="sample.Ledger").values_list("pk", flat=True)]
    barrier = threading.Barrier(len(messages), timeout=10)

    def commit(_view, hook):
        if hook == "before_insert":
            barrier.wait()

    monkeypatch.setattr(Fault, "commit", commit)
    threads = [in_another_connection(lambda m=m: engine.run_batch(m)) for m in messages]
    for thread in threads:
        thread.join()
    assert Ledger.objects.count() == 5


@pytest.mark.parametrize("count", [0])
def test_no_stripes_is_not_a_request_that_stays_open_for_ever(count) -> None:
    ViewControl.objects.filter(label="sample.Ledger").update(stripe_count=count)
    engine.sync_controls()
    assert Stripe.objects.filter(view__label="sample.Ledger").count() >= 1


def test_a_request_made_while_a_batch_fails_is_tried_itself(monkeypatch) -> None:
    items(3)
    later: list[Refresh] = []
    calls = []
    original = Ledger.do_insert.__func__

    def do_insert(cls, limit):
        calls.append(limit)
        if len(calls) == 1:
            raise RuntimeError("once")
        return original(cls, limit)

    monkeypatch.setattr(Ledger, "do_insert", classmethod(do_insert))
    engine.request(Ledger)
    message = due(Ledger)
    from matviews.engine import batch

    record = batch._Attempt.record_failure

    def ask_first(self, error):
        later.append(engine.request(Ledger))
        return record(self, error)

    monkeypatch.setattr(batch._Attempt, "record_failure", ask_first)
    engine.run_batch(message)
    inline.drain([message.stripe_id])
    later[0].refresh_from_db()
    assert later[0].state == RefreshState.SUCCEEDED


def test_watch_keeps_its_patience_for_messages_that_were_sent() -> None:
    items(4)
    engine.request(Striped)
    first, second = engine.stripes_of(Refresh.objects.get().view_id)
    inline.drain([first])  # the other stripe is long at work
    for _ in range(7):
        let_time_pass()
        engine.watch()
    done = Stripe.objects.get(pk=first)
    items(4)
    engine.request(Striped)  # and its message is lost
    # One lease and one watch later it is sent again
    assert done.watch_after <= timezone.now() + timedelta(seconds=130)


@without_sqlite
def test_a_row_held_between_announcement_and_batch_is_no_kill(monkeypatch) -> None:
    items(3)
    engine.request(Ledger)
    message = due(Ledger)
    from matviews.engine import batch

    run = batch._Attempt.run

    def held(self):
        with held_by_another_worker(stripe_of(Ledger)):
            return run(self)

    with monkeypatch.context() as patch:
        patch.setattr(batch._Attempt, "run", held)
        assert engine.run_batch(message).outcome is Outcome.BUSY
    assert engine.run_batch(message).outcome is Outcome.DONE


def test_one_broken_view_does_not_stop_watch_for_the_others() -> None:
    items(1)
    broken = engine.request(Limited)
    engine.request(Ledger)
    Refresh.objects.filter(pk=broken.pk).update(phases=["nonsense"])
    messages = []
    for _ in range(3):
        let_time_pass()
        try:
            messages += engine.watch()
        except Exception as error:
            print(repr(error))
    assert [m.stripe_id for m in messages]


def test_failures_that_could_not_be_recorded_are_no_kills(monkeypatch) -> None:
    from django.db import OperationalError
    from matviews.engine import batch

    items(3)
    refresh = engine.request(Whole, phases=["insert"])
    message = due(Whole)

    def gone(self, error):
        raise OperationalError("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(batch._Attempt, "record_failure", gone)
        patch.setattr(Whole, "do_insert", classmethod(lambda cls: gone(None, None)))
        for _ in range(3):
            let_time_pass()
            assert engine.run_batch(message).outcome is Outcome.LOST
    let_time_pass()  # the database is back
    engine.run_batch(message)
    inline.drain([message.stripe_id])
    refresh.refresh_from_db()
    assert refresh.state == "succeeded", refresh.error


def test_a_commit_whose_answer_is_lost_goes_on_with_the_next_batch(monkeypatch) -> None:
    from django.db import InterfaceError
    from matviews import tasks

    items(6)
    engine.request(Ledger, batch_size=3)
    message = due(Ledger)
    sent: list[Any] = []
    monkeypatch.setattr(tasks, "send", lambda messages: sent.extend(messages))
    real = connection.commit
    times = []

    def commit():
        real()
        times.append(1)
        if len(times) == 2:
            raise InterfaceError("connection already closed")

    monkeypatch.setattr(connection._connections[connection._alias] if hasattr(connection, "_alias") else connection, "commit", commit)
    tasks._run_batch(message.phase, message.stripe_id, message.token)
    assert Ledger.objects.count() == 3
    assert [m.token for m in sent] == [message.token + 1]


def test_a_broker_that_is_down_for_hours_does_not_make_watch_patient(monkeypatch) -> None:
    from matviews import tasks
    items(1)
    engine.request(Ledger)

    class Down:
        @staticmethod
        def apply_async(*a, **k):
            raise ConnectionError("broker")

    monkeypatch.setattr(tasks, "_BATCH_TASKS", {p: Down for p in Phase})
    for _ in range(8):
        let_time_pass()
        tasks.watch()
    assert stripe_of(Ledger).watch_after <= timezone.now() + timedelta(seconds=130)


def test_an_update_asked_for_alone_does_not_wait_for_a_long_insert() -> None:
    """DESIGN 3: new phases are interleaved batch by batch."""
    items(20)
    inline.run_to_end(engine.request(Walked))
    engine.request(Walked, batch_size=2)  # insert, update, delete
    engine.run_batch(due(Walked))
    alone = engine.request(Walked, phases=["update"])
    turns = []
    for _ in range(4):
        message = due(Walked)
        turns.append(str(message.phase))
        engine.run_batch(message)
    assert "update" in turns, turns
