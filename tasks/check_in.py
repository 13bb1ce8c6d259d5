"""The dead man's switch: a service elsewhere notices when maintenance no longer checks in."""

import logging
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from ..conf import get_settings
from ..logs import log
from .time_limits import run_limited

__all__ = ["check_in"]

logger = logging.getLogger(__name__)

MAX_SECONDS = 10.0  # in all, whatever redirects and a server that drips bytes do


def check_in() -> None:
    """Get `CHECK_IN_URL`, if it is set. The URL is a secret, and is not logged."""
    url = get_settings().CHECK_IN_URL
    errors = run_limited({"check-in": lambda: _get(url)}, MAX_SECONDS) if url else {}
    for error in errors.values():
        words = type(error).__name__
        if isinstance(error, HTTPError):
            words = f"{words} {error.code}"
            error.close()
        log(logger, logging.WARNING, "check-in failed", error=words)


def _get(url: str) -> None:
    request = Request(url, headers={"User-Agent": "django-matviews"})
    with _opener().open(request, timeout=MAX_SECONDS):
        pass  # what the answer says does not matter


def _opener() -> OpenerDirector:
    """Urllib's, without its handlers for files and FTP, to which a redirect might lead."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler,
        HTTPErrorProcessor, UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
