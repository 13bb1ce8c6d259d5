"""Many entries of the log at once: which are free, which views need them, how to delete them.

A view is *covered* while its queue has an entry that says that all its keys are dirty: whoever
drains that entry computes every key afterwards, so any other change that has committed by then may
be left out. The queue of a view that was never built has had such an entry since its tables are
tracked. What is moved after the drain is queued again, so the view needs nothing from before its
first batch, and gets everything from then on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections, router
from django.db.models import Min

from ..databases import dialect_of
from ..models import Change, TrackedTable, ViewChange

__all__ = [
    "Covering",
    "Span",
    "Stretch",
    "delete_spans",
    "keep_oldest",
    "lock_covering",
    "lock_stretch",
    "readers",
]

MIN_SPAN = 100  # entries that are deleted as a range


class Covering(NamedTuple):
    """An entry of a view's queue that says that all its keys are dirty."""

    pk: int
    #: The time of the oldest change that it stands for.
    logged_at: datetime


class Span(NamedTuple):
    """Entries of the log whose primary keys follow each other, all of them locked."""

    low: int
    high: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """The oldest entries that nobody else has locked, above some primary key."""

    #: In their order; at least one.
    spans: Sequence[Span]
    #: How many entries they have.
    count: int

    @property
    def low(self) -> int:
        """The primary key of the first entry."""
        return self.spans[0].low

    @property
    def high(self) -> int:
        """The primary key of the last entry."""
        return self.spans[-1].high


def lock_covering() -> dict[int, Covering]:
    """An entry for each view that is covered.

    All such entries are locked until the transaction ends. So no batch drains them before the
    changes that are left out for the view have committed, and no batch computes without them.
    Entries that a batch is draining are skipped: their view is not covered any more.
    """
    tracked = TrackedTable.objects.values_list("views", flat=True)
    entries: Any = ViewChange.objects.filter(
        view__in=set[int]().union(*tracked), table="", count=0
    ).order_by("pk")
    if connections[entries.db].features.has_select_for_update:
        entries = entries.select_for_update(skip_locked=True)
    found = entries.values_list("view", "pk", "logged_at")
    return {view: Covering(pk, logged_at) for view, pk, logged_at in found}


def lock_stretch(after: int, limit: int, tables: Sequence[str] = ()) -> Stretch:
    """Lock entries above a primary key; there must be one. If tables are given, only theirs.

    Uncommitted entries, and those of other processes, are between the spans. On SQLite, where
    nobody else writes meanwhile, it is the rest of the log.
    """
    connection: Any = connections[router.db_for_write(Change)]
    quote = connection.ops.quote_name
    marks = ", ".join(["%s"] * len(tables))
    only = f" AND {quote('table')} IN ({marks})" * bool(tables)
    free = f"SELECT id FROM {quote(Change._meta.db_table)} WHERE id > %s{only} ORDER BY id LIMIT %s"
    shared = connection.features.has_select_for_update
    lock, limit = (" FOR UPDATE SKIP LOCKED", limit) if shared else ("", -1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT MIN(id), MAX(id), COUNT(*) FROM ({free}{lock}) free", [after, *tables, limit]
        )
        low, high, count = cursor.fetchone()
        spans = [(low, high)]
        if shared and high - low >= count:  # most logs have no gap, and are not numbered
            cursor.execute(
                f"SELECT MIN(id), MAX(id) FROM (SELECT id, id - ROW_NUMBER() OVER (ORDER BY id) "
                f"AS span FROM ({free}{lock}) free) numbered GROUP BY span ORDER BY 1",
                [after, *tables, count],
            )
            spans = cursor.fetchall()
    return Stretch(spans=[Span(*span) for span in spans], count=count)


def readers(low: int, high: int, tables: Sequence[str] = ()) -> dict[int, datetime]:
    """The views that need entries of the log, and the time of the oldest one that they need.

    If tables are given, only entries of these.

    Call it after the entries were found, or in the same snapshot. A view that starts to read a
    table later gets a full refresh queued, which finds these changes in its source.
    """
    entries = Change.objects.filter(pk__gte=low, pk__lte=high).order_by()
    entries = entries.filter(table__in=tables) if tables else entries
    kinds = entries.values("table", "changed").values_list("table", "changed", Min("logged_at"))
    logged = list(kinds)
    names = {table for table, _changed, _oldest in logged}
    records = {each.table: each for each in TrackedTable.objects.filter(table__in=names)}
    found: dict[int, datetime] = {}
    for table, changed, oldest in logged:
        for view in records[table].views_reading(changed) if table in records else ():
            found[view] = min(oldest, found.get(view, oldest))
    return found


def keep_oldest(covering: Mapping[int, Covering], since: Mapping[int, datetime]) -> None:
    """Have the entries of covered views stand for changes since these times, too."""
    for view, entry in covering.items():
        if since.get(view, entry.logged_at) < entry.logged_at:
            ViewChange.objects.filter(pk=entry.pk).update(logged_at=since[view])


def delete_spans(spans: Iterable[Span]) -> list[int]:
    """Delete long spans, and return the primary keys of the entries that are left.

    These are short spans, and the last entry of each long one: MariaDB and MySQL read the row after
    a range, which another process may have locked. On SQLite the rest of the log is all of it, and
    a DELETE without a condition reads no row.
    """
    using, left = router.db_for_write(Change), list[int]()
    connection: Any = connections[using]
    table = connection.ops.quote_name(Change._meta.db_table)
    if not connection.features.has_select_for_update:
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table}")
        return left
    for low, high in spans:
        if high - low < MIN_SPAN:
            left += range(low, high + 1)
            continue
        with connection.cursor() as cursor:
            cursor.execute(*dialect_of(using).delete_between(table, low, high))
        left.append(high)
    return left
