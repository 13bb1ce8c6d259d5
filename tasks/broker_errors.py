"""Errors of the broker, or of connecting to it, in a form that a person may see."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from .. import engine
from ..models import Heartbeat
from . import heartbeat

__all__ = ["clear", "collected", "in_words", "last_error", "record"]

MAX_LENGTH = 300  # characters
SECONDS_BETWEEN_RECORDS = 60.0  # of the errors of one process
# A process that failed may have ended, so that what it recorded is never cleared.
MAX_AGE = timedelta(minutes=3)

_errors: ContextVar[list[str] | None] = ContextVar("errors", default=None)
#: When this process last recorded an error that no success has cleared; None if there is none.
_recorded_at: float | None = None


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the errors of messages that cannot be sent in this context: sending never raises."""
    errors: list[str] = []
    token = _errors.set(errors)
    try:
        yield errors
    finally:
        _errors.reset(token)


def record(error: Exception) -> None:
    """Add an error to the list of the current `collected()`, and now and then to the heartbeat."""
    global _recorded_at
    errors, words = _errors.get(), in_words(error)
    if errors is not None:
        errors.append(words)
    now = time.monotonic()
    due = _recorded_at is None or now - _recorded_at >= SECONDS_BETWEEN_RECORDS
    if due and heartbeat.try_record(send_failed_at=engine.now(), send_error=words):
        _recorded_at = now


def clear() -> None:
    """Clear the recorded error after a success, if this process recorded one."""
    global _recorded_at
    if _recorded_at is not None and heartbeat.try_record(send_failed_at=None, send_error=""):
        _recorded_at = None


def last_error() -> str:
    """The error with which the broker last refused a message; "" if it did not recently."""
    refused = Heartbeat.objects.filter(send_failed_at__gt=engine.now() - MAX_AGE).first()
    return refused.send_error if refused else ""


def in_words(error: Exception) -> str:
    """An error in one line, without the password of a URL in it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = re.sub(r"//\S*@", "//***@", text.strip().partition("\n")[0])[:MAX_LENGTH]
    return line.rstrip(".") or type(error).__name__
