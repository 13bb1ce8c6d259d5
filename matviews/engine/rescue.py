"""Rescuing quiet shards, whose messages were lost or whose workers died."""

import logging
from collections.abc import Iterable
from datetime import timedelta

from django.db.models import Exists, OuterRef, Q

from ..conf import get_settings
from ..databases.clock import UtcNow
from ..models import Refresh, ViewShard
from ..redact import traceback_text
from ..states import RefreshState
from .closing import close_finished
from .locking import update_if_current
from .messages import Message
from .transactions import drop_broken_connection

__all__ = ["clear_resends", "rescue", "unclaimed_views"]

logger = logging.getLogger(__name__)


def rescue() -> list[Message]:
    """The messages to re-send: those of shards with work in which no batch seems to be running.

    A locked row means that a batch is running. After each message that no worker has claimed, the
    interval until the next one doubles, up to MAX_RESEND_INTERVAL, so that a day without workers
    does not fill the broker. Also closes finished refreshes that a killed process left open.
    """
    quiet = ViewShard.objects.filter(_QUIET, Exists(_WORK)).order_by()
    messages = [_resend_if_quiet(*shard) for shard in quiet.values_list("pk", "resends")]
    return [message for message in messages if message]


def unclaimed_views(messages: Iterable[Message]) -> list[str]:
    """Labels of the views whose messages were re-sent before and still claimed by no worker."""
    shards = ViewShard.objects.filter(pk__in=[message.shard_id for message in messages])
    labels = shards.filter(resends__gt=1).values_list("view__label", flat=True)
    return sorted(set(labels))


def clear_resends(messages: Iterable[Message]) -> None:
    """Clear the record that these messages were re-sent, because the broker was unreachable."""
    shards = ViewShard.objects.filter(pk__in=[message.shard_id for message in messages])
    shards.update(resend_after=None, resends=0)


def _resend_if_quiet(shard_id: int, resends: int) -> Message | None:
    try:
        message = close_finished(shard_id).message
        if message is None or not _record_resend(message, resends + 1):
            return None
    except Exception as error:  # noqa: BLE001 - an error in one shard must not delay the others
        trace = traceback_text(error, trusted=False)
        # Not `logger.exception`: a traceback may hold values of rows.
        logger.error("rescue failed shard=%s\n%s", shard_id, trace)  # noqa: TRY400
        drop_broken_connection()
        return None
    logger.warning(
        "message re-sent shard=%s token=%s phase=%s", shard_id, message.token, message.phase
    )
    return message


def _record_resend(message: Message, resends: int) -> bool:
    """Record that the message is re-sent; False if the shard is not quiet after all."""
    resend_after = UtcNow() + _resend_interval(resends)
    return update_if_current(
        message.shard_id, message.token, _QUIET, resend_after=resend_after, resends=resends
    )


_QUIET = Q(resend_after=None) | Q(resend_after__lt=UtcNow())
_WORK = Refresh.objects.filter(
    Q(view__enabled=True, view__paused=False) | Q(stop_requested=True),
    view=OuterRef("view"),
    state=RefreshState.OPEN,
)


def _resend_interval(resends: int) -> timedelta:
    settings = get_settings()
    doublings = min(resends, 32)
    return timedelta(seconds=min(settings.LEASE * 2**doublings, settings.MAX_RESEND_INTERVAL))
