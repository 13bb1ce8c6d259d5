"""Moves entries from the change log to the views' queues, and drains the queues.

Queues are append-only, and drained as a whole. If an equal entry were not inserted again, a change
could be lost: a batch may be draining the first entry and have computed its rows already.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import Case, Func, JSONField, Model, Sum, TextField, When, Window

from ..databases import dialect_of, triggers_of
from ..databases.base.triggers import MAX_DISTINCT_CHANGES
from ..databases.compiled import PK_PLACEHOLDER, CompiledSelect
from ..databases.keys import Keys
from ..models import Change, TrackedTable, ViewChange
from .secret import log_secret

__all__ = [
    "ChangesLogged",
    "QueuedChange",
    "collapse_queue",
    "delete_rows",
    "drain_queue",
    "enqueue",
    "is_logged",
    "move_log",
    "overlong_queues",
    "unmoved",
    "untracked",
]

MAX_MOVED_ENTRIES = 5_000  # in one transaction
MAX_QUEUED_CHANGES = 100_000  # of a view; beyond that, its next refresh is full


class ChangesLogged(Exception):
    """The log has entries that must be moved first, in a transaction of their own.

    `tables` are the tables whose changes count, `newest` is the primary key of the newest entry.
    """

    def __init__(self, tables: Collection[str], newest: int) -> None:
        super().__init__(tables, newest)
        self.tables, self.newest = tables, newest


def enqueue(
    view_ids: Collection[int], dirty: list[list[str]] | str, logged_at: datetime | None = None
) -> None:
    """Mark keys dirty in the queues of views; all keys, if a reason is given instead.

    `logged_at` is the time of the oldest change that this stands for, by default now.
    """
    count = 1 if isinstance(dirty, str) else len(dirty)
    since = {"logged_at": logged_at} if logged_at else {}
    ViewChange.objects.bulk_create(
        [
            ViewChange(view_id=pk, table="", links=dirty, count=count, **since)
            for pk in sorted(view_ids)
        ]
    )


class QueuedChange(NamedTuple):
    """An entry of a view's queue, as in `ViewChange`."""

    #: "" if the keys were marked by `mark_dirty`.
    table: str
    #: The columns that were logged.
    columns: list[str]
    #: Lists of their values, or keys; None for any row, or the reason why any may have changed.
    links: list[list[Any]] | str | None
    #: The time of the oldest change.
    logged_at: datetime


def drain_queue(view_id: int) -> list[QueuedChange]:
    """Empty a view's queue. Call it in the transaction that computes its rows, before it does."""
    using = router.db_for_write(ViewChange)
    entries = _queue(using, MAX_DISTINCT_CHANGES).run(view_id)
    delete_rows(ViewChange, [pk for pk, *_entry in entries])
    if entries and entries[0][-1] > MAX_DISTINCT_CHANGES:
        oldest = min(entry[3] for entry in entries)
        return [
            QueuedChange("", [], f"more than {MAX_DISTINCT_CHANGES:,} changes were waiting", oldest)
        ]
    if dialect_of(using).json_may_be_bytes:
        entries = [[pk, table, _from_hex(links), *others] for pk, table, links, *others in entries]
    return [_as_change(table, links, logged_at) for _pk, table, links, logged_at, _sum in entries]


def _from_hex(links: str) -> Any:
    """The links of an entry. None if they are not UTF-8: SQLite stores any bytes."""
    try:
        return json.loads(bytes.fromhex(links)) if links else None
    except ValueError:
        return None


@lru_cache(maxsize=8)
def _queue(using: str, limit: int) -> CompiledSelect:
    """A view's queue and how many changes it stands for; without links if there are too many."""
    queue = ViewChange.objects.using(using).filter(view=PK_PLACEHOLDER).order_by()
    counted = queue.annotate(changes=Window(Sum("count")))
    links: Any = Case(When(changes__lte=limit, then="links"), output_field=JSONField())
    if dialect_of(using).json_may_be_bytes:
        links = Func(links, function="HEX", output_field=TextField())
    return CompiledSelect(counted.values_list("pk", "table", links, "logged_at", "changes"))


def _as_change(table: str, links: Any, logged_at: datetime) -> QueuedChange:
    if table and isinstance(links, list):
        columns, *values = links
        return QueuedChange(table, columns, values, logged_at)
    return QueuedChange(table, [], links, logged_at)


class _Entry(NamedTuple):
    """An entry of the log, as in `Change`."""

    pk: int
    table: str
    logged_at: datetime


def is_logged() -> bool:
    """Whether the log has an entry, even one that another process is moving."""
    return bool(_any(router.db_for_write(Change)).run())


@lru_cache(maxsize=8)
def _any(using: str) -> CompiledSelect:
    return CompiledSelect(Change.objects.using(using).order_by().values_list("pk")[:1])


def unmoved(tables: Collection[str], newest: int) -> list[str]:
    """Which of the tables have an entry in the log up to the primary key `newest`."""
    entries = Change.objects.filter(pk__lte=newest, table__in=tables)
    return sorted(entries.order_by().values_list("table", flat=True).distinct())


def move_log() -> bool:
    """Move entries from the log to the queues, in a short transaction; whether more may be waiting.

    Call it first in the transaction: on SQLite, one that begins with a read cannot always write.
    Entries that another process is moving are skipped; everyone else sees them in the log until it
    commits.
    """
    using = router.db_for_write(Change)
    if not connections[using].features.has_select_for_update:
        Change.objects.filter(pk=0).update(table="")
    keys = [pk for (pk,) in _free(MAX_MOVED_ENTRIES, "pk")]
    if not keys:
        return False
    more = len(keys) == MAX_MOVED_ENTRIES
    # After a bulk load, for example, a full refresh is cheaper than resolving every row.
    if (
        more
        and Change.objects.order_by("pk")[MAX_DISTINCT_CHANGES : MAX_DISTINCT_CHANGES + 1].exists()
    ):
        found = [_Entry(*row) for row in _free(MAX_DISTINCT_CHANGES, *_Entry._fields)]
        _collapse(found)
        keys = [entry.pk for entry in found]
    else:
        _copy(keys)
    delete_rows(Change, keys)
    return more


def _collapse(found: Sequence[_Entry]) -> None:
    """Mark all keys dirty in the views that read the tables of these entries."""
    oldest: dict[str, datetime] = {}
    for _pk, table, logged_at in found:
        oldest[table] = min(logged_at, oldest.get(table, logged_at))
    views = TrackedTable.objects.filter(table__in=oldest).values_list("table", "views")
    for table, readers in views.order_by("table"):
        enqueue(readers, f"more than {MAX_DISTINCT_CHANGES:,} changes were waiting", oldest[table])


def _free(limit: int, *fields: str) -> list[Any]:
    """Lock the oldest entries that nobody has locked, and return these fields."""
    return _oldest_free(router.db_for_write(Change), limit, fields).run()


@lru_cache(maxsize=8)
def _oldest_free(using: str, limit: int, fields: tuple[str, ...]) -> CompiledSelect:
    entries = Change.objects.using(using).order_by("pk").values_list(*fields)[:limit]
    if not connections[using].features.has_select_for_update:
        return CompiledSelect(entries)
    with transaction.atomic(using=using):  # Django compiles a locking query only here
        return CompiledSelect(entries.select_for_update(skip_locked=True))


def _copy(found: Sequence[int]) -> None:
    """Copy changes to the queues of the views that read their tables.

    The views are read after the changes were found, or in the same snapshot. A view that starts to
    read a table later gets a full refresh queued, which finds these changes in its source.
    """
    using = router.db_for_write(Change)
    connection: Any = connections[using]
    queue, log, tracked, table, links, number, logged_at = map(
        connection.ops.quote_name,
        (
            ViewChange._meta.db_table, Change._meta.db_table, TrackedTable._meta.db_table,
            "table", "links", "count", "logged_at",
        ),
    )  # fmt: skip
    dialect = dialect_of(using)
    among = dialect.inside(["log.id"], Keys(tuple((pk,) for pk in found)))
    readers, view = dialect.numbers_in("tracked.views")
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {queue} (view_id, {table}, {links}, {number}, {logged_at}) "
            f"SELECT {view}, log.{table}, log.{links}, MAX(log.{number}), MIN(log.{logged_at}) "
            f"FROM {log} log JOIN {tracked} tracked ON tracked.{table} = log.{table} "
            f"{readers} "
            f"WHERE {among.text} GROUP BY {view}, log.{table}, log.{links}",
            among.params,
        )


def delete_rows(model: type[Model], keys: Sequence[int]) -> None:
    """Delete rows by primary key, reading no other row: it might be locked."""
    for at in range(0, len(keys), MAX_MOVED_ENTRIES):
        _delete_some(model, keys[at : at + MAX_MOVED_ENTRIES])


def _delete_some(model: type[Model], keys: Sequence[int]) -> None:
    using = router.db_for_write(model)
    connection: Any = connections[using]
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(*dialect_of(using).delete_by_id(table, keys))


@contextmanager
def untracked(using: str, tables: Collection[str]) -> Iterator[None]:
    """A transaction that logs one entry per table, instead of one per change."""
    with transaction.atomic(using=using):
        with triggers_of(using).suppressed(tables, lambda: log_secret(using)):
            yield
        tracked = TrackedTable.objects.filter(table__in=tables).values_list("table", flat=True)
        Change.objects.bulk_create(Change(table=table, links=None) for table in tracked)


def overlong_queues() -> list[int]:
    """The views whose queues are too long, because nobody refreshes them."""
    counted = ViewChange.objects.order_by().values("view").annotate(changes=Sum("count"))
    return list(counted.filter(changes__gt=MAX_QUEUED_CHANGES).values_list("view", flat=True))


def collapse_queue(view_id: int) -> None:
    """Replace a view's queue by one entry for all keys, in a short transaction."""
    if changes := drain_queue(view_id):
        oldest = min(change.logged_at for change in changes)
        enqueue({view_id}, f"more than {MAX_QUEUED_CHANGES:,} changes were waiting", oldest)
