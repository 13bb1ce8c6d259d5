"""Worker processes, a broker and a database, from the request to its end."""

from typing import Any

import pytest
from django.db import models

from matviews import engine, tasks
from matviews.models import Origin, PhaseRun, Refresh, RefreshSchedule, ViewControl
from matviews.phases import Phase
from matviews.states import RefreshState
from tests.helpers.engine import shards_of
from tests.helpers.ledger import add_items, assert_each_item_once, fault
from tests.helpers.processes import Workers, ask_at_once
from tests.helpers.view_classes import run
from tests.sample.models import Copy, Item, Ledger, Limited, Sharded, Walked
from tests.shapes.models import DayStatus, Order

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

TASKS = [
    "delete_batch", "insert_batch", "maintain", "pulse", "refresh", "update_batch", "verify",
    "verify_slice",
]  # fmt: skip
ASKERS = 6


@pytest.fixture(autouse=True)
def small_batches(settings: Any) -> None:
    settings.MATVIEWS = {
        "LEASE": 1.0,
        "BATCH_SIZE_INITIAL": 5,
        "BATCH_SIZE_MIN": 1,
        "BATCH_SIZE_MAX": 5,
    }


def assert_copies(view: type[Copy]) -> None:
    rows = view._base_manager.order_by("key").values_list("key", "value")
    assert list(rows) == list(Item.objects.order_by("pk").values_list("pk", "value"))


def change_the_source() -> None:
    Item.objects.filter(value__lt=7).delete()
    Item.objects.filter(value__gte=20).update(value=models.F("value") + 100)
    add_items(12)


def test_workers_bring_views_up_to_date_in_batches(workers: Workers) -> None:
    # given two workers, and views of several forms over one source
    workers.start(2)
    views: list[type[Copy]] = [Limited, Walked, Sharded]
    add_items(32)
    # when they are refreshed, the source changes, and they are refreshed again
    for view in views:
        view.refresh()
    workers.wait_until_quiet()
    change_the_source()
    asked = [view.refresh() for view in views]
    workers.wait_until_quiet()
    # then each row of each view is right, in many batches, none of them in this process
    for view in views:
        assert_copies(view)
    assert Limited.is_fresh()
    assert Sharded.is_fresh()
    for refresh in asked:
        refresh.refresh_from_db()
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
    assert PhaseRun.objects.filter(batches__gt=3, phase=Phase.INSERT).count() >= len(views)
    assert len(workers.lines("batch finished", "outcome=DONE")) >= 30
    assert workers.lines("ERROR") == []


def test_a_worker_finds_all_tasks_and_takes_them_by_name(workers: Workers) -> None:
    # given a worker that has found the tasks with autodiscover_tasks()
    (worker,) = workers.start()
    listed = [line.strip(" .") for line in worker.lines("  . matviews.")]
    assert listed == [f"matviews.{name}" for name in TASKS]
    # when a refresh is asked for as beat does it: by name, with a label
    add_items(8)
    workers.send_by_name("matviews.refresh", "sample.Ledger")
    workers.wait_for(Refresh.objects.filter(state=RefreshState.SUCCEEDED).exists)
    # then it ran
    assert Refresh.objects.get().origin == Origin.SCHEDULE
    assert_each_item_once()
    # and when the message of a request is lost, the maintenance task sends another
    add_items(8)
    engine.request(Ledger)
    workers.wait_until_quiet(meanwhile=workers.send_maintain)
    assert_each_item_once()


def test_workers_refresh_through_rabbitmq(rabbitmq_workers: Workers) -> None:
    rabbitmq_workers.start(2)
    add_items(30)

    Ledger.refresh()
    rabbitmq_workers.wait_until_quiet()

    assert_each_item_once()
    assert Refresh.objects.get().state == RefreshState.SUCCEEDED


def test_a_worker_that_is_busy_looks_for_what_is_due_on_change(
    workers: Workers, tracked: None
) -> None:
    """Between batches: nobody sends a pulse here."""
    # given one worker in the middle of a long refresh, and a view on change
    view = ViewControl.objects.get(label="shapes.DayStatus")
    RefreshSchedule.objects.create(view=view, on_change=True, every=0, period="seconds")
    run(DayStatus)
    workers.start()
    add_items(400)
    with fault(Ledger, "before_insert", "sleep", seconds=0.05):
        long = Ledger.refresh()
        workers.wait_for(Ledger.objects.exists)
        # when its source changes
        Order.objects.create(price=1, paid=True, status="new", shipped_on="2026-01-01")
        # then the view follows before that refresh ends
        workers.wait_for(DayStatus.objects.exists)
        assert Refresh.objects.get(pk=long.pk).state == RefreshState.OPEN
        engine.request_stop(long.pk)
        workers.wait_until_quiet(meanwhile=workers.maintain)
    assert workers.lines("ERROR") == []


def test_a_message_that_comes_twenty_times_does_one_batch(workers: Workers) -> None:
    # given one batch message, twenty times in the queue
    add_items(40)
    refresh = engine.request(Ledger)
    (shard,) = shards_of(refresh.view_id)
    message = engine.close_finished(shard).message
    assert message is not None
    tasks.send([message] * 20)
    # when three workers take them
    workers.start(3)
    workers.wait_until_quiet()
    workers.wait_for(lambda: len(workers.lines("received")) - 20 >= 7)
    # then one of the twenty did a batch, and each token was used once
    workers.wait_for(lambda: len(workers.lines("message refused")) >= 19)
    assert_each_item_once()
    finished = [token_of(line) for line in workers.lines("batch finished")]
    assert len(finished) == len(set(finished))
    assert finished.count(message.token) == 1
    assert PhaseRun.objects.get().batches == 8


def token_of(line: str) -> int:
    return int(line.partition("token=")[2].split()[0])


def test_a_broker_that_forgets_everything_costs_time_only(
    workers: Workers, redis_url: str, queue: str
) -> None:
    # given a view in the middle of its batches
    workers.start(2)
    add_items(400)
    with fault(Ledger, "before_insert", "sleep", seconds=0.05):
        Ledger.refresh()
        for rows in (5, 30, 60):
            enough = Ledger.objects.order_by("pk")[rows - 1 : rows]
            workers.wait_for(enough.exists, meanwhile=workers.maintain)
            # when the broker loses the message under way and all else that it has, its bindings too
            workers.wait_for(lambda: lose(redis_url, queue), meanwhile=workers.maintain)
    # then the same workers go on once maintenance has run
    assert Refresh.objects.get().state == RefreshState.OPEN
    workers.wait_until_quiet(meanwhile=workers.maintain)
    assert_each_item_once()
    assert Refresh.objects.get().state == RefreshState.SUCCEEDED


def lose(redis_url: str, queue: str) -> bool:
    """Take a message before a worker does, and delete all keys; whether one came within a second.

    Who has waited longest for a message gets it, so no worker gets many before.
    """
    import redis

    with redis.Redis.from_url(redis_url) as client:
        taken = client.brpop([f"{queue}.{queue}"], timeout=1)
    forget(redis_url, queue)
    return taken is not None


def forget(redis_url: str, queue: str) -> int:
    """Delete all keys of the queue; their number."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter(match=f"{queue}*"))
        return int(client.delete(*keys)) if keys else 0


def test_a_hook_that_fails_stops_its_own_phase_only(workers: Workers) -> None:
    workers.start(2)
    add_items(20)
    # given a view whose insert hook fails
    with fault(Limited, "do_insert", "raise"):
        failing = Limited.refresh()
        # when others are refreshed beside it
        Ledger.refresh()
        Walked.refresh()
        workers.wait_until_quiet()
    # then they succeed, and it says what happened
    assert_each_item_once()
    assert_copies(Walked)
    failing.refresh_from_db()
    assert failing.state == RefreshState.FAILED
    assert "RuntimeError: do_insert was told to fail" in failing.error
    run = failing.runs.get(state="failed")
    assert "do_insert" in run.traceback
    assert set(failing.runs.exclude(pk=run.pk).values_list("state", flat=True)) == {"succeeded"}
    # and the next request tries again
    Limited.refresh()
    workers.wait_until_quiet()
    assert_copies(Limited)


def test_requests_at_the_same_moment_are_one_refresh(
    workers: Workers, redis_environment: dict[str, str]
) -> None:
    # given no worker, and many processes that ask at the same moment
    add_items(30)
    asking = ask_at_once("sample.Ledger", ASKERS, redis_environment)
    assert (asking.returncode, asking.stderr) == (0, "")
    requested = Refresh.objects.aggregate(total=models.Sum("requests"))
    assert requested == {"total": ASKERS}
    # when one worker comes
    workers.start()
    workers.wait_until_quiet()
    # then one refresh did the work, and the others have joined it or were merged into it
    assert engine.count_requests(Refresh.objects.get(merged_into=None)) == ASKERS
    assert set(Refresh.objects.values_list("state", "error")) == {(RefreshState.SUCCEEDED, "")}
    assert_each_item_once()
    assert PhaseRun.objects.filter(batches__gt=0).count() == 1


def test_no_request_is_forgotten_by_a_worker_at_work(
    workers: Workers, redis_environment: dict[str, str]
) -> None:
    # given workers in the middle of a refresh
    workers.start(2)
    add_items(30)
    with fault(Ledger, "before_insert", "sleep", seconds=0.05):
        Ledger.refresh()
        workers.wait_for(Ledger.objects.exists)
        # when many processes ask at the same moment, and no maintenance ever runs
        asking = ask_at_once("sample.Ledger", ASKERS, redis_environment)
        assert (asking.returncode, asking.stderr) == (0, "")
    workers.wait_until_quiet()
    # then all of them close, and the last finds the view fresh
    assert Ledger.is_fresh()
    assert_each_item_once()
    assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}
    requested = Refresh.objects.aggregate(total=models.Sum("requests"))
    assert requested == {"total": ASKERS + 1}


def test_an_insert_asked_for_during_a_long_update_waits_for_one_batch(workers: Workers) -> None:
    # given an update of many batches under way, and rows to insert
    (worker,) = workers.start()
    add_items(40)
    Limited.refresh()
    workers.wait_until_quiet()
    Item.objects.update(value=models.F("value") + 1)
    add_items(10)
    updates = ("batch finished", "phase=update", "rows=5")
    with fault(Limited, "do_update", "sleep", seconds=0.2):
        Limited.refresh(phases=["update"])
        workers.wait_for(lambda: len(worker.lines(*updates)) >= 2)
        # when an insert is asked for
        workers.send_by_name("matviews.refresh", "sample.Limited", ["insert"])
        workers.wait_for(Refresh.objects.filter(origin=Origin.SCHEDULE).exists)
        workers.wait_until_quiet()
    # then it is next, after at most one more batch of the update
    lines = worker.lines("view=sample.Limited")
    (asked,) = (at for at, line in enumerate(lines) if line in worker.lines("refresh requested"))
    after = [phase_of(line) for line in lines[asked:] if "batch finished" in line]
    assert after.index("insert") <= 1
    assert after.count("update") >= 4
    assert_copies(Limited)


def phase_of(line: str) -> str:
    return line.partition("phase=")[2].split()[0]


def test_a_refresh_is_stopped_and_a_view_paused_while_workers_are_at_work(workers: Workers) -> None:
    # given two workers in the middle of a refresh, and a request that came after it had begun
    workers.start(2)
    add_items(400)
    control = ViewControl.objects.get(label="sample.Ledger")
    with fault(Ledger, "before_insert", "sleep", seconds=0.1):
        stopped = Ledger.refresh()
        workers.wait_for(Ledger.objects.exists)
        other = Ledger.refresh()
        # when it is stopped, then it ends and the other goes on
        assert engine.request_stop(stopped.pk)
        assert tasks.dispatch(control.pk)
        workers.wait_for(Refresh.objects.filter(pk=stopped.pk, state="stopped").exists)
        workers.wait_for(PhaseRun.objects.filter(refresh=other, batches__gt=0).exists)
        # and when the view is paused, then the batch at work is its last
        ViewControl.objects.update(paused=True)
        workers.wait_for(lambda: settled_down(control))
        assert PhaseRun.objects.filter(refresh=other, state="running").exists()
        assert 0 < Ledger.objects.count() < 400
    # and when it is resumed, then it goes on where it was
    ViewControl.objects.update(paused=False)
    assert tasks.dispatch(control.pk)
    workers.wait_until_quiet()
    assert_each_item_once()
    other.refresh_from_db()
    assert (other.state, other.merged_into) == (RefreshState.SUCCEEDED, None)
    assert workers.lines("ERROR") == []


def settled_down(control: ViewControl) -> bool:
    """Whether the batch that was claimed last is over, and none is claimed any more."""
    return not any(shard.is_claimed for shard in control.shards.all())
