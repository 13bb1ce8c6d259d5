"""A fixture for pytest-django.

Put `pytest_plugins = ["matviews.pytest_plugin"]` into the topmost `conftest.py`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .models import Refresh

__all__ = ["refresh_views"]


@pytest.fixture
def refresh_views(db: None) -> "Callable[..., list[Refresh]]":  # noqa: ARG001 - pytest-django's
    """`matviews.testing.refresh_views`, in a test that may use the database."""
    from . import testing

    return testing.refresh_views
