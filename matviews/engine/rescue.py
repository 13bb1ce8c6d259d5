"""Finding what has gone quiet: messages that were lost, workers that died."""

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

__all__ = ["forget_resends", "rescue", "untaken"]

logger = logging.getLogger(__name__)


def rescue() -> list[Message]:
    """The messages to send again: of shards that have work, and that nobody seems to be at.

    A shard whose row is locked is at work. Each time that a message was sent again and no worker
    has claimed a batch since, the shard is left alone twice as long, up to MAX_RESEND_INTERVAL: a day
    without workers does not fill the broker. Also closes what a killed process left open.
    """
    quiet = ViewShard.objects.filter(_QUIET, Exists(_WORK)).order_by()
    messages = [_resend_if_quiet(*shard) for shard in quiet.values_list("pk", "resends")]
    return [message for message in messages if message]


def untaken(messages: Iterable[Message]) -> list[str]:
    """The views of which no worker has taken a message that was sent again before, of some sent once more."""
    shards = ViewShard.objects.filter(pk__in=[message.shard_id for message in messages])
    labels = shards.filter(resends__gt=1).values_list("view__label", flat=True)
    return sorted(set(labels))


def forget_resends(messages: Iterable[Message]) -> None:
    """Take back that these messages were sent again: the broker did not take them."""
    shards = ViewShard.objects.filter(pk__in=[message.shard_id for message in messages])
    shards.update(resend_after=None, resends=0)


def _resend_if_quiet(shard_id: int, resends: int) -> Message | None:
    try:
        message = close_finished(shard_id).message
        if message is None or not _takes(message, resends + 1):
            return None
    except Exception as error:  # noqa: BLE001 - one shard's trouble must not keep the others waiting
        trace = traceback_text(error, trusted=False)
        logger.error("rescue failed shard=%s\n%s", shard_id, trace)  # noqa: TRY400 - it may hold values of rows
        drop_broken_connection()
        return None
    logger.warning(
        "message sent again shard=%s token=%s phase=%s", shard_id, message.token, message.phase
    )
    return message


def _takes(message: Message, resends: int) -> bool:
    """Note the message as sent, unless somebody is at work in the shard after all."""
    patience = UtcNow() + _patience(resends)
    return update_if_current(
        message.shard_id, message.token, _QUIET, resend_after=patience, resends=resends
    )


_QUIET = Q(resend_after=None) | Q(resend_after__lt=UtcNow())
_WORK = Refresh.objects.filter(
    Q(view__enabled=True, view__paused=False) | Q(stop_requested=True),
    view=OuterRef("view"),
    state=RefreshState.OPEN,
)


def _patience(resends: int) -> timedelta:
    settings = get_settings()
    doublings = min(resends, 32)
    return timedelta(seconds=min(settings.LEASE * 2**doublings, settings.MAX_RESEND_INTERVAL))
