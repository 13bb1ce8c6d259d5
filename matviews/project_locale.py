"""The project's time zone and language, for whatever decides about the rows of a view."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.utils import timezone, translation

__all__ = ["project_locale"]


@contextmanager
def project_locale() -> Iterator[None]:
    """Work in the project's time zone and language, not in those that a request has activated.

    Else two processes could compute different rows, or SQL, from one definition. Messages for a person
    are made outside.
    """
    with timezone.override(None), translation.override(settings.LANGUAGE_CODE):
        yield
