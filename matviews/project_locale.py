"""The project's time zone and language, for everything that decides about a view's rows."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.utils import timezone, translation

__all__ = ["project_locale"]


@contextmanager
def project_locale() -> Iterator[None]:
    """Use the project's time zone and language, not those that a request activated.

    Otherwise two processes could compute different rows, or SQL, from one definition. Messages for
    people are created outside.
    """
    with timezone.override(None), translation.override(settings.LANGUAGE_CODE):
        yield
