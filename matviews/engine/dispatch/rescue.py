"""Rescuing quiet shards, whose messages were lost or whose workers died."""

import logging
from collections.abc import Collection, Iterable
from datetime import timedelta

from django.db.models import Exists, OuterRef, Q

from ...conf import get_settings
from ...databases.clock import UtcNow
from ...logs import log
from ...models import Refresh, RefreshSchedule, ViewShard
from ...redact import error_text, loggable
from ...states import RefreshState
from ..failures.backoff import may_begin
from ..locking import update_if_current
from ..messages import Message
from ..transactions import drop_broken_connection, now
from .closing import close_finished
from .resends import resend_interval

__all__ = ["abandoned_views", "clear_resends", "rescue", "unclaimed_views"]

logger = logging.getLogger(__name__)


def rescue() -> list[Message]:
    """The messages to re-send: those of shards with work in which no batch seems to be running.

    A locked row means that a batch is running. After each message that no worker has claimed, the
    interval until the next one doubles, up to MAX_RESEND_INTERVAL, so that a day without workers
    does not fill the broker. Also closes finished refreshes that a killed process left open.
    """
    quiet = ViewShard.objects.filter(_QUIET, Exists(_WORK), turn_deadline=None).order_by()
    messages = [_resend_if_quiet(*shard) for shard in quiet.values_list("pk", "resends")]
    return [message for message in messages if message]


def abandoned_views(labels: Collection[str] | None = None) -> list[int]:
    """The views on change whose work no worker has taken for a lease: lost, or left by a dead one.

    One statement, which changes nothing: whoever runs their batches claims them as always.

    Args:
        labels: the views to look at; all by default.

    Returns:
        The primary keys of their controls.
    """
    long_ago = now() - timedelta(seconds=get_settings().LEASE)
    followed = RefreshSchedule.objects.filter(on_change=True, enabled=True, view=OuterRef("view"))
    old_work = Exists(_WORK.filter(requested_at__lt=long_ago))
    shards = ViewShard.objects.filter(
        _QUIET, Exists(followed.order_by()), old_work, turn_deadline=None
    )
    if labels is not None:
        shards = shards.filter(view__label__in=labels)
    return sorted(set(shards.order_by().values_list("view", flat=True)))


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
        log(
            logger, logging.ERROR, "rescue failed", exception=loggable(error, trusted=False),
            shard=shard_id, error=error_text(error, trusted=False),
        )  # fmt: skip
        drop_broken_connection()
        return None
    log(
        logger, logging.WARNING, "message re-sent", shard=shard_id, token=message.token,
        phase=message.phase, queue=message.queue,
    )  # fmt: skip
    return message


def _record_resend(message: Message, resends: int) -> bool:
    """Record that the message is re-sent; False if the shard is not quiet after all."""
    resend_after = UtcNow() + resend_interval(resends)
    return update_if_current(
        message.shard_id, message.token, _QUIET, resend_after=resend_after, resends=resends
    )


_QUIET = Q(resend_after=None) | Q(resend_after__lt=UtcNow())
_WORK = Refresh.objects.filter(
    (Q(view__enabled=True, view__paused=False) & (may_begin("view__") | Q(forced=True)))
    | Q(stop_requested=True),
    view=OuterRef("view"),
    state=RefreshState.OPEN,
)
