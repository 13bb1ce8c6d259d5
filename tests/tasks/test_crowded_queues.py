"""Long refreshes that share a queue take turns, so that a short one need not wait for all."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from random import Random
from typing import Any
from unittest import mock

import pytest
from celery.app.task import Task
from django.db import models
from django.db.models import F, Sum

from benchmarks.hooks import NoHooksMixin
from benchmarks.statements import statements
from matviews import engine, tasks
from matviews.databases.clock import UtcNow
from matviews.engine import Message
from matviews.engine.dispatch import fair_queueing
from matviews.models import PhaseRun, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState
from matviews.tasks import crowded_queues
from tests.helpers.engine import (
    held_by_another_worker,
    let_time_pass,
    shard_of,
    travel,
    without_sqlite,
)  # fmt: skip
from tests.helpers.view_classes import make_view, ready

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LONG, BATCHES = 8, 4


class Broker:
    """A queue, and one worker that takes its messages in order."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, tuple[Any, ...]]] = []
        self.taken = 0

    def work(self, steps: int = 10_000) -> None:
        """Take messages until there are none, at most so many."""
        while self.messages and steps:
            task, arguments = self.messages.pop(0)
            self.taken, steps = self.taken + 1, steps - 1
            task.run(*arguments)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()

    def apply_async(task: Any, arguments: Any = (), **_options: Any) -> None:
        broker.messages.append((task, tuple(arguments)))

    monkeypatch.setattr(Task, "apply_async", apply_async)
    monkeypatch.setattr(crowded_queues, "_SEEN", {})
    return broker


def made(name: str, batches: int) -> type[Any]:
    options = {"phases": ["insert"]}
    view = ready(make_view(name, bases=(NoHooksMixin, models.Model), options=options))
    view.batches = batches
    return view


@pytest.fixture
def views() -> Iterator[list[type[Any]]]:
    """Views of many batches, by hooks: that they are long shows after the first."""
    with registry.preserved():
        yield [made(f"Long{number}", BATCHES) for number in range(LONG)]


@pytest.fixture
def short() -> type[Any]:
    return made("Short", 1)


def ask(*views: type[Any]) -> None:
    for view in views:
        tasks.dispatch(engine.request(view).view_id)


def begin(broker: Broker, views: list[type[Any]]) -> None:
    """Each of the views has had its first batch."""
    ask(*views)
    broker.work(len(views))


def batches() -> dict[str, int]:
    runs = PhaseRun.objects.values_list("shard__view__label").order_by()
    return dict(runs.annotate(total=Sum("batches")))


def waited(broker: Broker, view: type[Any]) -> int:
    """How many messages are taken until a refresh of the view is done."""
    tasks.refresh.apply_async([view._meta.label])
    before, done = broker.taken, Refresh.objects.filter(view__label=view._meta.label)
    while not done.filter(state=RefreshState.SUCCEEDED).exists():
        broker.work(1)
    return broker.taken - before


def test_a_short_refresh_waits_for_a_batch_or_two_of_long_ones(
    broker: Broker, views: list[type[Any]], short: type[Any]
) -> None:
    begin(broker, views)
    broker.work(LONG)

    assert waited(broker, short) <= 2 + 2  # its own two messages, each behind one


def test_without_turns_it_would_wait_for_all_of_them_twice(
    broker: Broker, views: list[type[Any]], short: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "take_turns", list)
    begin(broker, views)

    assert waited(broker, short) >= 2 * LONG


def test_all_of_them_go_on_alike_and_end(broker: Broker, views: list[type[Any]]) -> None:
    begin(broker, views)
    while broker.messages:
        assert max(batches().values()) - min(batches().values()) <= 2
        broker.work(1)

    assert set(batches().values()) == {BATCHES}
    assert not Refresh.objects.filter(state=RefreshState.OPEN).exists()
    assert not ViewShard.objects.exclude(turn_queue=None).exists()


def test_at_most_one_message_of_them_lies_in_the_queue(
    broker: Broker, views: list[type[Any]]
) -> None:
    begin(broker, views)
    broker.work(2)
    # when every schedule asks once more, and so does maintenance
    ask(*views)
    tasks.maintain()
    broker.work(2)

    tokens = Counter(arguments[0] for _task, arguments in broker.messages)
    assert len(tokens) <= 2


def test_who_takes_a_message_sends_the_next_before_the_batch(
    broker: Broker, views: list[type[Any]]
) -> None:
    # given a process that has seen that there are others
    begin(broker, views)
    broker.work(2)
    seen = counted_messages(broker, views)
    # when it runs batches, then another worker could take the next at once
    broker.work(LONG)
    assert set(seen) == {1}


def test_a_limit_of_their_batches_holds_for_each_queue_and_forgets_killed_workers(
    broker: Broker, views: list[type[Any]], settings: Any
) -> None:
    # given four that wait, and two others whose batches run elsewhere
    begin(broker, views[:6])
    broker.messages[:] = []
    waiting = ViewShard.objects.exclude(turn_deadline=None).order_by("turn_deadline")
    running = list(waiting.values_list("pk", flat=True)[:2])
    claimed = {"claimed_token": F("token"), "claimed_at": UtcNow(), "turn_deadline": None}
    ViewShard.objects.update(turn_token=0)
    ViewShard.objects.filter(pk__in=running).update(**claimed)
    # then the limit of two is reached, and three is not
    settings.MATVIEWS = {"MAX_LONG_BATCHES": 2}
    assert engine.grant_turns("") == []
    # and a worker that takes a message takes one place
    settings.MATVIEWS = {"MAX_LONG_BATCHES": 3}
    assert engine.grant_turns("", taken=waiting.values_list("pk", flat=True)[0]) == []
    assert len(engine.grant_turns("")) == 1
    assert engine.grant_turns("") == []
    # when the workers are killed, their places are free after a lease
    settings.MATVIEWS = {"MAX_LONG_BATCHES": 1}
    let_time_pass()
    assert len(engine.grant_turns("")) == 1


@without_sqlite
def test_a_batch_counts_for_as_long_as_it_runs(
    broker: Broker, views: list[type[Any]], settings: Any
) -> None:
    # given some that wait, and one that runs for longer than a lease
    settings.MATVIEWS = {"MAX_LONG_BATCHES": 1}
    begin(broker, views[:3])
    running = shard_of(views[0])
    claimed = {"claimed_token": F("token"), "claimed_at": UtcNow(), "turn_deadline": None}
    ViewShard.objects.filter(pk=running.pk).update(**claimed)
    ViewShard.objects.update(turn_token=0)
    let_time_pass()
    # when it ends, the next turn is due
    with held_by_another_worker(running):
        assert engine.grant_turns("") == []
    assert len(engine.grant_turns("")) == 1


def test_one_alone_costs_no_statement(
    broker: Broker, views: list[type[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.polling, "is_due", lambda: False)  # however slow the machine is
    ask(views[0])
    broker.work(1)
    (_task, (shard, token)) = broker.messages[0]
    with statements() as by_hand:
        engine.run_batch(Message(Phase.INSERT, shard, token))
        engine.close_finished(shard)
    broker.messages[:] = [(tasks.insert_batch, (shard, token + 1))]
    with statements() as found:
        broker.work(1)

    assert len(found) == len(by_hand)


def test_the_one_with_the_shortest_target_is_next(
    broker: Broker, views: list[type[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ViewControl.objects.filter(label="sample.Long5").update(freshness_target=timedelta(seconds=9))
    schedule = {"every": 5, "period": "seconds"}
    RefreshSchedule.objects.create(view=shard_of(views[3]).view, **schedule)
    with monkeypatch.context() as nobody:
        nobody.setattr(fair_queueing, "MAX_UNTAKEN", 0)
        nobody.setattr(crowded_queues, "NEW_PROCESS_SENDS", 0)
        begin(broker, views)
    order = []
    while granted := engine.grant_turns(""):
        order += [message.shard_id for message in granted]
        let_time_pass()

    numbers = [order.index(shard_of(view).pk) for view in views]
    assert numbers == [2, 3, 4, 0, 5, 1, 6, 7]


def test_a_view_that_is_paused_passes_its_turn_on(broker: Broker, views: list[type[Any]]) -> None:
    begin(broker, views)
    waiting = ViewShard.objects.exclude(turn_deadline=None).order_by("turn_deadline")
    paused = list(waiting.values_list("view", flat=True)[:3])
    ViewControl.objects.filter(pk__in=paused).update(paused=True)

    broker.work()

    still_open = Refresh.objects.filter(state=RefreshState.OPEN)
    assert set(still_open.values_list("view", flat=True)) == set(paused)
    # and goes on when it is resumed
    ViewControl.objects.update(paused=False)
    tasks.dispatch_all(paused)
    broker.work()
    assert not still_open.exists()


def test_a_lost_message_comes_back_with_maintenance(broker: Broker, views: list[type[Any]]) -> None:
    begin(broker, views)
    for _time in range(3):
        broker.work(3)
        broker.messages[:] = []  # the broker forgets everything, and the worker is killed
        crowded_queues._SEEN.clear()
        let_time_pass()
        tasks.maintain()

    broker.work()

    assert set(batches().values()) == {BATCHES}


def test_each_queue_has_its_own_turns(broker: Broker, views: list[type[Any]]) -> None:
    half = [view._meta.label for view in views[::2]]
    ViewControl.objects.filter(label__in=half).update(queue="other")
    crowded_queues._SEEN |= dict.fromkeys(["", "other"], time.monotonic())
    begin(broker, views)
    broker.work(4)

    found = ViewShard.objects.exclude(turn_queue=None).order_by("turn_queue")
    assert Counter(found.values_list("turn_queue", flat=True)).keys() == {"", "other"}
    assert len({arguments for _task, arguments in broker.messages}) == 2


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def granted_alone(broker: Broker, views: list[type[Any]]) -> Message:
    """The only message in the broker, of a turn, is lost, and so is what processes remember."""
    begin(broker, views)
    broker.work(2)
    broker.messages[:] = []
    travel(seconds(20))
    crowded_queues._SEEN.clear()
    (message,) = engine.grant_turns("")
    return message


def sent_shards(broker: Broker) -> list[Any]:
    return [arguments[0] for _task, arguments in broker.messages if len(arguments) == 2]


def view_of(message: Message) -> int:
    return ViewShard.objects.get(pk=message.shard_id).view_id


class TestAMessageThatNobodyTakes:
    def test_it_holds_others_back_for_a_moment_also_after_it_was_re_sent(
        self, broker: Broker, views: list[type[Any]]
    ) -> None:
        message = granted_alone(broker, views[:4])
        assert engine.grant_turns("") == []
        for _time in range(4):
            ViewShard.objects.filter(pk=message.shard_id).update(
                resend_after=engine.now() - seconds(1)
            )
            assert message.shard_id in [each.shard_id for each in engine.rescue()]

        travel(seconds(20))
        assert len(engine.grant_turns("")) == 1

    def test_it_is_re_sent_by_the_next_dispatch_but_not_before_it_may_be_lost(
        self, broker: Broker, views: list[type[Any]]
    ) -> None:
        message = granted_alone(broker, views[:3])
        tasks.dispatch(view_of(message))
        assert sent_shards(broker) == []

        travel(seconds(20))
        tasks.dispatch(view_of(message))
        assert message.shard_id in sent_shards(broker)

    def test_a_turn_is_given_back_that_the_broker_refused(
        self, broker: Broker, views: list[type[Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin(broker, views[:3])
        broker.work(2)
        broker.messages[:] = []
        travel(seconds(20))
        with monkeypatch.context() as down:
            down.setattr(Task, "apply_async", refused := mock.Mock(side_effect=OSError))
            tasks.maintain()
        ((shard, _token),) = refused.call_args_list[0].args
        tasks.dispatch(ViewShard.objects.get(pk=shard).view_id)

        assert shard in sent_shards(broker)

    def test_a_view_that_waited_is_asked_again(
        self, broker: Broker, views: list[type[Any]]
    ) -> None:
        message = granted_alone(broker, views[:2])
        view = view_of(message)
        ViewControl.objects.filter(pk=view).update(retry_at=engine.now() - seconds(1))

        tasks.maintain()

        assert message.shard_id in sent_shards(broker)

    def test_in_a_queue_that_it_was_moved_to_it_holds_nobody_back_in_the_old_one(
        self, broker: Broker, views: list[type[Any]]
    ) -> None:
        begin(broker, views[:4])
        broker.work(2)
        broker.messages[:] = []
        travel(seconds(20))
        first = ViewShard.objects.exclude(turn_deadline=None).order_by("turn_deadline")[0]
        ViewControl.objects.filter(pk=first.view_id).update(queue="dead")

        assert [each.queue for each in engine.grant_turns("")] == ["dead", None]
        first.refresh_from_db()
        assert first.turn_queue == "dead"

    def test_one_in_a_queue_without_a_worker_delays_the_others_once(
        self, broker: Broker, views: list[type[Any]]
    ) -> None:
        dead = granted_alone(broker, views[:4])
        for view in views:
            view.batches = 60
        done = 0
        for tick in range(30):
            if tick % 6 == 0:
                tasks.maintain()
            tasks.dispatch(view_of(dead))
            broker.messages[:] = [each for each in broker.messages if each[1][0] != dead.shard_id]
            before = sum(batches().values())
            broker.work(1)
            done += sum(batches().values()) > before
            travel(seconds(10))

        assert done >= 30 - 8


class Walk:
    """Faults, one after another, by a random generator."""

    def __init__(self, broker: Broker, views: list[type[Any]], seed: int) -> None:
        self.broker, self.random, self.is_up = broker, Random(seed), True
        self.controls = ViewControl.objects.filter(label__in=[each._meta.label for each in views])

    def go(self) -> None:
        pk = self.random.choice(list(self.controls.order_by("pk").values_list("pk", flat=True)))
        one, shard = self.controls.filter(pk=pk), ViewShard.objects.filter(view=pk)
        events: list[Callable[[], Any]] = [
            *(lambda: self.broker.work(1), lambda: tasks.dispatch(pk)) * 3,
            tasks.maintain,
            self.broker.messages.clear,
            crowded_queues._SEEN.clear,
            # a worker claims a batch and is killed
            lambda: shard.update(claimed_token=F("token"), claimed_at=UtcNow()),
            lambda: one.update(paused=True),
            lambda: one.update(paused=False),
            lambda: one.update(queue="other"),
            lambda: one.update(queue=""),
            lambda: one.update(retry_at=UtcNow() + seconds(10)),
            lambda: setattr(self, "is_up", False),
            lambda: setattr(self, "is_up", True),
            lambda: travel(seconds(7)),
            lambda: travel(seconds(60)),
        ]
        self.random.choice(events)()


def counted_messages(broker: Broker, views: list[type[Any]]) -> list[int]:
    """How many messages lie in the broker while a batch runs."""
    seen: list[int] = []
    do = views[0].do_insert

    def counted(limit: int, cursor: int | None) -> Any:
        seen.append(len(broker.messages))
        return do(limit=limit, cursor=cursor)

    for view in views:
        view.do_insert = counted
    return seen


def test_processes_that_run_one_task_each_leave_one_for_another_worker(
    broker: Broker, views: list[type[Any]]
) -> None:
    begin(broker, views)
    broker.work(2)
    seen = counted_messages(broker, views)
    for _process in range(LONG):
        crowded_queues._SEEN.clear()
        broker.work(1)

    assert sum(map(bool, seen)) >= LONG - 1


def test_the_views_with_short_targets_do_not_starve_another(
    broker: Broker, views: list[type[Any]]
) -> None:
    few, big = views[:4], views[3]
    for view in few:
        view.batches = 1000
    labels = [view._meta.label for view in few[:3]]
    ViewControl.objects.filter(label__in=labels).update(freshness_target=seconds(10))
    begin(broker, few)
    for _batch in range(60):
        broker.work(1)
        travel(seconds(5))

    assert batches()[big._meta.label] >= 4


def test_a_suspended_view_makes_no_crowd(broker: Broker, views: list[type[Any]]) -> None:
    begin(broker, views[:2])
    broker.work(2)
    one, other = map(shard_of, views[:2])
    ViewShard.objects.filter(pk__in=[one.pk, other.pk]).update(turn_queue="")
    ViewControl.objects.filter(pk=one.view_id).update(suspended_at=engine.now(), failures=20)

    assert not message_of(other).is_crowded
    ViewControl.objects.filter(pk=one.view_id).update(suspended_at=None)
    assert message_of(other).is_crowded
    ViewShard.objects.filter(pk=one.pk).update(turn_queue="elsewhere")
    assert not message_of(other).is_crowded


def message_of(shard: ViewShard) -> Message:
    message = engine.close_finished(shard.pk).message
    assert message is not None
    return message


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(each, marks=pytest.mark.long) for each in range(2, 12))]
)
def test_after_faults_every_long_refresh_goes_on_within_a_few_minutes(
    broker: Broker, views: list[type[Any]], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    few = views[:3]
    for view in few:
        view.batches = 1000
    begin(broker, few)
    walk = Walk(broker, few, seed)
    send = Task.apply_async

    def apply_async(task: Any, *arguments: Any, **options: Any) -> None:
        if not walk.is_up:
            raise OSError
        send(task, *arguments, **options)

    monkeypatch.setattr(Task, "apply_async", apply_async)
    for _event in range(25):
        walk.go()
    walk.is_up = True
    broker.messages[:] = []
    crowded_queues._SEEN.clear()
    walk.controls.update(paused=False)
    # when maintenance runs each minute, and every process is a new one that takes one message
    before = batches()
    for _minute in range(len(few) + 3):
        tasks.maintain()
        for _message in range(len(broker.messages)):
            crowded_queues._SEEN.clear()
            broker.work(1)
        travel(seconds(60))

    assert all(batches()[label] > number for label, number in before.items())
