"""The Django app."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError
from django.db import DatabaseError, connections
from django.db.migrations.operations import CreateModel, DeleteModel, RenameModel
from django.db.models.signals import post_migrate, pre_migrate

from .exceptions import NotPermitted, TablesLocked

__all__ = ["MatviewsConfig"]


class MatviewsConfig(AppConfig):
    """Registers checks and receivers; after `migrate`, creates triggers and new views' controls."""

    name = "matviews"
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
        from . import checks, engine  # noqa: F401 - registers the system checks
        from .tasks import checks as celery_checks  # noqa: F401
        from .tasks import expiry, heartbeat, hints, receivers

        receivers.connect()
        expiry.connect()
        heartbeat.connect()
        hints.connect()
        engine.connect_spans()
        pre_migrate.connect(_drop_triggers, sender=self, dispatch_uid="matviews.pre_migrate")
        post_migrate.connect(_after_migrate, sender=self, dispatch_uid="matviews.post_migrate")


def _drop_triggers(*, using: str, plan: Any = (), apps: Any = None, **_kwargs: Any) -> None:
    """Drop the triggers of tables that `migrate` may alter: they name columns and write to our log.

    These are the tables of the migrated apps; raw SQL that alters another app's is not covered.

    Raises:
        CommandError: a transaction that wrote to one of them is still open. Nothing was altered.
    """
    from . import changes, engine

    migrated = {migration.app_label for migration, _backwards in plan}
    if using != engine.alias() or not _has_tables(using):
        return
    tables = None
    if "matviews" not in migrated:
        models = apps.get_models(include_auto_created=True) if apps else ()
        tables = {each._meta.db_table for each in models if each._meta.app_label in migrated}
    try:
        changes.drop_before_migrate(using, tables)
    except TablesLocked as error:
        raise CommandError(str(error)) from error


def _after_migrate(*, using: str, plan: Any = (), stdout: Any = None, **_kwargs: Any) -> None:
    from . import changes, engine
    from .tasks import schedules

    if using != engine.alias():
        return
    if not _has_tables(using):  # after `migrate matviews zero`
        schedules.delete_all()
        return
    engine.rename_controls(_renames(plan))
    engine.sync_controls()
    migrated = {migration.app_label for migration, _backwards in plan}
    engine.mark_migrated_views_dirty(migrated)
    engine.clear_as_of(_created(plan))
    engine.resume_migrated(migrated)
    schedules.reconcile_if_possible()
    if problem := engine.prepare_staging():
        print(problem, file=stdout)
    try:
        engine.choose_additive()
        faults = changes.install(using)
        left = sorted(table for table, fault in faults.items() if fault == changes.LOCKED)
        if left:
            print(
                f"The triggers of {', '.join(left)} were not created: another transaction has "
                f"written to the table and is still open. matviews.maintain creates them within a "
                f"minute if its role may; otherwise run "
                f"`manage.py update_materialized_views --triggers install`. Until then, every "
                f"refresh of the views that read the table is full.",
                file=stdout,
            )
    except (DatabaseError, NotPermitted) as error:
        print(
            f"matviews could not create its triggers: {str(error).strip()}\nUntil they exist, "
            f"every refresh is full. Run `manage.py update_materialized_views --triggers install`, "
            f"or `--triggers sql` for somebody who may create them.",
            file=stdout,
        )


def _renames(plan: Any) -> Iterator[tuple[str, str]]:
    """Old and new labels of the models that a migration plan renamed, in its order."""
    for migration, backwards in plan:
        operations = _operations(migration.operations)
        for each in reversed(list(operations)) if backwards else operations:
            if isinstance(each, RenameModel):
                names = (
                    (each.new_name, each.old_name) if backwards else (each.old_name, each.new_name)
                )
                yield f"{migration.app_label}.{names[0]}", f"{migration.app_label}.{names[1]}"


def _created(plan: Any) -> set[str]:
    """The labels of the models whose tables a migration plan created, and so left empty."""
    return {
        f"{migration.app_label}.{each.name}"
        for migration, backwards in plan
        for each in _operations(migration.operations)
        if isinstance(each, DeleteModel if backwards else CreateModel)
    }


def _operations(operations: Iterable[Any]) -> Iterator[Any]:
    """Operations, and those within them that change only Django's state."""
    for each in operations:
        yield each
        yield from _operations(getattr(each, "state_operations", None) or ())


def _has_tables(using: str) -> bool:
    table = apps.get_model("matviews", "TrackedTable")._meta.db_table
    return table in connections[using].introspection.table_names()
