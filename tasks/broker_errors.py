"""What a broker, or what looks for one, has said, for a person."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["heard", "in_words", "note"]

MAX_LENGTH = 300  # characters

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@contextmanager
def heard() -> Iterator[list[str]]:
    """The errors of whatever is sent within, in words: to send is no error where it fails."""
    errors: list[str] = []
    token = _heard.set(errors)
    try:
        yield errors
    finally:
        _heard.reset(token)


def note(error: Exception) -> None:
    """Keep an error for whoever is listening."""
    errors = _heard.get()
    if errors is not None:
        errors.append(in_words(error))


def in_words(error: Exception) -> str:
    """An error in a line, without the password that a URL in it may have."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = re.sub(r"//\S*@", "//***@", text.strip().partition("\n")[0])[:MAX_LENGTH]
    return line.rstrip(".") or type(error).__name__
