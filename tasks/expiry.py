"""When a message of beat is too old to be followed.

Celery's own `expires` compares the clock of beat with that of the worker: one that is ahead would revoke
each message. So beat's messages say how long they are good for, and when they were sent by the database's clock.
"""

import json
import logging
from typing import Any

from celery import signals

from .. import engine

__all__ = ["connect", "headers_for", "is_expired"]

logger = logging.getLogger(__name__)

GOOD_FOR, SENT_AT = "matviews_good_for", "matviews_sent_at"  # seconds, and seconds since 1970


def headers_for(seconds: int) -> str:
    """The headers of a periodic task whose messages are good for so long."""
    return json.dumps({GOOD_FOR: seconds})


def connect() -> None:
    """Have the messages that this process sends say when."""
    signals.before_task_publish.connect(_note_time, dispatch_uid="matviews.expiry")


def _note_time(*, headers: Any = None, **_kwargs: Any) -> None:
    if not isinstance(headers, dict) or GOOD_FOR not in headers or SENT_AT in headers:
        return
    try:
        headers[SENT_AT] = engine.timestamp()
    except Exception:  # the message is good for ever then
        logger.warning("the database's clock cannot be read", exc_info=True)


def is_expired(request: Any) -> bool:
    """Whether the message of a task is too old, by the database's clock. One that does not say is not."""
    good_for, sent_at = request.get(GOOD_FOR), request.get(SENT_AT)
    known = all(type(each) in (int, float) for each in (good_for, sent_at))
    if not known or engine.timestamp() <= sent_at + good_for:
        return False
    logger.info(
        "message expired task=%s sent_at=%s good_for=%s", request.get("task"), sent_at, good_for
    )
    return True
