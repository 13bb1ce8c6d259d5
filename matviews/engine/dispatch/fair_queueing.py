"""Fair queueing: long refreshes that share a queue take turns, one message in the broker at a time.

A worker prefetches messages. If every long refresh had its next batch in the queue, the one batch
of a short refresh would wait for all of them. So the long ones wait in the database: the process
that takes or ends a batch of one of them sends the message of the next. As many batches run at once
as there are workers, and a short refresh waits for about one batch, whatever the broker.

Correctness does not depend on turns. They are no part of a batch, and a message that is sent out of
turn is run as usual. A turn holds others back for `TRUSTED` at most, and only once for each batch:
if its message is lost or not taken, it is re-sent out of turn, like that of a short refresh.
While only one long refresh runs, it costs no statement.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Coalesce

from ...conf import get_settings
from ...databases.clock import UtcNow
from ...models import Refresh, RefreshSchedule, ScheduleKind, ViewShard
from ...states import RefreshState
from ..locking import running, update_if_current
from ..messages import Message
from .closing import close_finished

__all__ = ["grant_all_turns", "grant_turns", "revoke_turns", "take_turns"]

#: Messages of long refreshes in one queue that no worker has taken.
MAX_UNTAKEN = 1
#: How long a turn whose message no worker takes holds others back; then it may be lost.
TRUSTED = timedelta(seconds=15)
#: How long a turn may take to come, unless the view's target is shorter: the turn that has to come
#: first is next.
MAX_TURN_WAIT = timedelta(minutes=1)


def take_turns(messages: Iterable[Message]) -> list[Message]:
    """Of the messages that are due, those to send now, and others whose turn it is."""
    due, queues = list[Message](), list[str]()
    for message in messages:
        if not message.is_long or (message.in_turns and not message.is_crowded):
            due.append(message)
        elif _queue_up(message):
            queues.append(message.queue or "")
        elif _is_lost(message):
            due.append(message)
    return due + [message for queue in dict.fromkeys(queues) for message in grant_turns(queue)]


def grant_turns(
    queue: str, *, taken: int | None = None, at_most: int | None = None
) -> list[Message]:
    """Grant the next turns in a queue; return their messages, for the caller alone to send.

    Args:
        queue: its name, "" for the default.
        taken: the primary key of a shard whose message a worker has just taken.
        at_most: how many messages that no worker has taken there may be, `MAX_UNTAKEN` by default.
    """
    at_most = MAX_UNTAKEN if at_most is None else at_most
    shards = ViewShard.objects.filter(Exists(_OPEN), turn_queue=queue).annotate(now=UtcNow())
    found = list(shards.only(*_READ).order_by("turn_deadline", "pk"))
    untaken = sum(each.pk != taken and _is_untaken(each) for each in found)
    if limit := get_settings().MAX_LONG_BATCHES:
        busy = {each.pk for each in found if each.pk == taken} | running(found)
        at_most = min(at_most, limit - len(busy))
    waiting = (each for each in found if each.turn_deadline is not None and each.pk != taken)
    return list(_granted(waiting, at_most - untaken))


def _is_untaken(shard: Any) -> bool:
    """Whether the message of a shard that had its turn probably lies in the broker."""
    return (
        shard.turn_token == shard.token
        and not shard.is_claimed
        and shard.turn_granted_at is not None
        and shard.turn_granted_at > shard.now - TRUSTED
    )


def grant_all_turns() -> list[Message]:
    """Grant the next turn in every queue; for the maintenance task, should a worker have died."""
    taking = ViewShard.objects.exclude(turn_queue=None).order_by("turn_queue")
    for pk, token in taking.filter(~Exists(_OPEN)).values_list("pk", "token"):
        update_if_current(pk, token, turn_queue=None, turn_deadline=None)
    queues = taking.exclude(turn_deadline=None).values_list("turn_queue", flat=True).distinct()
    return [message for queue in list(queues) for message in grant_turns(queue or "")]


_OPEN = Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN)


def _queue_up(message: Message) -> bool:
    """Let a shard wait for its turn; False if it had it for this batch, or one is running."""
    by = UtcNow() + _max_wait(message.shard_id)
    return update_if_current(
        message.shard_id,
        message.token,
        ~_HAD_TURN,
        turn_queue=message.queue or "",
        turn_deadline=Coalesce(F("turn_deadline"), by),
    )


def _is_lost(message: Message) -> bool:
    """Whether a shard had its turn for this batch a while ago, and its message was not taken."""
    untaken = ViewShard.objects.filter(_HAD_TURN, ~_CLAIMED, pk=message.shard_id)
    return untaken.filter(token=message.token, turn_granted_at__lte=UtcNow() - TRUSTED).exists()


def revoke_turns(messages: Iterable[Message]) -> None:
    """Let shards wait again that had their turn, because the broker refused a message."""
    for message in messages:
        if message.is_long:
            undone = {"turn_token": 0, "turn_deadline": UtcNow()}
            update_if_current(message.shard_id, message.token, _HAD_TURN & ~_CLAIMED, **undone)


def _max_wait(shard_id: int) -> timedelta:
    """How long a shard's turn may take to come: its view's target, or its shortest interval."""
    view = ViewShard.objects.select_related("view").get(pk=shard_id).view
    schedules = RefreshSchedule.objects.filter(
        view=view, enabled=True, kind=ScheduleKind.REFRESH
    ).exclude(every=None)
    wanted = [each.interval for each in schedules]
    targets = [view.freshness_target] if view.freshness_target else view.options.targets.values()
    wait: timedelta = min([MAX_TURN_WAIT, *targets, *filter(None, wanted)])
    return wait


def _granted(waiting: Iterable[ViewShard], free: int) -> Iterator[Message]:
    for shard in waiting:
        if free <= 0:
            return
        if message := _grant(shard):
            free -= (message.queue or "") == shard.turn_queue
            yield message


def _grant(shard: ViewShard) -> Message | None:
    """Give a shard its turn; None if another process has, or it has nothing to do any more.

    Its message may go to another queue than the one it waited in, if the view was moved.
    """
    lease = timedelta(seconds=get_settings().LEASE)
    granted = {"turn_deadline": None, "turn_token": F("token"), "turn_granted_at": UtcNow()}
    sent = {"resend_after": UtcNow() + lease, "resends": 0}
    if not update_if_current(shard.pk, shard.token, _WAITING, **granted, **sent):
        return None
    message = close_finished(shard.pk).message
    if message is None:
        update_if_current(shard.pk, shard.token, turn_queue=None, turn_token=0)
    elif (message.queue or "") != shard.turn_queue:
        update_if_current(shard.pk, shard.token, turn_queue=message.queue or "")
    return message


_READ = (
    "view", "token", "claimed_token", "claimed_at", "turn_queue", "turn_deadline", "turn_token",
    "turn_granted_at",
)  # fmt: skip
_WAITING = Q(turn_deadline__isnull=False)
_HAD_TURN = Q(turn_token=F("token"))
_CLAIMED = Q(claimed_token=F("token"))
