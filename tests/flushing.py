"""Emptying the database after a test that committed.

Django's flush truncates every table and then makes content types and permissions again: a third of
a second for the tables of these tests, where a test fills a few of them.
"""

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.test import TransactionTestCase

from matviews import engine
from matviews.tasks import schedules

# Django itself makes their rows, of the models alone; no test changes them.
KEPT = frozenset({ContentType._meta.db_table, Permission._meta.db_table, "django_migrations"})


def flush(alias: str) -> None:
    """Delete the rows of every table, and have the package make its own as migrate does.

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
    engine.sync_controls()
    schedules.reconcile_if_possible()


def flush_filled_tables(test_case: TransactionTestCase) -> None:
    """In place of TransactionTestCase's own ``_fixture_teardown``."""
    for alias in test_case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        flush(alias)
