"""Where looking into somebody's queryset ends: whatever that raises concerns its view alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, NotSupportedError

from ...exceptions import InvalidView, MatviewsError
from ...redact import error_text

__all__ = ["NotUnderstood", "looking"]


class NotUnderstood(InvalidView):
    """A queryset has something in it that cannot be looked into; the message is what that raised."""


@contextmanager
def looking() -> Iterator[None]:
    """Turn what is raised within into `NotUnderstood`.

    Expressions, joins and queries may be anybody's classes, without the attributes that Django's have. A
    database that is not there, on the other hand, says nothing of the queryset.
    """
    try:
        yield
    except (MatviewsError, MemoryError):
        raise
    except DatabaseError as error:
        if not isinstance(error, NotSupportedError):
            raise
        raise NotUnderstood(error_text(error)) from error
    except Exception as error:
        raise NotUnderstood(error_text(error)) from error
