"""From the log of the triggers to the queues of the views.

A queue is only ever added to and taken from, as a whole: "insert it unless it is there" would lose a
change to somebody who is just taking what is there, and has computed already.
"""

import json

from django.db import connections, router
from django.db.models import Count, F, Model

from ..models import Change, ViewChange, WatchedTable

__all__ = [
    "ChangesLogged",
    "enqueue",
    "is_logged",
    "is_queued",
    "move",
    "shorten_queues",
    "take",
]

MOST = 5_000  # changes that are moved in one transaction
LONGEST = 1_000  # entries of a view's queue, beyond which they are made one


class ChangesLogged(Exception):
    """The log is to be moved first, in a transaction of its own."""


def is_logged(tables: set[str]) -> bool:
    """Whether a change of one of the tables waits in the log."""
    return Change.objects.filter(table__in=tables).exists()


def is_queued(view_id: int) -> bool:
    """Whether a change waits in the queue of a view."""
    return ViewChange.objects.filter(view=view_id).exists()


def enqueue(view_ids: set[int]) -> None:
    """Note in the queues of views that something has changed."""
    ViewChange.objects.bulk_create([ViewChange(view_id=pk) for pk in sorted(view_ids)])


def take(view_id: int) -> bool:
    """Empty the queue of a view; whether there was anything. In the transaction that computes."""
    found = list(ViewChange.objects.filter(view=view_id).values_list("pk", flat=True))
    _delete(ViewChange, found)
    return bool(found)


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
    found = dict(Change.objects.order_by("pk").values_list("pk", "table")[:MOST])
    tables = WatchedTable.objects.filter(table__in=set(found.values()))
    enqueue({pk for views in tables.values_list("views", flat=True) for pk in views})
    _delete(Change, list(found))
    return len(found) == MOST


def _delete(model: type[Model], keys: list[int]) -> None:
    """Delete rows that nobody else deletes, without a look at any other: it may not be committed.

    MariaDB and MySQL wait for each row that they come across, and for an IN of many keys they come
    across all: so each key is looked up by itself.
    """
    rows = model._base_manager.using(router.db_for_write(model)).filter(pk__in=keys)
    connection = connections[rows.db]
    if connection.vendor != "mysql":
        rows.delete()
        return
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE {table} FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) matviews_keys "
            f"STRAIGHT_JOIN {table} ON {table}.id = matviews_keys.id",
            [json.dumps(keys)],
        )


def shorten_queues() -> None:
    """Make the entries of long queues one: of views that nobody refreshes. In a short transaction."""
    counted = ViewChange.objects.order_by().values("view").annotate(entries=Count("pk"))
    for view_id, _entries in counted.filter(entries__gt=LONGEST).values_list("view", "entries"):
        if take(view_id):
            enqueue({view_id})
