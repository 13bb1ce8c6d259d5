"""Finding what has gone quiet: messages that were lost, workers that died."""

import logging
from datetime import timedelta

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now

from ..conf import get_settings
from ..models import Refresh, Stripe, ViewControl
from ..states import RefreshState
from .databases import lock_free, short_transaction
from .messages import Message
from .settle import settle

__all__ = ["watch"]

logger = logging.getLogger(__name__)


def watch() -> list[Message]:
    """The messages to send again: of stripes that have work, and that nobody seems to be at.

    A stripe whose row is locked is at work. Each time that a stripe is found quiet again without
    any worker having announced itself, it is left alone twice as long, up to PATIENCE_CEILING: a
    day without workers does not fill the broker. Also closes what a killed process left open.
    """
    with short_transaction():
        quiet = lock_free(_QUIET)
        for stripe in quiet:
            Stripe.objects.filter(pk=stripe.pk).update(
                watch_after=Now() + _patience(stripe.resends + 1), resends=F("resends") + 1
            )
    messages = [message for stripe in quiet if (message := settle(stripe.pk).message)]
    for message in messages:
        logger.warning(
            "message sent again stripe=%s token=%s phase=%s",
            message.stripe_id, message.token, message.phase,
        )  # fmt: skip
    return messages


_QUIET = Q(
    Exists(Refresh.objects.filter(view=OuterRef("view"), state=RefreshState.OPEN)),
    Q(watch_after=None) | Q(watch_after__lt=Now()),
    # Not a join, which would lock the control too.
    view__in=ViewControl.objects.filter(enabled=True),
)


def _patience(resends: int) -> timedelta:
    settings = get_settings()
    doublings = min(resends, 32)
    return timedelta(seconds=min(settings.LEASE * 2**doublings, settings.PATIENCE_CEILING))
