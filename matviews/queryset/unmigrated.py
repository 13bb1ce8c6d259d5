"""Whether the tables are as the models say: explains a statement that met a missing one."""

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
    """Whether a statement failed because a table or column is missing."""
    if not isinstance(error, DatabaseError):
        return False
    return errors_of(using).is_missing(error)


def names_own_table(error: Exception) -> bool:
    """Whether a database error's text names a table of matviews itself."""
    models = apps.get_app_config("matviews").get_models()
    return any(model._meta.db_table in str(error) for model in models)


def unmigrated(definition: ViewDefinition, using: str) -> str:
    """What a view, or its source, is missing in the database, and the fix; "" if nothing.

    Call it after the failed statement was rolled back.
    """
    missing = dict(_missing(definition, using))
    if not missing:
        return ""
    return f"The database has no {' and no '.join(missing)}: {_fix(set(missing.values()))}."


def apps_to_migrate(using: str) -> set[str]:
    """The labels of apps with pending migrations; none if that is unknown."""
    try:
        executor = MigrationExecutor(connections[using])
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Exception:  # noqa: BLE001 - it imports the project's code; migrate reports its errors
        return set()
    return {migration.app_label for migration, _backwards in plan}


def _fix(managed: set[bool]) -> str:
    """What to do, by whether Django manages the tables concerned."""
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
            elif columns := _missing_columns(model, cursor, using):
                yield (
                    f"column {', '.join(columns)} in {table} (of {model._meta.label})",
                    model._meta.managed,
                )


def _missing_columns(model: type[Model], cursor: Any, using: str) -> list[str]:
    described = connections[using].introspection.get_table_description(cursor, model._meta.db_table)
    present = {column.name for column in described}
    columns = [str(field.column) for field in model._meta.local_concrete_fields]
    return [column for column in columns if column not in present]
