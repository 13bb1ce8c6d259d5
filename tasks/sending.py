"""How messages are sent, and sent later."""

import logging
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from celery import current_app

from .. import engine
from ..logs import log
from ..models import MAX_JITTER
from ..redact import brief
from . import broker_errors, expiry

__all__ = ["RETRY_POLICY", "delay_by_jitter", "is_number"]

logger = logging.getLogger(__name__)


def _not_after_a_timeout(error: Exception, _wait: float) -> None:
    """Prevent the second attempt if the broker hangs: a person may be waiting."""
    if type(error).__name__ == "TimeoutError":  # Python's or redis-py's
        raise error


# One immediate second attempt, because a pooled connection may be stale.
RETRY_POLICY = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
    "errback": _not_after_a_timeout,
}


def is_number(value: Any) -> bool:
    """Whether a value from a message may be a primary key or a token."""
    return type(value) is int and 0 < value < 2**63


def delay_by_jitter(task: Any, arguments: tuple[Any, ...], seed: str, jitter: Any) -> bool:
    """Send a task of a schedule again, with an `eta` by the database's clock; whether it was.

    A worker keeps such a message in memory, unacknowledged. If it dies, the broker may deliver the
    message again, late or never. That is harmless: requests merge, and the next tick requests
    again.
    """
    given = isinstance(jitter, (int, float)) and not isinstance(jitter, bool)
    if not (given and 0 <= jitter <= MAX_JITTER):
        log(logger, logging.ERROR, "jitter is invalid", view=arguments[0], jitter=brief(jitter))
        return False
    if jitter == 0 or current_app.conf.task_always_eager:
        return False
    fraction = crc32(seed.encode()) / 2**32
    try:
        task.apply_async(
            arguments,
            eta=datetime.fromtimestamp(engine.timestamp() + fraction * jitter, UTC),
            queue=expiry.queue_for(task.request, arguments[0]),
            retry_policy=RETRY_POLICY,
        )
    except Exception as error:  # noqa: BLE001 - every broker raises its own errors
        broker_errors.record(error)
        log(logger, logging.WARNING, "jitter not applied", exception=error, view=arguments[0])
        return False
    return True
