"""The Django app."""

from typing import Any

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.models.signals import post_migrate, pre_migrate

__all__ = ["MatviewsConfig"]


class MatviewsConfig(AppConfig):
    """Registers the checks and receivers; makes rows of new views, and triggers, after `migrate`."""

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
        pre_migrate.connect(_take_down_triggers, sender=self, dispatch_uid="matviews.pre_migrate")
        post_migrate.connect(_after_migrate, sender=self, dispatch_uid="matviews.post_migrate")


def _take_down_triggers(*, using: str, plan: Any = (), apps: Any = None, **_kwargs: Any) -> None:
    """Remove the triggers of tables that may be altered: they name columns, and write to our log.

    A migration may alter any table of its app; those of other apps that it alters with SQL of its own
    are not known.
    """
    from . import changes, engine

    migrated = {migration.app_label for migration, _backwards in plan}
    if using != engine.alias() or not _has_tables(using):
        return
    if "matviews" in migrated:
        changes.remove(using)
    elif apps is not None:
        models = apps.get_models(include_auto_created=True)
        changes.take_down(
            using, {each._meta.db_table for each in models if each._meta.app_label in migrated}
        )


def _after_migrate(*, using: str, plan: Any = (), stdout: Any = None, **_kwargs: Any) -> None:
    from . import changes, engine
    from .tasks import schedules

    if using != engine.alias():
        return
    if not _has_tables(using):  # after `migrate matviews zero`
        schedules.delete_all()
        return
    engine.sync_controls()
    engine.note_migrated({migration.app_label for migration, _backwards in plan})
    schedules.reconcile_if_possible()
    try:
        changes.install(using)
    except DatabaseError as error:
        print(
            f"matviews could not make its triggers: {str(error).strip()}\nUntil they are there, each "
            f"refresh is a full pass. Run `manage.py update_materialized_views --triggers install`, or "
            f"`--triggers sql` for a person who may create them.",
            file=stdout,
        )


def _has_tables(using: str) -> bool:
    from .models import WatchedTable

    return WatchedTable._meta.db_table in connections[using].introspection.table_names()
