"""Which rights the database roles that run batches lack, so that a person is told which to grant.

On PostgreSQL these are the roles that may log in and write to our tables, whoever asks; MariaDB and MySQL tell
a user of its own rights alone.
"""

from collections.abc import Iterable

from django.apps import apps
from django.db import DatabaseError, transaction

from ..databases import MissingRight, Needs, catalog_of, errors_of
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewShard
from ..queryset import plan_of, staging_schema, tables_read
from ..queryset import prepare_staging as make_schema
from ..registry import registry
from .transactions import alias

__all__ = [
    "MissingRight",
    "denied_for",
    "is_denied",
    "missing_rights",
    "prepare_staging",
    "staging_rights",
]

WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")
BEAT = ("PeriodicTask", "PeriodicTasks", "IntervalSchedule", "CrontabSchedule")


def is_denied(error: BaseException) -> bool:
    """Whether the database has refused a statement because the role lacks a right."""
    return errors_of(alias()).is_denied(error)


def denied_for(error: BaseException, definitions: Iterable[ViewDefinition] | None = None) -> str:
    """Which rights this connection's role lacks, a sentence each, if that is why a statement was refused."""
    if not is_denied(error):
        return ""
    try:
        with transaction.atomic(using=alias()):
            in_database = errors_of(alias()).is_denied_in_database(error)
            lacking = staging_rights() if in_database else missing_rights(definitions, own=True)
    except DatabaseError:
        return ""
    return " ".join(f"{each} {each.grant}" for each in lacking)


def missing_rights(
    definitions: Iterable[ViewDefinition] | None = None, *, own: bool = False
) -> list[MissingRight]:
    """The rights on tables that roles lack.

    Args:
        definitions: the views that are asked about; all by default.
        own: of the role of this connection alone.
    """
    needs = _needs(registry if definitions is None else definitions)
    written = ViewShard._meta.db_table
    return catalog_of(alias()).missing_rights(needs, written=written, own=own)


def _needs(definitions: Iterable[ViewDefinition]) -> Needs:
    ours = [*apps.get_app_config("matviews").get_models()]
    ours += [apps.get_model("django_celery_beat", name) for name in BEAT]
    needs: dict[str, tuple[tuple[str, ...], str]] = {}
    for each in definitions:
        for table in tables_read(each, alias()) if each.has_source else ():
            needs.setdefault(table, (("SELECT",), f"which {each.label} reads"))
    for each in definitions:
        if each.derived:
            needs[each.model._meta.db_table] = (WRITE, f"the table of {each.label}")
    return needs | {model._meta.db_table: (WRITE, "the bookkeeping of matviews") for model in ours}


def staged_views() -> list[str]:
    """The labels of the views that are evaluated into staging tables."""
    return [each.label for each in registry if each.derived and _is_staged(each)]


def _is_staged(definition: ViewDefinition) -> bool:
    try:
        return plan_of(definition, alias()).strategy.staged
    except InvalidView:
        return False


def prepare_staging() -> str:
    """Create the schema of staging tables, and let the roles that lack it create tables there; what is left to do."""
    problem = make_schema(alias(), ())
    if problem or not catalog_of(alias()).can_grant_schema():
        return problem
    return make_schema(alias(), [each.role for each in staging_rights()])


def staging_rights() -> list[MissingRight]:
    """The rights that roles lack to create staging tables, and temporary ones on MariaDB and MySQL."""
    catalog, written = catalog_of(alias()), ViewShard._meta.db_table
    return catalog.staging_rights(staging_schema(alias()), staged_views(), written=written)
