"""When a message from beat is too old to act on.

Celery's own `expires` compares the clock of beat with that of the worker; a worker whose clock is
ahead would revoke every message. So the messages carry how long they are valid, and the database's
time of sending.
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
    """The headers of a periodic task whose messages are valid for so many seconds."""
    return json.dumps({GOOD_FOR: seconds})


def connect() -> None:
    """Add the database's time to messages that this process sends."""
    signals.before_task_publish.connect(_note_time, dispatch_uid="matviews.expiry")


def _note_time(*, headers: Any = None, **_kwargs: Any) -> None:
    if not isinstance(headers, dict) or GOOD_FOR not in headers or SENT_AT in headers:
        return
    try:
        headers[SENT_AT] = engine.timestamp()
    except Exception:  # then the message never expires
        logger.warning("the database's clock cannot be read", exc_info=True)


def is_expired(request: Any) -> bool:
    """Whether a message is too old by the database's clock; never without the headers."""
    good_for, sent_at = request.get(GOOD_FOR), request.get(SENT_AT)
    known = all(type(each) in (int, float) for each in (good_for, sent_at))
    if not known or engine.timestamp() <= sent_at + good_for:
        return False
    logger.info(
        "message expired task=%s sent_at=%s good_for=%s", request.get("task"), sent_at, good_for
    )
    return True
