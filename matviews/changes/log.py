"""From the log of the triggers to the queues of the views.

A queue is only ever added to and taken from, as a whole: "insert it unless it is there" would lose a
change to somebody who is just taking what is there, and has computed already.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import Case, F, JSONField, Model, Sum, When, Window

from ..compiled import GIVEN, CompiledSelect
from ..models import Change, ViewChange, WatchedTable
from ..queryset import Keys, dialect_of
from .dialects import MANY
from .dialects import dialect_of as trigger_dialect_of

__all__ = [
    "ChangesLogged",
    "Taken",
    "delete_rows",
    "enqueue",
    "logged",
    "long_queues",
    "move",
    "shorten",
    "take",
    "untracked",
]

MOST = 5_000  # entries that are moved in one transaction
LONGEST = 100_000  # changes in a view's queue, beyond which all keys are taken to be dirty


class ChangesLogged(Exception):
    """The log is to be moved first, in a transaction of its own."""


def enqueue(view_ids: Collection[int], dirty: list[list[str]] | str) -> None:
    """Note in the queues of views that keys are dirty; all of them, if a reason is given instead."""
    count = 1 if isinstance(dirty, str) else len(dirty)
    ViewChange.objects.bulk_create(
        [ViewChange(view_id=pk, table="", links=dirty, count=count) for pk in sorted(view_ids)]
    )


class Taken(NamedTuple):
    """An entry of a queue, as in `ViewChange`.

    Attributes:
        table: the table; "" if somebody has marked keys.
        columns: the columns whose values are known.
        links: their values, in lists; or keys; None for any, or a text that says why.
        logged_at: when the oldest of the changes was logged.
    """

    table: str
    columns: list[str]
    links: list[list[Any]] | str | None
    logged_at: datetime


def take(view_id: int) -> list[Taken]:
    """Empty the queue of a view. In the transaction that computes, before it does."""
    entries = _queue(router.db_for_write(ViewChange), MANY).run(view_id)
    delete_rows(ViewChange, [pk for pk, *_entry in entries])
    if entries and entries[0][-1] > MANY:
        oldest = min(entry[3] for entry in entries)
        return [Taken("", [], f"more than {MANY:,} changes were waiting", oldest)]
    return [_taken(table, links, logged_at) for _pk, table, links, logged_at, _sum in entries]


@lru_cache(maxsize=8)
def _queue(using: str, most: int) -> CompiledSelect:
    """The entries of a view's queue and how many changes they are; without links if these are too many."""
    queue = ViewChange.objects.using(using).filter(view=GIVEN).order_by()
    counted = queue.annotate(changes=Window(Sum("count")))
    few = Case(When(changes__lte=most, then="links"), output_field=JSONField())
    return CompiledSelect(counted.values_list("pk", "table", few, "logged_at", "changes"))


def _taken(table: str, links: Any, logged_at: datetime) -> Taken:
    if table and isinstance(links, list):
        columns, *values = links
        return Taken(table, columns, values, logged_at)
    return Taken(table, [], links, logged_at)


def logged() -> dict[int, str]:
    """The oldest entries of the log, at most `MOST`: their tables by their primary keys."""
    return dict(_oldest(router.db_for_write(Change), MOST).run())


@lru_cache(maxsize=8)
def _oldest(using: str, most: int) -> CompiledSelect:
    entries = Change.objects.using(using).order_by("pk")
    return CompiledSelect(entries.values_list("pk", "table")[:most])


def move(found: dict[int, str]) -> bool:
    """Move entries from the log to the queues; whether more may be waiting. In a short transaction.

    To be its first statements: on SQLite a transaction that begins with a read cannot always write.
    One moves at a time, so that all that was logged before is in the queues afterwards: what another
    has moved meanwhile is there by then.
    """
    using = router.db_for_write(Change)
    if not connections[using].features.has_select_for_update:
        Change.objects.update(table=F("table"))
    views = dict(_watched(using).run())
    more = len(found) == MOST
    # As after a bulk load: a full pass is cheaper than to tell them apart.
    changes = Change.objects.order_by("pk").values_list("pk", "table")
    if more and changes[MANY : MANY + 1].exists():
        found = dict(changes[:MANY])
        told = {pk for table in set(found.values()) for pk in views.get(table, ())}
        enqueue(told, f"more than {MANY:,} changes were waiting")
    else:
        _copy(found, views)
    delete_rows(Change, list(found))
    return more


@lru_cache(maxsize=8)
def _watched(using: str) -> CompiledSelect:
    watched = WatchedTable.objects.using(using).order_by("pk").select_for_update()
    return CompiledSelect(watched.values_list("table", "views"))


def _copy(found: Mapping[int, str], views: Mapping[str, Collection[int]]) -> None:
    """Copy changes to the queues of the views that read their tables.

    Args:
        found: the tables of the changes, by their primary keys.
        views: the primary keys of the views' controls, by table.
    """
    readers = [(table, view) for table in set(found.values()) for view in views.get(table, ())]
    if not readers:
        return
    using = router.db_for_write(Change)
    connection: Any = connections[using]
    queue, log, table, links, number, logged_at = map(
        connection.ops.quote_name,
        (ViewChange._meta.db_table, Change._meta.db_table, "table", "links", "count", "logged_at"),
    )
    among = dialect_of(using).inside([f"{log}.id"], Keys(tuple((pk,) for pk in found)))
    # The first row gives the columns their types.
    reader = "SELECT %s AS name, %s AS view_id" + " UNION ALL SELECT %s, %s" * (len(readers) - 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {queue} (view_id, {table}, {links}, {number}, {logged_at}) "
            f"SELECT matviews_readers.view_id, {log}.{table}, {log}.{links}, MAX({log}.{number}), "
            f"MIN({log}.{logged_at}) "
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
    counted = ViewChange.objects.order_by().values("view").annotate(changes=Sum("count"))
    return list(counted.filter(changes__gt=LONGEST).values_list("view", flat=True))


def shorten(view_id: int) -> None:
    """Make the queue of a view one entry, for all keys. In a short transaction."""
    if take(view_id):
        enqueue({view_id}, f"more than {LONGEST:,} changes were waiting")
