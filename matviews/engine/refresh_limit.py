"""How many views are refreshed at the same time in each queue.

A view takes a slot of its queue before each batch, and keeps it until none of its refreshes can go
on. Slots are taken under the lock of one row, so there are never more than the limit. Those who
wait are served in the order in which they came.
"""

import logging
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from ..conf import get_settings
from ..databases.clock import UtcNow
from ..logs import log
from ..models import Refresh, ViewControl, ViewShard
from ..states import RefreshState
from .failures import is_forced, may_begin, wake_views
from .transactions import drop_broken_connection, short_transaction

__all__ = ["is_limited", "limit_fault", "next_in_line"]

logger = logging.getLogger(__name__)

#: How the reason of a wait for a slot ends.
IN_LINE = " refreshed at the same time"
_OPEN = Refresh.objects.filter(view=OuterRef("pk"), state=RefreshState.OPEN).order_by()


def is_limited() -> bool:
    """Whether a limit is set."""
    return bool(get_settings().MAX_REFRESHES)


def limit_fault(control: ViewControl) -> str:
    """Take a slot for the batch that is due; why there is none, "" if there is one or no limit."""
    queue, limits = control.queue_name or "", get_settings().MAX_REFRESHES
    limit = limits.get(queue) if isinstance(limits, dict) else limits
    if limit is None:
        return ""
    try:
        with short_transaction(durable=False):
            if _takes_slot(control, queue, limit):
                return ""
    except (DatabaseError, InterfaceError) as error:  # what cannot be counted blocks nothing
        drop_broken_connection()
        sentence = "the limit of refreshes cannot be applied"
        log(logger, logging.WARNING, sentence, exception=error, view=control.label)
        return ""
    of = f" of the queue {queue}" if queue else ""
    views = "view" if limit == 1 else "views"
    return f"at most {limit} {views}{of} {'is' if limit == 1 else 'are'}{IN_LINE}"


def _takes_slot(control: ViewControl, queue: str, limit: int) -> bool:
    list(ViewControl.objects.select_for_update().order_by("pk").values_list("pk")[:1])
    others = _able().exclude(pk=control.pk)
    free = limit - others.filter(slot=queue).count()
    own = ViewControl.objects.filter(pk=control.pk)
    if not own.filter(slot=queue).exists():
        free -= sum(each.queue_name == control.queue_name for each in _ahead(control))
    taken = free > 0
    own.update(slot=queue if taken else None)
    return taken


def _able() -> QuerySet[Any]:
    """The views whose refreshes can go on, or of which a batch runs."""
    since = UtcNow() - timedelta(seconds=get_settings().LEASE)
    running = ViewShard.objects.filter(
        view=OuterRef("pk"), claimed_token=F("token"), claimed_at__gt=since
    )
    goes_on = Q(may_begin() | is_forced("pk"), enabled=True, paused=False)
    return ViewControl.objects.filter(Exists(_OPEN), goes_on | Exists(running.order_by()))


def _ahead(control: ViewControl) -> QuerySet[ViewControl]:
    """The views that have waited longer for a slot, in any queue."""
    waiting, since = _in_line().exclude(pk=control.pk), control.governed_since
    return waiting.filter(governed_since__lt=since) if since else waiting


def _in_line() -> QuerySet[ViewControl]:
    """The views that wait for a slot, or have just been woken."""
    waiting = Q(wait_reason__endswith=IN_LINE) | Q(wait_reason="")
    return ViewControl.objects.filter(
        waiting, Exists(_OPEN), enabled=True, paused=False, suspended_at=None, slot=None
    ).exclude(governed_since=None)


def next_in_line(closed: Collection[Refresh]) -> list[int]:
    """Wake the views that may take the slots of refreshes that were closed.

    Returns:
        The primary keys of their controls; the caller sends their messages.
    """
    if not (closed and is_limited()):
        return []
    freed = {refresh.view.queue_name for refresh in closed}
    waiting = _in_line().order_by("governed_since", "pk")
    first: dict[str | None, int] = {}
    for control in waiting:
        if control.queue_name in freed:
            first.setdefault(control.queue_name, control.pk)
    return wake_views(list(first.values()))
