"""The task that requests verifications in the background, and the messages of their slices."""

import logging
from collections.abc import Iterable

from celery import current_app, shared_task

from .. import engine
from ..engine import VerifyMessage
from ..exceptions import MatviewsError
from ..logs import log
from ..models import Origin
from ..redact import brief
from . import broker_errors, expiry
from .connections import drops_broken_connection
from .sending import RETRY_POLICY, delay_by_jitter

__all__ = ["SLICE_TASK", "request", "rescue", "send", "verify"]

logger = logging.getLogger(__name__)

SLICE_TASK = "matviews.verify_slice"


@shared_task(name="matviews.verify", ignore_result=True, serializer="json")
@drops_broken_connection
def verify(view: str, sample: int | None = None, repair: bool = False, jitter: float = 0) -> None:
    """Request a verification of a view on a schedule.

    Args:
        view: its label.
        sample: about how many keys to compare; all by default.
        repair: whether to write the rows that differ.
        jitter: seconds over which the starts of views are spread.
    """
    if expiry.is_expired(verify.request):
        return
    try:
        if not delay_by_jitter(verify, (view, sample, repair), f"verify {view}", jitter):
            send(_requested(view, sample, repair is True, Origin.SCHEDULE, ""))
    except MatviewsError as error:  # an old message, or the code has changed
        log(logger, logging.WARNING, "verification refused", view=brief(view), error=error)


def request(
    view: str, *, sample: int | None = None, repair: bool = False, requested_by: str = ""
) -> list[VerifyMessage]:
    """Request a verification for a person; the messages to `send` after the commit.

    Raises:
        UnknownView, InvalidView, InvalidRequest, ViewNotReady: as `verify`.
    """
    return _requested(view, sample, repair, Origin.ADMIN, requested_by)


def _requested(
    view: str, sample: int | None, repair: bool, origin: Origin, requested_by: str
) -> list[VerifyMessage]:
    message = engine.request_verification(
        view, sample=sample, repair=repair, origin=origin, requested_by=requested_by
    )
    return [message] if message else []


def rescue() -> None:
    """Re-send the messages of verifications that no worker is running."""
    send(engine.rescue_verifications())


def send(messages: Iterable[VerifyMessage]) -> bool:
    """Send messages; if tasks are eager, verify here and now.

    Returns:
        False if the broker refused one; `rescue` sends it again.
    """
    for message in messages:
        if current_app.conf.task_always_eager:
            _verify_here(message)
        elif not _sent(message):
            return False
    return True


def _verify_here(message: VerifyMessage | None) -> None:
    while message:
        message = engine.verify_slice(message)


def _sent(message: VerifyMessage) -> bool:
    try:
        current_app.tasks[SLICE_TASK].apply_async(
            (message.run_id, message.token), queue=message.queue, retry_policy=RETRY_POLICY
        )
    except Exception as error:  # noqa: BLE001 - every broker raises its own errors
        broker_errors.record(error)
        log(
            logger, logging.WARNING,
            "message not sent; matviews.maintain will send it when the broker is back",
            exception=error, run=message.run_id, token=message.token,
        )  # fmt: skip
        return False
    return True
