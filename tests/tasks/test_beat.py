"""Schedules with real `celery beat` and `celery worker` processes on a real Redis."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from matviews.models import Heartbeat, Origin, PhaseRun, Refresh, RefreshSchedule, ViewControl
from matviews.states import RefreshState
from matviews.tasks.schedules import maintenance_problem, reconcile
from tests.helpers.ledger import add_items, assert_each_item_once, fault
from tests.helpers.processes import Workers
from tests.sample.models import Ledger
from tests.scenarios.test_workers import forget, token_of

CLOCK = "sample.Whole"  # a view whose schedule tells that a second has passed
LEDGER, LIMITED = "sample.Ledger", "sample.Limited"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _small_batches() -> Iterator[None]:
    five = {f"BATCH_SIZE_{name}": 5 for name in ("MIN", "INITIAL", "MAX")}
    with override_settings(MATVIEWS=five):
        yield


def schedule(
    label: str, every: int = 1, period: str = "seconds", jitter: int = 0
) -> RefreshSchedule:
    view = ViewControl.objects.get(label=label)
    return RefreshSchedule.objects.create(view=view, every=every, period=period, jitter=jitter)


def asked(label: str = LEDGER) -> int:
    return Refresh.objects.filter(view__label=label, origin=Origin.SCHEDULE).count()


def wait_for_ticks(workers: Workers, label: str = CLOCK, count: int = 2) -> None:
    enough = asked(label) + count
    workers.wait_for(lambda: asked(label) >= enough)


def wait_until_followed(workers: Workers) -> None:
    """Wait until beat has read the present schedules."""
    beat = workers.beats[0]
    before = len(beat.lines("Schedule changed"))
    # One more change to see, after the last.
    PeriodicTasks.objects.update(last_update=timezone.now())
    workers.wait_for(lambda: len(beat.lines("Schedule changed")) > before)


def assert_silent(workers: Workers) -> None:
    """Nobody asks for the view any more, once beat knows and what it has sent is taken."""
    wait_until_followed(workers)
    wait_for_ticks(workers, count=1)
    before = asked()
    wait_for_ticks(workers)
    assert asked() == before


def assert_asked_once(workers: Workers, save: Callable[[], object]) -> None:
    """The view, which is long overdue, is asked for once after `save` and not again."""
    ViewControl.objects.filter(label=LEDGER).update(last_insert=timezone.now() - 100 * HOUR)
    before = asked()
    save()
    workers.wait_for(lambda: asked() > before)
    wait_for_ticks(workers)
    assert asked() == before + 1


def test_beat_follows_what_is_done_to_schedules(workers: Workers) -> None:
    # given a beat and a worker, and a view on no schedule
    reconcile()
    clock = schedule(CLOCK)
    workers.start()
    workers.start_beat()
    wait_for_ticks(workers)
    # then maintenance runs from the first moment on
    signs = ("maintenance_ended_at", "maintenance_began_at", "beat_began_at", "beat_sent_at")
    workers.wait_for(
        Heartbeat.objects.filter(**{f"{sign}__isnull": False for sign in signs}).exists
    )
    assert maintenance_problem() == ""
    # when a schedule is created, a view that was never built is asked for at once
    add_items(3)
    made = schedule(LEDGER, every=3600)
    workers.wait_for(Ledger.objects.exists)
    # when its interval is changed, beat follows
    made.every = 1
    made.save()
    wait_for_ticks(workers, LEDGER)
    # when it is disabled, it stops
    made.enabled = False
    made.save()
    assert_silent(workers)
    # when it is enabled with a long interval, the view is asked for once
    made.enabled, made.every = True, 3600
    assert_asked_once(workers, made.save)
    # when the view is paused through a few ticks and resumed, likewise
    made.every = 1
    made.save()
    wait_for_ticks(workers, LEDGER, count=1)
    view = ViewControl.objects.get(label=LEDGER)
    view.paused = True
    view.save()
    assert_silent(workers)
    made.every = 3600
    made.save()
    view.paused = False
    assert_asked_once(workers, lambda: view.save(update_fields=["paused"]))
    # when it is deleted, it is gone
    made.every = 1
    made.save()
    wait_for_ticks(workers, LEDGER, count=1)
    made.delete()
    assert_silent(workers)
    # and nothing of it all was an error
    clock.delete()
    workers.wait_until_quiet()
    errors = workers.lines("ERROR")  # a view of the tests is invalid on SQLite
    assert [line for line in errors if "alarm: invalid" not in line] == []
    assert workers.beats[0].lines("ERROR") == []
    assert_each_item_once()


@pytest.mark.database
def test_two_beats_a_killed_one_and_a_broker_that_forgets(
    workers: Workers, redis_url: str, queue: str
) -> None:
    # given two beats by mistake, and a view whose refresh takes longer than its interval
    schedule(CLOCK)
    schedule(LEDGER)
    workers.start(2)
    first, second = workers.start_beat(), workers.start_beat()
    with fault(Ledger, "before_insert", "sleep", seconds=0.1):
        add_items(60)
        # then both send, requests are merged, and no batch is done twice
        workers.wait_for(Refresh.objects.exclude(merged_into=None).exists)
    sent = (f"of {LEDGER}", "Sending due task")
    workers.wait_for(lambda: first.lines(*sent) and second.lines(*sent))
    workers.wait_for(lambda: Ledger.objects.count() >= 60)
    # when one dies, the other goes on; when both are dead, nobody asks
    second.kill()
    wait_for_ticks(workers, LEDGER, count=1)
    first.kill()
    RefreshSchedule.objects.filter(view__label=LEDGER).delete()
    schedule(LIMITED, every=1, period="hours", jitter=2)
    PeriodicTask.objects.filter(name__endswith=LIMITED).update(
        last_run_at=timezone.now() - 100 * HOUR, total_run_count=7
    )
    assert asked(LIMITED) == 0
    # when beat comes back, what is overdue by far is asked for once
    first.start()
    workers.wait_for(lambda: asked(LIMITED))
    wait_for_ticks(workers)
    assert asked(LIMITED) == 1
    # when the broker loses all that it has, the next tick works
    workers.wait_for(lambda: forget(redis_url, queue))
    add_items(5)
    schedule(LEDGER)
    wait_for_ticks(workers, LEDGER, count=1)
    workers.wait_for(lambda: Ledger.objects.count() >= 65)
    # and no batch was done twice in all that
    RefreshSchedule.objects.all().delete()
    wait_until_followed(workers)
    workers.wait_until_quiet(meanwhile=workers.maintain)
    assert_each_item_once()
    finished = [token_of(line) for line in workers.lines("batch finished", f"view={LEDGER}")]
    assert len(finished) == len(set(finished))
    assert set(Refresh.objects.values_list("state", "error")) == {(RefreshState.SUCCEEDED, "")}
    assert (
        sum(PhaseRun.objects.filter(refresh__view__label=LEDGER).values_list("rows", flat=True))
        == 65
    )
