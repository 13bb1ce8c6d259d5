"""Emptying the database after a test that committed.

Django's flush truncates every table and then makes content types and permissions again: a third of
a second for the tables of these tests, where a test fills a few of them. The rows of the project's
views and of their schedules are not made again but written back as `migrate` had made them.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, models, transaction
from django.db.models.sql import InsertQuery
from django.test import TransactionTestCase
from django.utils.timezone import now
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

from matviews import engine
from matviews.engine.batches import batch
from matviews.models import Change, RefreshSchedule, ViewControl, ViewShard
from matviews.registry import registry
from matviews.tasks import schedules

# Django itself makes their rows, of the models alone; no test changes them.
KEPT = frozenset({ContentType._meta.db_table, Permission._meta.db_table, "django_migrations"})
WRITTEN_BACK: tuple[type[models.Model], ...] = (
    ViewControl, ViewShard, RefreshSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks,
)  # fmt: skip
OURS = frozenset(each._meta.db_table for each in apps.get_app_config("matviews").get_models())


class _Kept(NamedTuple):
    """What `migrate` has left."""

    views: list[Any]
    tables: list[str]
    inserts: list[tuple[str, Any]]


FLUSHES_PER_VACUUM = 50

_kept: dict[str, _Kept] = {}
_flushes = count(1)


def remember(alias: str) -> None:
    """Keep the rows of the views as they are now, for every flush from now on."""
    present = connections[alias].introspection.django_table_names(only_existing=True)
    # Where there are triggers, they log what is deleted from a source: the log comes later.
    tables = sorted(set(present) - KEPT, key=lambda table: (table in OURS, table))
    inserts = list(insert_statements(WRITTEN_BACK, alias))
    _kept[alias] = _Kept(list(registry), tables, inserts)


def insert_statements(
    written: Iterable[type[models.Model]], alias: str
) -> Iterator[tuple[str, Any]]:
    """What makes the rows that these models have now."""
    for model in written:
        if rows := list(model._base_manager.using(alias).order_by("pk")):
            query = InsertQuery(model)
            query.insert_values(model._meta.concrete_fields, rows, raw=True)
            for each in query.get_compiler(using=alias).as_sql():
                yield _with_values(alias, *each)


def _with_values(alias: str, statement: str, parameters: Any) -> tuple[str, Any]:
    """A statement with its thousands of values, or the driver would convert them each time."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            return connection.ops.last_executed_query(cursor, statement, parameters), None
        return cursor.mogrify(statement, parameters), None


def execute(alias: str, statements: Iterable[tuple[str, Any]]) -> None:
    with connections[alias].cursor() as cursor:
        for statement, parameters in statements:
            cursor.execute(statement, parameters)


def flush(alias: str) -> None:
    """Delete the rows of every migrated table, and write back those that `remember` has kept.

    But for triggers: a test that wants them has the fixture `tracked`.
    """
    connection, kept = connections[alias], _kept[alias]
    quoted = [connection.ops.quote_name(table) for table in kept.tables]
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"EXISTS (SELECT 1 FROM {q})" for q in quoted))
        filled = [
            q
            for table, q, is_filled in zip(kept.tables, quoted, cursor.fetchone(), strict=True)
            if is_filled or table == Change._meta.db_table
        ]
        with connection.constraint_checks_disabled(), transaction.atomic(using=alias):
            for q in filled:
                cursor.execute(f"DELETE FROM {q}")
            execute(alias, kept.inserts)
            PeriodicTask.objects.using(alias).update(date_changed=now())  # as if just migrated
    if connection.vendor == "postgresql" and next(_flushes) % FLUSHES_PER_VACUUM == 0:
        _vacuum(alias)
    batch._TABLES_WITH_CHANGES.clear()  # the numbers of shards may come again, as after loaddata
    if list(registry) != kept.views:  # a fixture's views outlive this flush
        engine.sync_controls()
        schedules.reconcile_if_possible()


def _vacuum(alias: str) -> None:
    """Forget dead rows of PostgreSQL's catalogs and of what each flush writes.

    Tests make and drop tables by the thousand, faster than autovacuum comes, if it is on at all.
    The tables of users' models are left as they are: their estimates are what tests are about.
    """
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('pg_catalog.%I', relname) FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
        )
        written = [connection.ops.quote_name(model._meta.db_table) for model in WRITTEN_BACK]
        cursor.execute(f"VACUUM {', '.join([*(name for (name,) in cursor.fetchall()), *written])}")


def flush_filled_tables(test_case: TransactionTestCase) -> None:
    """In place of TransactionTestCase's own ``_fixture_teardown``."""
    for alias in test_case._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        flush(alias)
