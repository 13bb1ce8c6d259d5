"""The rights that roles need for batches but do not have, so that an operator can grant them.

PostgreSQL shows every role that may log in and write to our tables; MariaDB and MySQL show only the
rights of the user who asks.
"""

from collections.abc import Iterable

from django.apps import apps
from django.db import DatabaseError, transaction

from ..databases import MissingRight, Needs, catalog_of, errors_of
from ..definition import ViewDefinition
from ..exceptions import InvalidView
from ..models import ViewShard, ViewSums
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
    """Whether the database refused a statement because the role is missing a right."""
    return errors_of(alias()).is_denied(error)


def denied_for(error: BaseException, definitions: Iterable[ViewDefinition] | None = None) -> str:
    """The missing rights of this connection's role, a sentence each; "" for another cause."""
    if not is_denied(error):
        return ""
    try:
        with transaction.atomic(using=alias()):
            in_database = errors_of(alias()).is_denied_in_database(error)
            missing = staging_rights() if in_database else missing_rights(definitions, own=True)
    except DatabaseError:
        return ""
    return " ".join(f"{right} {right.grant}" for right in missing)


def missing_rights(
    definitions: Iterable[ViewDefinition] | None = None, *, own: bool = False
) -> list[MissingRight]:
    """The missing rights on tables.

    Args:
        definitions: the views to check; all by default.
        own: check only the role of this connection.
    """
    needs = _needs(registry if definitions is None else definitions)
    written = ViewShard._meta.db_table
    return catalog_of(alias()).missing_rights(needs, written=written, own=own)


def _needs(definitions: Iterable[ViewDefinition]) -> Needs:
    ours = [*apps.get_app_config("matviews").get_models()]
    ours += [apps.get_model("django_celery_beat", name) for name in BEAT]
    needs: dict[str, tuple[tuple[str, ...], str]] = {}
    for view in definitions:
        for table in tables_read(view, alias()) if view.has_source else ():
            needs.setdefault(table, (("SELECT",), f"which {view.label} reads"))
    for view in definitions:
        if view.derived:
            needs[view.model._meta.db_table] = (WRITE, f"the table of {view.label}")
    for kept in ViewSums.objects.order_by("pk"):
        needs |= dict.fromkeys((*kept.logs, kept.table), (WRITE, "the sums of an additive view"))
    return needs | {model._meta.db_table: (WRITE, "the bookkeeping of matviews") for model in ours}


def staged_views() -> list[str]:
    """Labels of the staged views."""
    return [view.label for view in registry if view.derived and _is_staged(view)]


def _is_staged(definition: ViewDefinition) -> bool:
    try:
        return plan_of(definition, alias()).strategy.staged
    except InvalidView:
        return False


def prepare_staging() -> str:
    """Create the schema of staging tables and grant roles their rights there.

    Returns:
        What remains to be done by hand, "" if nothing does.
    """
    problem = make_schema(alias(), ())
    if problem or not catalog_of(alias()).can_grant_schema():
        return problem
    return make_schema(alias(), [right.role for right in staging_rights()])


def staging_rights() -> list[MissingRight]:
    """The missing rights to create staging tables, and temporary ones on MariaDB and MySQL."""
    catalog, written = catalog_of(alias()), ViewShard._meta.db_table
    return catalog.staging_rights(staging_schema(alias()), staged_views(), written=written)
