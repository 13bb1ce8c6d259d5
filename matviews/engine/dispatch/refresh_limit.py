"""How many views are refreshed at the same time in each queue, by `MAX_REFRESHES`.

A view takes a permit of its queue before its first batch, and keeps it until its refresh ends. It
loses a permit that it has not used for a lease, because its worker was killed or its message is not
taken, unless a batch of it is running. Waiting views are served in the order in which they came:
the end of a refresh wakes the first. After a raised limit or a killed worker, it is enough that
`matviews.maintain` makes all of them ask again every minute.
"""

import logging
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

from django.db import DatabaseError, IntegrityError, InterfaceError
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When

from ...conf import get_settings
from ...databases import Failure, errors_of
from ...databases.clock import UtcNow
from ...logs import log
from ...models import Refresh, RefreshPermit, ViewControl, ViewShard
from ...states import RefreshState
from ...waits import Wait, WaitCode
from ..failures.backoff import wake_views
from ..locking import running
from ..transactions import alias, drop_broken_connection, short_transaction

__all__ = ["is_limited", "release_permit", "take_permit", "wake_next_in_line"]

logger = logging.getLogger(__name__)

TRIES = 5  # to take a permit, while others take one at the same moment
_OPEN = Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN).order_by()


def is_limited() -> bool:
    """Whether a limit is set."""
    return bool(get_settings().MAX_REFRESHES)


def _limit_of(queue: str) -> int | None:
    limits = get_settings().MAX_REFRESHES
    return limits.get(queue) if isinstance(limits, dict) else limits


def take_permit(control: ViewControl, *, beyond: bool = False) -> Wait | None:
    """Take a permit for the batch that is due, or a place in line for one.

    Args:
        control: that of the view.
        beyond: whether to take one more than the limit if there is none.

    Returns:
        None if the batch may run; else the wait, for which the view now stands in line.
    """
    queue = control.queue_name or ""
    limit = _limit_of(queue)
    if limit is None:
        return None
    try:
        if _take(control.pk, queue, limit):
            return None
        if not beyond:
            _stand_in_line(control.pk, queue)
        else:
            _take(control.pk, queue, None)
    except (DatabaseError, InterfaceError) as error:  # what cannot be counted blocks nothing
        drop_broken_connection()
        sentence = "the limit of refreshes cannot be applied"
        log(logger, logging.WARNING, sentence, exception=error, view=control.label)
        return None
    return Wait(WaitCode.MAX_REFRESHES, {"limit": limit, "queue": queue})


def _take(view_id: int, queue: str, limit: int | None) -> bool:
    """Take a permit, or use the one that the view has; whether there was one.

    Args:
        view_id: the primary key of the view's control.
        queue: its queue.
        limit: how many permits the queue has; None takes one beyond that.
    """
    mine = RefreshPermit.objects.filter(view=view_id)
    for _try in range(TRIES):
        if mine.filter(queue=queue, number__isnull=False).update(used_at=UtcNow()):
            return True
        taken = _taken(queue)
        if limit is not None and not _is_next(view_id, queue, limit - len(taken)):
            return False
        if _occupy(mine, view_id, queue, next(each for each in count() if each not in taken)):
            return True
    return False


def _occupy(mine: QuerySet[Any], view_id: int, queue: str, number: int) -> bool:
    """Take the permit with this number; False if another view was faster."""
    having = {"queue": queue, "number": number, "used_at": UtcNow(), "waiting_since": None}
    try:
        with short_transaction(durable=False):
            if not mine.update(**having):
                mine.create(view_id=view_id, **having)
    except IntegrityError:
        return False
    except DatabaseError as error:
        if errors_of(alias()).failure(error) == Failure.FINAL:
            raise
        return False
    return True


def _stand_in_line(view_id: int, queue: str) -> None:
    """Let a view wait for a permit; one that does already keeps its place."""
    mine = RefreshPermit.objects.filter(view=view_id)
    waiting = {"queue": queue, "number": None, "used_at": None, "waiting_since": UtcNow()}
    if mine.filter(queue=queue).exists() or mine.update(**waiting):
        return
    try:
        with short_transaction(durable=False):
            mine.create(view_id=view_id, **waiting)
    except IntegrityError:  # another shard of the view does the same
        return


def _taken(queue: str) -> set[int]:
    """The permits of a queue that are not free; unused ones are taken away."""
    permits: QuerySet[Any] = RefreshPermit.objects.filter(queue=queue, number__isnull=False)
    old = Q(used_at__lte=UtcNow() - timedelta(seconds=get_settings().LEASE))
    found = list(permits.annotate(old=Case(When(old, then=Value(True)), default=Value(False))))
    if unused := {permit.view_id for permit in found if permit.old}:
        shards: QuerySet[Any] = ViewShard.objects.filter(view__in=unused).annotate(now=UtcNow())
        claimed = list(shards.order_by())
        used = running(claimed)
        unused -= {shard.view_id for shard in claimed if shard.pk in used}
        permits.filter(old, view__in=unused).delete()
    return {permit.number for permit in found if permit.view_id not in unused}


def _in_line(queue: str) -> QuerySet[Any]:
    """The views that wait for a permit of a queue and could use it, first come first."""
    able = Q(view__enabled=True, view__paused=False, view__suspended_at=None)
    waiting = RefreshPermit.objects.filter(able, Exists(_OPEN), queue=queue, number=None)
    return waiting.order_by("waiting_since", "view").values_list("view", flat=True)


def _is_next(view_id: int, queue: str, free: int) -> bool:
    """Whether one of the free permits is left for this view after those ahead of it."""
    if free <= 0:
        return False
    line = list(_in_line(queue)[:free])
    return view_id in line or len(line) < free


def release_permit(view_id: int) -> None:
    """Give up the permit of a view, or its place in the line, unless one of its batches runs."""
    if is_limited():
        running_batch = ViewShard.objects.filter(view=OuterRef("view"), claimed_token=F("token"))
        RefreshPermit.objects.filter(~Exists(running_batch.order_by()), view=view_id).delete()


def wake_next_in_line() -> list[int]:
    """Wake the views for which there is a permit now; each is returned once, to one process.

    Returns:
        The primary keys of their controls; the caller sends their messages.
    """
    if not is_limited():
        return []
    queues = RefreshPermit.objects.filter(number=None).order_by().values_list("queue", flat=True)
    return wake_views([view for queue in set(queues) for view in _called(queue)])


def _called(queue: str) -> Iterator[int]:
    limit = _limit_of(queue)
    free = None if limit is None else max(limit - len(_taken(queue)), 0)
    yield from _in_line(queue)[:free]
