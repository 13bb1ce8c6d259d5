"""Emptying the database after a test that committed.

Django's flush truncates every table and then makes content types and permissions again: a third of
a second for the tables of these tests, where a test fills a few of them. The package's own rows, of
the project's views, are not made again but written back as `migrate` had made them.
"""

from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, models, transaction
from django.db.models.sql import InsertQuery
from django.test import TransactionTestCase

from matviews import engine
from matviews.engine import batch
from matviews.models import RefreshSchedule, ViewControl, ViewShard
from matviews.tasks import schedules

# Django itself makes their rows, of the models alone; no test changes them.
KEPT = frozenset({ContentType._meta.db_table, Permission._meta.db_table, "django_migrations"})
WRITTEN_BACK: tuple[type[models.Model], ...] = (ViewControl, ViewShard, RefreshSchedule)

_inserts: dict[str, list[tuple[str, Any]]] = {}


def remember(alias: str) -> None:
    """Keep the package's rows as they are now, for every flush from now on."""
    _inserts[alias] = list(_insert_statements(alias))


def _insert_statements(alias: str) -> Iterator[tuple[str, Any]]:
    for model in WRITTEN_BACK:
        if rows := list(model._base_manager.using(alias).order_by("pk")):
            query = InsertQuery(model)
            query.insert_values(model._meta.concrete_fields, rows, raw=True)
            yield from query.get_compiler(using=alias).as_sql()


def flush(alias: str) -> None:
    """Delete the rows of every table, and write back those of the package that `remember` has kept.

    But for triggers: a test that wants them has the fixture `tracked`.
    """
    connection = connections[alias]
    tables = sorted(set(connection.introspection.django_table_names(only_existing=True)) - KEPT)
    quoted = [connection.ops.quote_name(table) for table in tables]
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"EXISTS (SELECT 1 FROM {q})" for q in quoted))
        filled = [q for q, is_filled in zip(quoted, cursor.fetchone(), strict=True) if is_filled]
        with connection.constraint_checks_disabled(), transaction.atomic(using=alias):
            for q in filled:
                cursor.execute(f"DELETE FROM {q}")
            for statement, parameters in _inserts[alias]:
                cursor.execute(statement, parameters)
    batch._SHARDS_WITH_CHANGES.clear()  # the numbers of shards may come again, as after loaddata
    engine.sync_controls()  # rows of views that a test has left behind
    schedules.reconcile_if_possible()


def flush_filled_tables(test_case: TransactionTestCase) -> None:
    """In place of TransactionTestCase's own ``_fixture_teardown``."""
    for alias in test_case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        flush(alias)
