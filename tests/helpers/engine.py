"""Driving the engine by hand: its messages, its clock, and other workers on other connections."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import DateTimeField, F
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from matviews import engine
from matviews.engine import Message
from matviews.models import (
    Alarm,
    Change,
    Heartbeat,
    PhaseRun,
    Refresh,
    RefreshPermit,
    VerifyRun,
    ViewChange,
    ViewControl,
    ViewShard,
)
from matviews.registry import registry
from tests.sample.models import Item

LONG_AGO = timedelta(days=1)
HELD = 60.0  # seconds that another connection holds what nobody waits for

without_sqlite = pytest.mark.only_on(
    "postgres", "mariadb", reason="SQLite locks the whole database, so others must wait"
)


def items(count: int) -> None:
    Item.objects.bulk_create([Item(value=number) for number in range(count)])


def shard_of(view: type[Any]) -> ViewShard:
    return ViewShard.objects.get(view__label=view._meta.label, number=0)


def shards_of(view_id: int) -> list[int]:
    """Primary keys of a view's shards, in order."""
    return list(ViewShard.objects.filter(view=view_id).values_list("pk", flat=True))


def request_apart(view: type[Any], **options: Any) -> Refresh:
    """A request within a transaction of the caller's: it joins no other."""
    with transaction.atomic():
        return engine.request(view, **options)


def begun_together(view: type[Any], count: int, **options: Any) -> list[Refresh]:
    """Refreshes that one batch has begun: all but the first were requested after it was sent."""
    first = engine.request(view, **options)
    message = due(view)
    others = [request_apart(view, **options) for _ in range(count - 1)]
    engine.run_batch(message)
    return [first, *others]


def due(view: type[Any]) -> Message:
    message = engine.close_finished(shard_of(view).pk).message
    assert message is not None
    return message


def let_time_pass() -> None:
    past = timezone.now() - LONG_AGO
    ViewShard.objects.update(resend_after=past)
    ViewShard.objects.exclude(claimed_at=None).update(claimed_at=past)
    ViewShard.objects.exclude(turn_granted_at=None).update(turn_granted_at=past)


def travel(time: timedelta) -> None:
    """Move all times of the bookkeeping into the past, as if the database's clock had gone on.

    Those that beat has saved, too.
    """
    ours = (
        ViewControl, ViewShard, Refresh, PhaseRun, Change, ViewChange, VerifyRun, Heartbeat, Alarm,
        RefreshPermit,
    )  # fmt: skip
    for model in (*ours, PeriodicTask):
        fields = [field.name for field in model._meta.fields if isinstance(field, DateTimeField)]
        model.objects.update(**{name: F(name) - time for name in fields})


def in_another_connection(work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@contextmanager
def held_open(work: Callable[[], object]) -> Iterator[None]:
    """Another connection does some work in a transaction, which stays open until the block ends."""
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            work()
            holding.set()
            assert done.wait(HELD)

    thread = in_another_connection(hold)
    assert holding.wait(20)
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def held_by_another_worker(shard: ViewShard) -> Iterator[None]:
    """Another connection holds the shard's row, as a batch does from its first statement on."""

    def claim() -> None:
        ViewShard.objects.filter(pk=shard.pk).update(token=shard.token + 1)
        transaction.set_rollback(True)

    with held_open(claim):
        yield


def delete_with_hooks(monkeypatch: pytest.MonkeyPatch, view: type[Any]) -> None:
    """Define a view again, with hooks that find nothing to delete."""
    hooks = {"needs_delete": lambda cls: False, "do_delete": lambda cls: 0}
    for name, hook in hooks.items():
        monkeypatch.setattr(view, name, classmethod(hook), raising=False)
    assert not registry.register(view).has_key_ranges
