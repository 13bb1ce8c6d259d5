"""What tasks do with the database connection that Celery keeps for them."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from django.db import DatabaseError, InterfaceError, OperationalError

from .. import engine
from ..redact import error_text

__all__ = ["drops_broken_connection", "outage"]

P = ParamSpec("P")


def drops_broken_connection(work: Callable[P, None]) -> Callable[P, None]:
    """Close the connection if an error has made it unusable.

    With CELERY_DB_REUSE_MAX, Celery keeps it as it is for the next thousands of tasks.
    """

    @wraps(work)
    def task(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            work(*args, **kwargs)
        except (DatabaseError, InterfaceError):
            engine.drop_broken_connection()
            raise

    return task


def outage() -> str:
    """Why the database cannot be reached; "" if it can. A broken connection is replaced."""
    for _attempt in range(2):
        try:
            engine.timestamp()
        except (OperationalError, InterfaceError) as error:
            engine.drop_broken_connection()
            reason = error_text(error, trusted=False)
        else:
            return ""
    return reason
