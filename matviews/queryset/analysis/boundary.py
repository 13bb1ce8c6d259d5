"""A boundary around the analysis of a project's queryset: what it raises concerns its view only."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, NotSupportedError

from ...exceptions import InvalidView, MatviewsError
from ...redact import error_text

__all__ = ["NotUnderstood", "looking"]


class NotUnderstood(InvalidView):
    """A queryset cannot be analysed; the message is that of the error."""


@contextmanager
def looking() -> Iterator[None]:
    """Turn any error within into `NotUnderstood`.

    Expressions, joins and queries may be of any class, without the attributes that Django's have. A
    missing database, however, says nothing about the queryset.
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
