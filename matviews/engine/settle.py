"""What follows a commit: close the refreshes that are done, and tell which batch is due."""

from typing import NamedTuple

from django.db.models import F

from ..models import Stripe
from .closing import close_ended, tell
from .databases import claim, short_transaction
from .messages import Closed, Message
from .work import Work, load_work, load_works

__all__ = ["Settlement", "settle", "settle_view"]


class Settlement(NamedTuple):
    """What `settle` found: the batch that is due, if any, and the refreshes that it closed."""

    message: Message | None = None
    closed: tuple[Closed, ...] = ()


def settle(stripe_id: int) -> Settlement:
    """Close what is done in a stripe and tell which batch is due.

    To be called after a commit, by whoever asked for a refresh or worked on one: between the two,
    one sees what the other has committed. Calling it again does no harm; where it is not called,
    `watch` does it a lease later.
    """
    work = load_work(stripe_id)
    return _settle(work) if work else Settlement()


def settle_view(view_id: int) -> list[Settlement]:
    """`settle` for each stripe of a view, having read them all in one query."""
    return [_settle(work) for work in load_works(view_id)]


def _settle(work: Work) -> Settlement:
    if work.to_stop and _stop(work.stripe):
        return settle(work.stripe.pk)
    closed: tuple[Closed, ...] = ()
    if work.ended_refreshes():
        with short_transaction():
            closed = close_ended(work)
        tell(closed)
    work.admit()
    return Settlement(work.next_message(), closed)


def _stop(stripe: Stripe) -> bool:
    """End what is to be stopped; False if somebody is at work, who settles afterwards."""
    with short_transaction():
        free = claim(stripe.pk, stripe.token, token=F("token") + 1)
        if free and (work := load_work(stripe.pk)):
            work.admit()
            work.stop()
            work.save()
    return free
