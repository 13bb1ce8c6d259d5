"""Reading the change log: which entries it has, above its floor."""

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import router
from django.db.models import Count, Max, Min, QuerySet

from ..databases import floors_of
from ..databases.compiled import MAX_BIGINT, CompiledSelect
from ..models import Change, TrackedTable

__all__ = [
    "count_logged", "has_more_than", "is_logged", "newest_entry", "raise_floor", "read_log",
    "read_queues", "renumber_entries", "span_of_entries", "unmoved",
]  # fmt: skip


def is_logged() -> bool:
    """Whether the log has an entry, even one that another process is moving."""
    using = router.db_for_write(Change)
    return bool(_any(using).run(entries=floors_of(using).log(1)))


def has_more_than(few: int) -> bool:
    """Whether the log has more entries than so many."""
    floors = floors_of(router.db_for_write(Change))
    with floors.connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM {floors.log(few + 1)} entry LIMIT 1 OFFSET {few:d}")
        return cursor.fetchone() is not None


@lru_cache(maxsize=8)
def _any(using: str) -> CompiledSelect:
    return CompiledSelect(Change.objects.using(using).order_by().values_list("pk")[:1])


def count_logged(view_id: int) -> int:
    """The number of entries in the log that one view will need."""
    tracked = TrackedTable.objects.values_list("table", "views")
    tables = [table for table, views in tracked if view_id in views]
    counts = Change.objects.order_by().values("table").values_list(Count("pk"))
    return sum(count for (count,) in read_log(counts, tables)) if tables else 0


def span_of_entries(tables: Collection[str] = ()) -> tuple[int, int] | None:
    """The primary keys of the first and the last entry of these tables, by default of any.

    None if there is no entry. Where finding them takes as long as looking for entries, they are any
    that are low and high enough.
    """
    entries = Change.objects.order_by()
    if not floors_of(entries.db).rise:
        return 1, MAX_BIGINT
    found = read_log(entries.values("table").values_list(Min("pk"), Max("pk")), tables)
    spans = list(zip(*found, strict=True))
    return (min(spans[0]), max(spans[1])) if spans else None


def newest_entry(tables: Collection[str]) -> int:
    """The primary key of the newest entry of these tables; 0 if there is none."""
    entries = Change.objects.order_by().values("table")
    return max((pk for (pk,) in read_log(entries.values_list(Max("pk")), tables)), default=0)


def unmoved(tables: Collection[str], newest: int) -> list[str]:
    """Which of the tables have an entry in the log up to the primary key `newest`."""
    entries = Change.objects.filter(pk__lte=newest).order_by()
    return sorted(table for (table,) in read_log(entries.values_list("table").distinct(), tables))


def read_log(rows: QuerySet[Any, Any], tables: Collection[str] = ()) -> list[list[Any]]:
    """The values that a query reads from the log: from entries of these tables, by default of any.

    It finds them faster than a filter of the query would.
    """
    rows = rows.filter(table__in=tables) if tables else rows
    return _read(rows, floors_of(rows.db).log(tables=tables))


def read_queues(rows: QuerySet[Any, Any], views: Collection[int]) -> list[list[Any]]:
    """The values that a query reads from the queues of these views."""
    return _read(rows.filter(view__in=views), floors_of(rows.db).queues(views))


def _read(rows: QuerySet[Any, Any], entries: str) -> list[list[Any]]:
    try:
        return CompiledSelect(rows).run(entries=entries)
    except EmptyResultSet:  # of no table, or no view
        return []


def raise_floor() -> None:
    """Have later statements pass none of the entries that are deleted by now."""
    floors_of(router.db_for_write(Change)).raise_floor()


def renumber_entries() -> None:
    """Have entries of the log and the queues read that were loaded with numbers below the floor."""
    floors_of(router.db_for_write(Change)).renumber()
