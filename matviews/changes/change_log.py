"""From the log of the triggers to the queues of the views.

A queue is only ever added to and taken from, as a whole: "insert it unless it is there" would lose a
change to somebody who is just taking what is there, and has computed already.
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

MAX_MOVED_ENTRIES = 5_000  # entries that are moved in one transaction
MAX_QUEUED_CHANGES = (
    100_000  # changes in a view's queue, beyond which all keys are taken to be dirty
)


class ChangesLogged(Exception):
    """The log is to be moved first, in a transaction of its own.

    Attributes:
        tables: the tables whose changes count.
        newest: the primary key of the newest entry.
    """

    def __init__(self, tables: Collection[str], newest: int) -> None:
        super().__init__(tables, newest)
        self.tables, self.newest = tables, newest


def enqueue(
    view_ids: Collection[int], dirty: list[list[str]] | str, logged_at: datetime | None = None
) -> None:
    """Note in the queues of views that keys are dirty; all of them, if a reason is given instead.

    `logged_at` is when the oldest of the changes was logged for which this stands; now, by default.
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
    """An entry of a queue, as in `ViewChange`."""

    #: The table; "" if somebody has marked keys.
    table: str
    #: The columns whose values are known.
    columns: list[str]
    #: Their values, in lists; or keys; None for any, or a text that says why.
    links: list[list[Any]] | str | None
    #: When the oldest of the changes was logged.
    logged_at: datetime


def drain_queue(view_id: int) -> list[QueuedChange]:
    """Empty the queue of a view. In the transaction that computes, before it does."""
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
    return [_taken(table, links, logged_at) for _pk, table, links, logged_at, _sum in entries]


def _from_hex(links: str) -> Any:
    """The links of an entry; None where they are no text: SQLite keeps any bytes, and Python reads UTF-8 alone."""
    try:
        return json.loads(bytes.fromhex(links)) if links else None
    except ValueError:
        return None


@lru_cache(maxsize=8)
def _queue(using: str, most: int) -> CompiledSelect:
    """The entries of a view's queue and how many changes they are; without links if these are too many."""
    queue = ViewChange.objects.using(using).filter(view=PK_PLACEHOLDER).order_by()
    counted = queue.annotate(changes=Window(Sum("count")))
    few: Any = Case(When(changes__lte=most, then="links"), output_field=JSONField())
    if dialect_of(using).json_may_be_bytes:
        few = Func(few, function="HEX", output_field=TextField())
    return CompiledSelect(counted.values_list("pk", "table", few, "logged_at", "changes"))


def _taken(table: str, links: Any, logged_at: datetime) -> QueuedChange:
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
    """Whether the log has an entry, whoever may be moving it."""
    return bool(_any(router.db_for_write(Change)).run())


@lru_cache(maxsize=8)
def _any(using: str) -> CompiledSelect:
    return CompiledSelect(Change.objects.using(using).order_by().values_list("pk")[:1])


def unmoved(tables: Collection[str], newest: int) -> list[str]:
    """Those of the tables that have an entry in the log up to the one with the key `newest`."""
    entries = Change.objects.filter(pk__lte=newest, table__in=tables)
    return sorted(entries.order_by().values_list("table", flat=True).distinct())


def move_log() -> bool:
    """Move entries from the log to the queues; whether more may be waiting. In a short transaction.

    To be its first statements: on SQLite a transaction that begins with a read cannot always write.
    What another process is moving is left to that one: until it commits, it is in the log to everybody else.
    """
    using = router.db_for_write(Change)
    if not connections[using].features.has_select_for_update:
        Change.objects.filter(pk=0).update(table="")
    keys = [pk for (pk,) in _free(MAX_MOVED_ENTRIES, "pk")]
    if not keys:
        return False
    more = len(keys) == MAX_MOVED_ENTRIES
    # As after a bulk load: a full pass is cheaper than to tell them apart.
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
    """Tell the views that read the tables of many entries that any key may be dirty."""
    oldest: dict[str, datetime] = {}
    for _pk, table, logged_at in found:
        oldest[table] = min(logged_at, oldest.get(table, logged_at))
    views = TrackedTable.objects.filter(table__in=oldest).values_list("table", "views")
    for table, readers in views.order_by("table"):
        enqueue(readers, f"more than {MAX_DISTINCT_CHANGES:,} changes were waiting", oldest[table])


def _free(most: int, *fields: str) -> list[Any]:
    """Lock the oldest entries that nobody else has locked; those fields of them."""
    return _oldest_free(router.db_for_write(Change), most, fields).run()


@lru_cache(maxsize=8)
def _oldest_free(using: str, most: int, fields: tuple[str, ...]) -> CompiledSelect:
    entries = Change.objects.using(using).order_by("pk").values_list(*fields)[:most]
    if not connections[using].features.has_select_for_update:
        return CompiledSelect(entries)
    with transaction.atomic(using=using):  # or Django would not compile what locks
        return CompiledSelect(entries.select_for_update(skip_locked=True))


def _copy(found: Sequence[int]) -> None:
    """Copy changes to the queues of the views that read their tables.

    The views are read after the changes were found, or in the same snapshot. A view that is added later is
    told afterwards that anything may have changed, and then finds these changes in its source.
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
    """Delete rows by their primary keys, without a look at any other: it may not be committed."""
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
    """A transaction in which of some tables no change is logged but that any row may have changed."""
    with transaction.atomic(using=using):
        with triggers_of(using).suppressed(tables, lambda: log_secret(using)):
            yield
        tracked = TrackedTable.objects.filter(table__in=tables).values_list("table", flat=True)
        Change.objects.bulk_create(Change(table=table, links=None) for table in tracked)


def overlong_queues() -> list[int]:
    """The views whose queues are too long: nobody refreshes them."""
    counted = ViewChange.objects.order_by().values("view").annotate(changes=Sum("count"))
    return list(counted.filter(changes__gt=MAX_QUEUED_CHANGES).values_list("view", flat=True))


def collapse_queue(view_id: int) -> None:
    """Make the queue of a view one entry, for all keys. In a short transaction."""
    if taken := drain_queue(view_id):
        oldest = min(each.logged_at for each in taken)
        enqueue({view_id}, f"more than {MAX_QUEUED_CHANGES:,} changes were waiting", oldest)
