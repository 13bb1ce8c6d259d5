"""Errors of the broker, or of connecting to it, in a form that a person may see."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["heard", "in_words", "note"]

MAX_LENGTH = 300  # characters

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the errors of messages that cannot be sent in this context: sending never raises."""
    errors: list[str] = []
    token = _heard.set(errors)
    try:
        yield errors
    finally:
        _heard.reset(token)


def note(error: Exception) -> None:
    """Add an error to the list of the current `heard()`, if there is one."""
    errors = _heard.get()
    if errors is not None:
        errors.append(in_words(error))


def in_words(error: Exception) -> str:
    """An error in one line, without the password of a URL in it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = re.sub(r"//\S*@", "//***@", text.strip().partition("\n")[0])[:MAX_LENGTH]
    return line.rstrip(".") or type(error).__name__
