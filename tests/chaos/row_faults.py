"""What is done to rows, locks, triggers, views and messages. Raises where the database is down."""

import random
from collections import deque
from typing import Any

from django.db import Error, connection, connections, transaction
from redis import Redis

from matviews import changes, engine, tasks
from matviews.databases import triggers_of
from matviews.engine import Message
from matviews.models import Refresh, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.states import RefreshState
from matviews.tasks import schedules

from .faults import End, Fault
from .models import Entry
from .plan import Kind, Step
from .world import QUEUE, World

__all__ = ["FAULTS", "StillLocked", "heal"]

COPIES = 3  # of a message
#: Messages that were in the queue once, to be sent again.
_old: deque[bytes] = deque(maxlen=200)


class StillLocked(Exception):
    """Somebody has locked what the end of a fault needs: try again."""


def _flush_broker(world: World, step: Step) -> End:
    with Redis.from_url(world.broker.url, socket_timeout=2) as broker:
        broker.flushall()
    return lambda: None


def _duplicate_messages(world: World, step: Step) -> End:
    """Send again what waits, what waited once, and the messages of each shard, new and old."""
    with Redis.from_url(world.broker.url, socket_timeout=2) as broker:
        waiting: Any = broker.lrange(QUEUE, 0, -1)
        again = [*waiting, *random.Random(step.choice).sample([*_old], min(20, len(_old)))]
        _old.extend(waiting)
        if again:
            broker.lpush(QUEUE, *again)
    messages = [
        Message(phase, shard, each)
        for shard, token in ViewShard.objects.values_list("pk", "token")
        for each in (*[token] * COPIES, 1 + step.choice % token)
        for phase in Phase
    ]
    if not tasks.send(messages):
        raise OSError("the broker is down")
    return lambda: None


def _commit_late(world: World, step: Step) -> End:
    """A transaction that has changed rows commits at the end, if its server still knows it."""
    writer = connections["default"].copy()
    writer.set_autocommit(False)
    remainder = step.choice % 7
    with writer.cursor() as cursor:
        cursor.execute(
            f"UPDATE chaos_entry SET amount = amount + 1 WHERE id % 7 = {remainder} AND id % 5 = 1"
        )

    def end() -> None:
        try:
            writer.commit()
        except Error:
            print("      a late commit was lost with its server")
        finally:
            writer.close()

    return end


def _hold_snapshot(world: World, step: Step) -> End:
    reader = connections["default"].copy()
    level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    with reader.cursor() as cursor:
        begin = ["BEGIN", level] if reader.vendor == "postgresql" else [level, "BEGIN"]
        for statement in (*begin, "SELECT COUNT(*) FROM chaos_entry"):
            cursor.execute(statement)
    return reader.close


def _cut_connections(world: World, step: Step) -> End:
    """End all sessions of the server but this one."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
                "pg_backend_pid() AND datname = current_database()"
            )
            return lambda: None
        cursor.execute(
            "SELECT id FROM information_schema.processlist "
            "WHERE user = 'root' AND id <> CONNECTION_ID()"
        )
        for (number,) in cursor.fetchall():
            try:
                cursor.execute(f"KILL {number}")
            except Error:
                continue  # it has ended by itself
    return lambda: None


def _drop_triggers(world: World, step: Step) -> End:
    """Somebody drops the triggers of a table; later, an operator creates them again."""
    dialect = triggers_of(engine.alias())
    installed = sorted(dialect.installed_triggers().items())
    if installed:
        table, names = installed[step.choice % len(installed)]
        with transaction.atomic():
            dialect.execute(dialect.drop(table, names))
    return _install_triggers


def _install_triggers() -> None:
    """What `--triggers install` does.

    Raises:
        StillLocked: not all are there.
    """
    if left := changes.install(engine.alias()):
        raise StillLocked(left)


def _pause(world: World, step: Step) -> End:
    view = _chosen_view(step)
    ViewControl.objects.filter(pk=view.pk).update(paused=True)
    schedules.reconcile()
    return lambda: _resume(view.pk)


def _resume(*views: int) -> None:
    """What the admin does."""
    ViewControl.objects.filter(pk__in=views).update(paused=False)
    engine.try_now(views)
    schedules.reconcile()
    tasks.dispatch_all(views)


def _stop_refreshes(world: World, step: Step) -> End:
    for pk, view in Refresh.objects.filter(state=RefreshState.OPEN).values_list("pk", "view"):
        engine.request_stop(pk)
        tasks.dispatch(view)
    return lambda: None


def _refresh_by_hand(world: World, step: Step) -> End:
    view = _chosen_view(step)
    for _ in range(COPIES):
        refresh = engine.request(view.label, force=True, requested_by="chaos")
        if refresh.finished_at is None:
            tasks.dispatch(view.pk)
    return lambda: None


def _chosen_view(step: Step) -> ViewControl:
    views = list(ViewControl.objects.order_by("pk"))
    return views[step.choice % len(views)]


def _poison(world: World, step: Step) -> End:
    """Some rows cannot be computed until their divisor is another one."""
    keys = list(Entry.objects.order_by("pk").values_list("pk", flat=True))
    chosen = random.Random(step.choice).sample(keys, min(1 + step.choice % 4, len(keys)))
    Entry.objects.filter(pk__in=chosen).update(divisor=0)
    return _heal_rows


def _heal_rows() -> None:
    Entry.objects.filter(divisor=0).update(divisor=2)


def heal() -> None:
    """What an operator does when all is up again; the rest comes by itself."""
    _heal_rows()
    _install_triggers()
    _resume(*ViewControl.objects.filter(paused=True).values_list("pk", flat=True))


#: What is done to rows and messages, by kind.
FAULTS: dict[Kind, Fault] = {
    Kind(name="broker flushed", targets=("queue",)): _flush_broker,
    Kind(name="messages duplicated", targets=("messages",)): _duplicate_messages,
    Kind(name="messages duplicated again", targets=("messages",)): _duplicate_messages,
    Kind(name="late commit", targets=("commit 1", "commit 2"), seconds=(1, 12)): _commit_late,
    Kind(name="snapshot open", targets=("snapshot",), seconds=(5, 30)): _hold_snapshot,
    Kind(name="connections cut", targets=("sessions",)): _cut_connections,
    Kind(name="triggers dropped", targets=("triggers",), seconds=(2, 8)): _drop_triggers,
    Kind(name="view paused", targets=("view",), seconds=(2, 8)): _pause,
    Kind(name="refreshes stopped", targets=("refreshes",)): _stop_refreshes,
    Kind(name="refresh by hand", targets=("refreshes",)): _refresh_by_hand,
    Kind(name="rows poisoned", targets=("rows",), seconds=(3, 15)): _poison,
}
