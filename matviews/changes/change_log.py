"""Moves entries from the change log to the views' queues, and drains the queues.

Queues are append-only, and drained as a whole. If an equal entry were not inserted again, a change
could be lost: a batch may be draining the first entry and have computed its rows already.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import Case, Count, Func, JSONField, Model, Q, Sum, TextField, When, Window

from ..databases import dialect_of, sessions_of, triggers_of
from ..databases.base.triggers import MAX_DISTINCT_CHANGES
from ..databases.compiled import PK_PLACEHOLDER, CompiledSelect
from ..databases.keys import Keys
from ..models import Change, TrackedTable, ViewChange
from .log_spans import (
    Covering,
    Stretch,
    delete_spans,
    keep_oldest,
    lock_covering,
    lock_stretch,
    readers,
)
from .secret import log_secret

__all__ = [
    "ChangesLogged",
    "LogMove",
    "QueuedChange",
    "as_change",
    "collapse_queue",
    "count_logged",
    "delete_rows",
    "drain_queue",
    "enqueue",
    "from_hex",
    "move_few",
    "overlong_queues",
    "unmoved",
    "untracked",
]

MAX_MOVED_ENTRIES = 5_000  # copied in one transaction
FEW_ENTRIES = 100  # moved at once, without looking first which views need them
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
    count = 0 if isinstance(dirty, str) else len(dirty)
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
        entries = [[pk, table, from_hex(links), *others] for pk, table, links, *others in entries]
    return [as_change(table, links, logged_at) for _pk, table, links, logged_at, _sum in entries]


def from_hex(links: str) -> Any:
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


def as_change(table: str, links: Any, logged_at: datetime) -> QueuedChange:
    if table and isinstance(links, list):
        columns, *values = links
        return QueuedChange(table, columns, values, logged_at)
    return QueuedChange(table, [], links, logged_at)


def is_logged() -> bool:
    """Whether the log has an entry, even one that another process is moving."""
    return bool(_any(router.db_for_write(Change)).run())


@lru_cache(maxsize=8)
def _any(using: str) -> CompiledSelect:
    return CompiledSelect(Change.objects.using(using).order_by().values_list("pk")[:1])


def count_logged(view_id: int) -> int:
    """The number of entries in the log that one view will need."""
    tracked = TrackedTable.objects.values_list("table", "views")
    tables = [table for table, views in tracked if view_id in views]
    return Change.objects.filter(table__in=tables).count()


def unmoved(tables: Collection[str], newest: int) -> list[str]:
    """Which of the tables have an entry in the log up to the primary key `newest`."""
    entries = Change.objects.filter(pk__lte=newest, table__in=tables)
    return sorted(entries.order_by().values_list("table", flat=True).distinct())


def move_few() -> bool:
    """Move the log's entries to the queues in one round trip, if there are only a few.

    Must be called outside a transaction.

    Returns:
        False if a `LogMove` has to move them: there are more than a few, or the database cannot
        write to several tables in one statement.
    """
    using = router.db_for_write(Change)
    sessions, dialect = sessions_of(using), dialect_of(using)
    if not (dialect.has_writing_parts and sessions.commits_one_statement()):
        return not is_logged()
    if not connections[using].get_autocommit():
        return False
    log = connections[using].ops.quote_name(Change._meta.db_table)
    few = f"(SELECT COUNT(*) FROM free) <= {FEW_ENTRIES:d}"
    found = sessions.commit_row(
        f"WITH free AS MATERIALIZED "
        f"(SELECT * FROM {log} ORDER BY id LIMIT {FEW_ENTRIES + 1:d} FOR UPDATE SKIP LOCKED), "
        f"copied AS ({_copying('free', few, using)}), "
        f"gone AS (DELETE FROM {log} WHERE id IN (SELECT id FROM free) AND {few}) "
        f"SELECT {few}"
    )
    return bool(found[0])


class LogMove:
    """A move of the log's entries to the queues, in short transactions: one for each `step`.

    Entries that another process is moving are skipped; everyone else sees them in the log until it
    commits.
    """

    def __init__(self) -> None:
        #: Whether more entries may be waiting.
        self.more = True
        #: The primary key of the last entry that was moved, so that none is read twice.
        self._after = 0
        #: Entries up to this primary key are few enough to be copied.
        self._copy_up_to = 0

    def step(self) -> None:
        """Move some entries. Call it first in the transaction.

        On SQLite, a transaction that begins with a read cannot always write.
        """
        using = router.db_for_write(Change)
        if not connections[using].features.has_select_for_update:
            Change.objects.filter(pk=0).update(table="")
        keys = [pk for (pk,) in _oldest_free(using, MAX_MOVED_ENTRIES).run(self._after)]
        self.more = len(keys) == MAX_MOVED_ENTRIES
        if not keys:
            return
        covering = lock_covering() if len(keys) > FEW_ENTRIES else {}
        if self.more and self._after >= self._copy_up_to:
            stretch = lock_stretch(self._after, MAX_DISTINCT_CHANGES + 1)
            since = readers(stretch.low, stretch.high)
            # After a bulk load, for example, a full refresh is cheaper than resolving every row.
            if stretch.count > MAX_DISTINCT_CHANGES or since.keys() <= covering.keys():
                _collapse(stretch, since, covering)
                self._after = stretch.high
                return
            self._copy_up_to = stretch.high
        if covering:
            keep_oldest(covering, readers(keys[0], keys[-1]))
        _copy(keys, covering)
        delete_rows(Change, keys)
        self._after = keys[-1]


def _collapse(
    stretch: Stretch, since: Mapping[int, datetime], covering: Mapping[int, Covering]
) -> None:
    """Mark all keys dirty in the views that need these entries, and delete them."""
    for view in sorted(since.keys() - covering.keys()):
        enqueue({view}, f"more than {MAX_DISTINCT_CHANGES:,} changes were waiting", since[view])
    keep_oldest(covering, since)
    delete_rows(Change, delete_spans(stretch.spans))


@lru_cache(maxsize=8)
def _oldest_free(using: str, limit: int) -> CompiledSelect:
    """Lock the oldest entries above a primary key that nobody has locked, and return their keys."""
    above = Change.objects.using(using).filter(pk__gt=PK_PLACEHOLDER)
    entries = above.order_by("pk").values_list("pk")[:limit]
    if not connections[using].features.has_select_for_update:
        return CompiledSelect(entries)
    with transaction.atomic(using=using):  # Django compiles a locking query only here
        return CompiledSelect(entries.select_for_update(skip_locked=True))


def _copy(found: Sequence[int], without: Collection[int] = ()) -> None:
    """Copy changes to the queues of the views that read a changed column, `without` some views.

    The views are read after the changes were found, or in the same snapshot. A view that starts to
    read a table later gets a full refresh queued, which finds these changes in its source.
    """
    using = router.db_for_write(Change)
    dialect = dialect_of(using)
    among = dialect.selects(["log.id"], Keys(tuple((pk,) for pk in found)))
    _views, view = dialect.numbers_in("tracked.views")
    needed = f" AND {view} NOT IN ({', '.join(['%s'] * len(without))})" if without else ""
    log = connections[using].ops.quote_name(Change._meta.db_table)
    with connections[using].cursor() as cursor:
        cursor.execute(_copying(log, f"{among.text}{needed}", using), [*among.params, *without])


def _copying(log: str, condition: str, using: str) -> str:
    """An INSERT of changes into the queues of the views that read a changed column.

    Args:
        log: what has the changes, for a FROM.
        condition: which of these, by the alias `log`.
        using: alias of the database.
    """
    queue, tracked, table, links, number, changed, logged_at = map(
        connections[using].ops.quote_name,
        (
            ViewChange._meta.db_table, TrackedTable._meta.db_table,
            "table", "links", "count", "changed", "logged_at",
        ),
    )  # fmt: skip
    dialect = dialect_of(using)
    views, view = dialect.numbers_in("tracked.views")
    concerned = dialect.shares_name(f"log.{changed}", "tracked.view_columns", view)
    return (
        f"INSERT INTO {queue} (view_id, {table}, {links}, {number}, {logged_at}) "
        f"SELECT {view}, log.{table}, log.{links}, MAX(log.{number}), MIN(log.{logged_at}) "
        f"FROM {log} log JOIN {tracked} tracked ON tracked.{table} = log.{table} "
        f"{views} WHERE {condition} AND {concerned} "
        f"GROUP BY {view}, log.{table}, log.{links}"
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
    counted = ViewChange.objects.order_by().values("view")
    counted = counted.annotate(changes=Sum("count"), entries=Count("pk"))
    overlong = Q(changes__gt=MAX_QUEUED_CHANGES) | Q(entries__gt=MAX_QUEUED_CHANGES)
    return list(counted.filter(overlong).values_list("view", flat=True))


def collapse_queue(view_id: int) -> None:
    """Replace a view's queue by one entry for all keys, in a short transaction."""
    if changes := drain_queue(view_id):
        oldest = min(change.logged_at for change in changes)
        enqueue({view_id}, f"more than {MAX_QUEUED_CHANGES:,} changes were waiting", oldest)
