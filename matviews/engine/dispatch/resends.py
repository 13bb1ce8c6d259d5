"""How long messages that no worker takes wait until they are sent again."""

from datetime import datetime, timedelta

from ...conf import get_settings
from ...models import ViewShard

__all__ = ["first_sent", "resend_interval"]

MAX_DOUBLINGS = 32


def resend_interval(resends: int) -> timedelta:
    """The time until a message that has been re-sent so often is sent again."""
    settings, doublings = get_settings(), min(resends, MAX_DOUBLINGS)
    return timedelta(seconds=min(settings.LEASE * 2**doublings, settings.MAX_RESEND_INTERVAL))


def first_sent(shard: ViewShard) -> datetime | None:
    """About when the message that a shard waits for was first sent; None if it is not recorded.

    The sending that follows a batch, a resumption or a wait is recorded; that of a request is not.
    """
    if shard.resend_after is None:
        return None
    waited = (resend_interval(resends) for resends in range(shard.resends + 1))
    return shard.resend_after - sum(waited, timedelta())
