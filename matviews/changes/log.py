"""From the log of the triggers to the queues of the views.

A queue is only ever added to and taken from, as a whole: "insert it unless it is there" would lose a
change to somebody who is just taking what is there, and has computed already.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import Count, F, Model

from ..models import Change, ViewChange, WatchedTable
from ..queryset import Keys, dialect_of
from .dialects import dialect_of as trigger_dialect_of

__all__ = [
    "ChangesLogged",
    "Taken",
    "delete_rows",
    "enqueue",
    "is_logged",
    "long_queues",
    "move",
    "shorten",
    "take",
    "untracked",
]

MOST = 5_000  # changes that are moved in one transaction
MANY = 50_000  # changes that are not looked at one by one any more
LONGEST = 100_000  # entries of a view's queue, beyond which all keys are taken to be dirty


class ChangesLogged(Exception):
    """The log is to be moved first, in a transaction of its own."""


def is_logged() -> bool:
    """Whether a change waits in the log."""
    return Change.objects.exists()


def enqueue(view_ids: Collection[int], dirty: list[list[str]] | str) -> None:
    """Note in the queues of views that keys are dirty; all of them, if a reason is given instead."""
    ViewChange.objects.bulk_create(
        [ViewChange(view_id=pk, table="", links=dirty) for pk in sorted(view_ids)]
    )


class Taken(NamedTuple):
    """An entry of a queue, as in `ViewChange`."""

    table: str
    links: Any
    logged_at: datetime


def take(view_id: int) -> list[Taken]:
    """Empty the queue of a view. In the transaction that computes, before it does."""
    queue = ViewChange.objects.filter(view=view_id)
    entries = list(queue.values_list("pk", "table", "links", "logged_at")[: MANY + 1])
    if len(entries) > MANY:
        times = dict(queue.values_list("pk", "logged_at"))
        delete_rows(ViewChange, list(times))
        return [Taken("", f"more than {MANY:,} changes were waiting", min(times.values()))]
    delete_rows(ViewChange, [pk for pk, *_entry in entries])
    return [Taken(table, links, logged_at) for _pk, table, links, logged_at in entries]


def move() -> bool:
    """Move changes from the log to the queues; whether more may be waiting. In a short transaction.

    To be its first statements: on SQLite a transaction that begins with a read cannot always write.
    One moves at a time, so that all that was logged before is in the queues afterwards.
    """
    first = WatchedTable.objects.order_by("pk")
    if connections[first.db].features.has_select_for_update:
        list(first.select_for_update()[:1])
    else:
        Change.objects.update(table=F("table"))
    changes = Change.objects.order_by("pk").values_list("pk", "table")
    # As after a bulk load: a full pass is cheaper than to tell them apart.
    if changes[MANY : MANY + 1].exists():
        found = dict(changes[:MANY])
        watched = WatchedTable.objects.filter(table__in=set(found.values()))
        views = {pk for views in watched.values_list("views", flat=True) for pk in views}
        enqueue(views, f"more than {MANY:,} changes were waiting")
        delete_rows(Change, list(found))
        return True
    found = dict(changes[:MOST])
    if found:
        _copy(found)
        delete_rows(Change, list(found))
    return len(found) == MOST


def _copy(found: Mapping[int, str]) -> None:
    """Copy changes, keys with their tables, to the queues of the views that read their tables."""
    watched = WatchedTable.objects.filter(table__in=set(found.values()))
    readers = [(each.table, view) for each in watched for view in each.views]
    if not readers:
        return
    connection: Any = connections[watched.db]
    queue, log, table, links, logged_at = map(
        connection.ops.quote_name,
        (ViewChange._meta.db_table, Change._meta.db_table, "table", "links", "logged_at"),
    )
    among = dialect_of(watched.db).inside([f"{log}.id"], Keys(tuple((pk,) for pk in found)))
    # The first row gives the columns their types.
    reader = "SELECT %s AS name, %s AS view_id" + " UNION ALL SELECT %s, %s" * (len(readers) - 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {queue} (view_id, {table}, {links}, {logged_at}) "
            f"SELECT matviews_readers.view_id, {log}.{table}, {log}.{links}, MIN({log}.{logged_at}) "
            f"FROM {log} JOIN ({reader}) matviews_readers ON matviews_readers.name = {log}.{table} "
            f"WHERE {among.text} GROUP BY matviews_readers.view_id, {log}.{table}, {log}.{links}",
            [*(value for each in readers for value in each), *among.params],
        )


def delete_rows(model: type[Model], keys: Sequence[int]) -> None:
    """Delete rows by their primary keys, without a look at any other: it may not be committed."""
    for at in range(0, len(keys), MOST):
        _delete_some(model, keys[at : at + MOST])


def _delete_some(model: type[Model], keys: Sequence[int]) -> None:
    """As above, for keys that fit into a statement.

    MariaDB and MySQL wait for each row that they come across, and for an IN of many keys they come
    across all: so each key is looked up by itself.
    """
    using = router.db_for_write(model)
    connection: Any = connections[using]
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        if connection.vendor != "mysql":
            among = dialect_of(using).inside(["id"], Keys(tuple((key,) for key in keys)))
            cursor.execute(f"DELETE FROM {table} WHERE {among.text}", among.params)
            return
        cursor.execute(
            f"DELETE {table} FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) matviews_keys "
            f"STRAIGHT_JOIN {table} ON {table}.id = matviews_keys.id",
            [json.dumps(keys)],
        )


@contextmanager
def untracked(using: str, tables: Collection[str]) -> Iterator[None]:
    """A transaction in which of some tables no change is logged but that any row may have changed."""
    with transaction.atomic(using=using):
        with trigger_dialect_of(using).muted(tables):
            yield
        watched = WatchedTable.objects.filter(table__in=tables).values_list("table", flat=True)
        Change.objects.bulk_create(Change(table=table, links=None) for table in watched)


def long_queues() -> list[int]:
    """The views whose queues are too long: nobody refreshes them."""
    counted = ViewChange.objects.order_by().values("view").annotate(entries=Count("pk"))
    return list(counted.filter(entries__gt=LONGEST).values_list("view", flat=True))


def shorten(view_id: int) -> None:
    """Make the queue of a view one entry, for all keys. In a short transaction."""
    if take(view_id):
        enqueue({view_id}, f"more than {LONGEST:,} changes were waiting")
