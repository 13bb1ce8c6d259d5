"""The Django app."""

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate

__all__ = ["MatviewsConfig"]


class MatviewsConfig(AppConfig):
    """Registers the checks, and makes the rows of new views after `migrate`."""

    name = "matviews"
    verbose_name = "Materialized views"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect what needs the models."""
        from . import checks  # noqa: F401 - registers the system checks
        from .tasks import checks as celery_checks  # noqa: F401

        post_migrate.connect(_sync_controls, sender=self, dispatch_uid="matviews.controls")


def _sync_controls(*, using: str, **_kwargs: Any) -> None:
    from . import engine
    from .models import ViewControl

    tables = connections[using].introspection.table_names()
    if using == engine.alias() and ViewControl._meta.db_table in tables:
        engine.sync_controls()
