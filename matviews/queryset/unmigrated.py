"""Whether the tables are as the models say: what a statement that met a missing one should have said."""

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model

from ..databases import errors_of
from ..databases.fields import model_of_table
from ..definition import ViewDefinition
from .plan import tables_read

__all__ = ["apps_to_migrate", "is_missing", "names_own_table", "unmigrated"]


def is_missing(error: Exception, using: str) -> bool:
    """Whether a statement failed for a table or column that is not there."""
    if not isinstance(error, DatabaseError):
        return False
    return errors_of(using).is_missing(error)


def names_own_table(error: Exception) -> bool:
    """Whether the text of a database's error names a table of matviews itself."""
    models = apps.get_app_config("matviews").get_models()
    return any(model._meta.db_table in str(error) for model in models)


def unmigrated(definition: ViewDefinition, using: str) -> str:
    """What a view, or what it reads, lacks in the database, and the way out; "" if nothing.

    To be called after the rollback of the statement that failed.
    """
    missing = dict(_missing(definition, using))
    if not missing:
        return ""
    return f"The database has no {' and no '.join(missing)}: {_way_out(set(missing.values()))}."


def apps_to_migrate(using: str) -> set[str]:
    """The labels of the apps of which migrations have yet to run; none where that cannot be told."""
    try:
        executor = MigrationExecutor(connections[using])
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Exception:  # noqa: BLE001 - it imports what the project has written, and migrate tells of it
        return set()
    return {migration.app_label for migration, _backwards in plan}


def _way_out(managed: set[bool]) -> str:
    """By whether Django manages the tables that are concerned."""
    ways = ["run `manage.py makemigrations` and `manage.py migrate`"] if True in managed else []
    if False in managed:
        ways.append("migrate leaves models with managed = False alone, so create theirs with SQL")
    return "; ".join(ways)


def _missing(definition: ViewDefinition, using: str) -> Iterator[tuple[str, bool]]:
    """What is missing, and whether Django manages the table."""
    read = map(model_of_table, sorted(tables_read(definition, using)))
    models = dict.fromkeys([definition.model, *(model for model in read if model)])
    with connections[using].cursor() as cursor:
        names = connections[using].introspection.table_names(cursor, include_views=True)
        for model in models:
            table = model._meta.db_table
            if '"' in table or "." in table:  # of another schema
                continue
            if table not in names:
                yield f"table {table} (of {model._meta.label})", model._meta.managed
            elif lacking := _missing_columns(model, cursor, using):
                columns = f"column {', '.join(lacking)} in {table} (of {model._meta.label})"
                yield columns, model._meta.managed


def _missing_columns(model: type[Model], cursor: Any, using: str) -> list[str]:
    described = connections[using].introspection.get_table_description(cursor, model._meta.db_table)
    present = {column.name for column in described}
    columns = [str(field.column) for field in model._meta.local_concrete_fields]
    return [column for column in columns if column not in present]
