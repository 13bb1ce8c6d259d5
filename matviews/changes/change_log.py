"""Moves entries from the change log to the views' queues, and drains the queues.

Queues are append-only, and drained as a whole. If an equal entry were not inserted again, a change
could be lost: a batch may be draining the first entry and have computed its rows already.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import Case, Func, JSONField, Model, Sum, TextField, When, Window

from ..databases import dialect_of, floors_of, sessions_of
from ..databases.base.triggers import MAX_DISTINCT_CHANGES
from ..databases.compiled import PK_PLACEHOLDER, TOKEN_PLACEHOLDER, CompiledSelect
from ..databases.keys import Keys
from ..models import Change, ShardChange, TrackedTable, ViewChange
from .log_entries import has_more_than, is_logged, span_of_entries
from .log_spans import (
    Covering,
    Stretch,
    delete_spans,
    keep_oldest,
    lock_covering,
    lock_stretch,
    readers,
)

__all__ = [
    "ChangesLogged",
    "LogMove",
    "QueuedChange",
    "as_change",
    "delete_rows",
    "drain",
    "drain_queue",
    "enqueue",
    "from_hex",
    "move_few",
    "read_queue",
    "too_many",
]

Queue = ViewChange | ShardChange
MAX_MOVED_ENTRIES = 5_000  # copied in one transaction
FLOOR_EVERY = 100  # entries that are deleted, about, before the floor of the log rises
FEW_ENTRIES = 100  # moved at once, without looking first which views need them


class ChangesLogged(Exception):
    """The log has entries that must be moved first, in a transaction of their own.

    `tables` are the tables whose changes count, and `view_id` is the view whose queue is to be
    distributed to its shards; None if it has one shard.
    """

    def __init__(self, tables: Collection[str], view_id: int | None = None) -> None:
        super().__init__(tables)
        self.tables, self.view_id = tables, view_id


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
    queue = floors_of(router.db_for_write(ViewChange)).queues([view_id])
    seen = f"SELECT id FROM {queue} entry WHERE view_id = {int(view_id)}"
    return drain(ViewChange, view_id, f"id = ANY(ARRAY({seen}))", entries=queue)


def drain(model: type[Queue], pk: int, condition: str, *, entries: str = "") -> list[QueuedChange]:
    """Empty the queue of a view or shard, in one statement where that is possible.

    Args:
        model: that of the queue's entries.
        pk: the primary key of the view or shard.
        condition: which rows are to be deleted, as SQL.
        entries: what stands for their table in a FROM, see `CompiledSelect.run`.
    """
    using = router.db_for_write(model)
    select = _queue(model, using, MAX_DISTINCT_CHANGES)
    if dialect_of(using).has_writing_parts:
        table = connections[using].ops.quote_name(model._meta.db_table)
        deleted = f"DELETE FROM {table} WHERE {condition} RETURNING *"
        before = f"WITH matviews_drained AS ({deleted}) "
        return _changes(select.run(pk, entries="matviews_drained", before=before), using)
    found = select.run(pk, entries=entries)
    delete_rows(model, [each[0] for each in found])
    return _changes(found, using)


def read_queue(view_id: int) -> tuple[list[int], list[QueuedChange]]:
    """The primary keys of the entries of a view's queue, and what `drain_queue` would return."""
    using = router.db_for_write(ViewChange)
    queue = floors_of(using).queues([view_id])
    entries = _queue(ViewChange, using, MAX_DISTINCT_CHANGES).run(view_id, entries=queue)
    return [pk for pk, *_entry in entries], _changes(entries, using)


def too_many(most: int) -> str:
    """Why all keys are dirty, in place of more than `most` changes."""
    return f"more than {most:,} changes were pending"


def _changes(entries: list[list[Any]], using: str) -> list[QueuedChange]:
    """What entries say. If they stand for very many changes, that is one for all keys."""
    if entries and entries[0][-1] > MAX_DISTINCT_CHANGES:
        oldest = min(entry[3] for entry in entries)
        return [QueuedChange("", [], too_many(MAX_DISTINCT_CHANGES), oldest)]
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
def _queue(model: type[Queue], using: str, limit: int) -> CompiledSelect:
    """A queue and how many changes it stands for; without links if there are too many."""
    owner = "view" if model is ViewChange else "shard"
    queue = model.objects.using(using).filter(**{owner: PK_PLACEHOLDER}).order_by()
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


def move_few() -> tuple[bool, bool]:
    """Move the log's entries to the queues in one round trip, if there are only a few.

    Must be called outside a transaction.

    Returns:
        False if a `LogMove` has to move them: there are more than a few, or the database cannot
        write to several tables in one statement. And whether it is time to `raise_floor`.
    """
    using = router.db_for_write(Change)
    sessions, dialect = sessions_of(using), dialect_of(using)
    if not (dialect.has_writing_parts and sessions.commits_one_statement()):
        return not is_logged(), False
    if not connections[using].get_autocommit():
        return False, False
    floors, most = floors_of(using), FEW_ENTRIES + 1
    log = floors.name(Change._meta.db_table)
    few = f"(SELECT COUNT(*) FROM seen) <= {FEW_ENTRIES:d}"
    is_few, is_mark = sessions.commit_row(
        f"WITH seen AS MATERIALIZED (SELECT id FROM {floors.log(most)} entry LIMIT {most:d}), "
        f"free AS MATERIALIZED (SELECT * FROM {log} WHERE {few} AND "
        f"id = ANY(ARRAY(SELECT id FROM seen)) FOR UPDATE SKIP LOCKED), "
        f"copied AS ({_copying('free', few, using)}), "
        f"gone AS (DELETE FROM {log} WHERE id = ANY(ARRAY(SELECT id FROM free)) AND {few}) "
        f"SELECT {few}, EXISTS (SELECT 1 FROM free WHERE mod(id, {FLOOR_EVERY}) = 0)"
    )
    return bool(is_few), bool(is_mark)


class LogMove:
    """A move of the log's entries to the queues, in short transactions: one for each `step`.

    Entries that another process is moving are skipped; everyone else sees them in the log until it
    commits.

    Args:
        tables: those whose entries are moved; none for all. It moves all if they are only a few,
            and on SQLite: while one process writes there, the others wait.
    """

    def __init__(self, tables: Collection[str] = ()) -> None:
        using = router.db_for_write(Change)
        shared = connections[using].features.has_select_for_update
        apart = shared and bool(tables) and has_more_than(FEW_ENTRIES)
        self._tables = tuple(sorted(tables)) if apart else ()
        #: Whether it is to be followed by `raise_floor`.
        self.raises_floor = floors_of(using).rise
        span = span_of_entries(self._tables)
        #: Whether more entries may be waiting.
        self.more = span is not None
        first, self._last = span or (1, 0)
        #: The primary key of the last entry that was moved, so that none is read twice.
        self._after = first - 1
        #: Entries up to this primary key are few enough to be copied.
        self._copy_up_to = 0

    def step(self) -> None:
        """Move some entries. Call it first in the transaction.

        On SQLite, a transaction that begins with a read cannot always write.
        """
        using = router.db_for_write(Change)
        if not connections[using].features.has_select_for_update:
            Change.objects.filter(pk=0).update(table="")
        oldest = _oldest_free(using, MAX_MOVED_ENTRIES, self._tables)
        keys = [pk for (pk,) in oldest.run(self._after, self._last)]
        self.more = len(keys) == MAX_MOVED_ENTRIES
        if not keys:
            return
        covering = lock_covering() if len(keys) > FEW_ENTRIES else {}
        if self.more and self._after >= self._copy_up_to:
            stretch = lock_stretch(self._after, MAX_DISTINCT_CHANGES + 1, self._tables)
            since = readers(stretch.low, stretch.high, self._tables)
            # After a bulk load, for example, a full refresh is cheaper than resolving every row.
            if stretch.count > MAX_DISTINCT_CHANGES or since.keys() <= covering.keys():
                _collapse(stretch, since, covering)
                self._after = stretch.high
                return
            self._copy_up_to = stretch.high
        if covering:
            keep_oldest(covering, readers(keys[0], keys[-1], self._tables))
        _copy(keys, covering)
        delete_rows(Change, keys)
        self._after = keys[-1]


def _collapse(
    stretch: Stretch, since: Mapping[int, datetime], covering: Mapping[int, Covering]
) -> None:
    """Mark all keys dirty in the views that need these entries, and delete them."""
    for view in sorted(since.keys() - covering.keys()):
        enqueue({view}, too_many(MAX_DISTINCT_CHANGES), since[view])
    keep_oldest(covering, since)
    delete_rows(Change, delete_spans(stretch.spans))


@lru_cache(maxsize=64)
def _oldest_free(using: str, limit: int, tables: tuple[str, ...]) -> CompiledSelect:
    """Lock the oldest free entries between two primary keys, and return their keys."""
    span = {"pk__gt": PK_PLACEHOLDER, "pk__lte": TOKEN_PLACEHOLDER}
    above = Change.objects.using(using).filter(**span)
    above = above.filter(table__in=tables) if tables else above
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
