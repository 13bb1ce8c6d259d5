"""The Django app."""

from typing import Any

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models.signals import post_migrate

__all__ = ["MatviewsConfig"]


class MatviewsConfig(AppConfig):
    """Registers the checks and receivers, and makes the rows of new views after `migrate`."""

    name = "matviews"
    verbose_name = "Materialized views"
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, before anything that needs the tables of django-celery-beat.

        Raises:
            ImproperlyConfigured: it is not installed; the schedules need it.
        """
        if not apps.is_installed("django_celery_beat"):
            raise ImproperlyConfigured(
                "matviews needs django-celery-beat: add 'django_celery_beat' to INSTALLED_APPS."
            )
        super().import_models()

    def ready(self) -> None:
        """Connect what needs the models."""
        from . import checks  # noqa: F401 - registers the system checks
        from .tasks import checks as celery_checks  # noqa: F401
        from .tasks import receivers

        receivers.connect()
        post_migrate.connect(_sync_controls, sender=self, dispatch_uid="matviews.controls")


def _sync_controls(*, using: str, **_kwargs: Any) -> None:
    from . import engine
    from .models import ViewControl
    from .tasks import schedules

    if using != engine.alias():
        return
    if ViewControl._meta.db_table in connections[using].introspection.table_names():
        engine.sync_controls()
        schedules.reconcile_if_possible()
    else:  # after `migrate matviews zero`
        schedules.delete_all()
