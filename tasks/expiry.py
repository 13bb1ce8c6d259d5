"""What the headers of a message from beat say: when it is too old to act on, and its queue.

Celery's own `expires` compares the clock of beat with that of the worker; a worker whose clock is
ahead would revoke every message. So the messages carry how long they are valid, and the database's
time of sending.
"""

import json
import logging
from typing import Any

from celery import signals

from .. import engine
from ..logs import log
from ..models import ViewControl

__all__ = ["came_from_beat", "connect", "headers_for", "is_expired", "is_from_beat", "queue_for"]

logger = logging.getLogger(__name__)

GOOD_FOR, SENT_AT = "matviews_good_for", "matviews_sent_at"  # seconds, and seconds since 1970
QUEUE = "matviews_queue"


def headers_for(seconds: int, queue: str | None = None) -> str:
    """The headers of a periodic task whose messages expire.

    Args:
        seconds: how long a message is valid.
        queue: that of its view, for what it sends in its turn; None leaves it to `task_routes`.
    """
    return json.dumps({GOOD_FOR: seconds} | ({QUEUE: queue} if queue else {}))


def queue_for(request: Any, label: str) -> str | None:
    """The queue of a view for a message that follows this one; it is not read from the database."""
    queue = request.get(QUEUE)
    return queue if isinstance(queue, str) else ViewControl(label=label).queue_name


def connect() -> None:
    """Add the database's time to messages that this process sends."""
    signals.before_task_publish.connect(_note_time, dispatch_uid="matviews.expiry")


def is_from_beat(headers: Any) -> bool:
    """Whether beat sends a message for one of our periodic tasks, by its headers."""
    return isinstance(headers, dict) and GOOD_FOR in headers


def came_from_beat(request: Any) -> bool:
    """Whether beat has sent the message of a task that runs, by its request."""
    return request.get(GOOD_FOR) is not None


def _note_time(*, headers: Any = None, **_kwargs: Any) -> None:
    if not is_from_beat(headers) or SENT_AT in headers:
        return
    try:
        headers[SENT_AT] = engine.timestamp()
    except Exception as error:  # noqa: BLE001 - then the message never expires
        log(logger, logging.WARNING, "the database's clock cannot be read", exception=error)


def is_expired(request: Any) -> bool:
    """Whether a message is too old by the database's clock; never without the headers."""
    good_for, sent_at = request.get(GOOD_FOR), request.get(SENT_AT)
    known = all(type(each) in (int, float) for each in (good_for, sent_at))
    if not known or engine.timestamp() <= sent_at + good_for:
        return False
    log(
        logger, logging.INFO, "message expired", task=request.get("task"), sent_at=sent_at,
        good_for=good_for,
    )  # fmt: skip
    return True
