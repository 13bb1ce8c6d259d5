"""Reading the changes that a view has yet to process, without draining them."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from django.db import router
from django.db.models import F, Func, QuerySet, Sum, TextField

from ..databases import dialect_of
from ..databases.base.triggers import MAX_DISTINCT_CHANGES
from ..models import Change, ShardChange, TrackedTable, ViewChange
from .change_log import QueuedChange, as_change, from_hex, too_many

__all__ = ["waiting_changes"]


def waiting_changes(view_id: int, tables: Collection[str]) -> list[QueuedChange]:
    """The entries of the log that concern a view, and those of its queue and its shards' queues.

    Read in one snapshot, they are all changes of the tables that no batch of the view has drained.
    """
    concerned = {
        record.table: record
        for record in TrackedTable.objects.filter(table__in=tables)
        if view_id in record.views
    }
    logged = Change.objects.filter(table__in=list(concerned))
    queued = ViewChange.objects.filter(view=view_id)
    of_shards = ShardChange.objects.filter(shard__view=view_id)
    rows = (logged, queued, of_shards)
    if sum(each.aggregate(total=Sum("count"))["total"] or 0 for each in rows) > (
        MAX_DISTINCT_CHANGES
    ):
        reason = too_many(MAX_DISTINCT_CHANGES)
        return [QueuedChange("", [], reason, datetime.min.replace(tzinfo=UTC))]
    return [
        *(as_change(*entry) for entry in _entries(queued)),
        *(as_change(*entry) for entry in _entries(of_shards)),
        *(
            as_change(table, links, logged_at)
            for table, links, logged_at, changed in _entries(logged, "changed")
            if view_id in concerned[table].views_reading(changed)
        ),
    ]


def _entries(rows: QuerySet[Any], *others: str) -> list[tuple[Any, ...]]:
    """The table, links and time of each row, and `others`."""
    links: Any = F("links")
    if not dialect_of(router.db_for_write(Change)).json_may_be_bytes:
        return list(rows.order_by().values_list("table", links, "logged_at", *others))
    links = Func(links, function="HEX", output_field=TextField())
    found = rows.order_by().values_list("table", links, "logged_at", *others)
    return [(table, from_hex(text), *rest) for table, text, *rest in found]
