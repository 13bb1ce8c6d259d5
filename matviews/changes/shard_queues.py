"""The queues of shards: if a view has several, each gets every change of the view's queue.

A change goes from the log to the view's queue, from there to the queues of all shards, and each
shard drains its own. The second step is a short transaction of its own, as the first one is: if a
batch emptied the view's queue, the batches of other shards would wait for its end.

No change is lost while the number of shards changes. A transaction that distributes reads the
shards after the entries, whose transactions have committed by then. A shard that it does not see
was created later, and begins with a full refresh: it sees what these transactions have written. So
does a shard that is left alone after several were seen. If it sees only one shard, it moves
nothing, even if somebody found several earlier. What is distributed twice is processed twice, which
is harmless.
"""

from collections.abc import Collection, Sequence
from typing import Any

from django.db import connections, router
from django.db.models import Exists, OuterRef

from ..databases import floors_of
from ..databases.compiled import CompiledSelect
from ..models import ShardChange, ViewChange, ViewShard
from .change_log import (
    QueuedChange,
    delete_rows,
    drain,
    read_queue,
)

__all__ = [
    "delete_shard_queues",
    "distribute",
    "drain_shard",
    "enqueue_for_shards",
    "has_queued",
    "sweep_shard_queues",
]

ENTRIES_AT_ONCE = 1_000


def has_queued(view_id: int) -> bool:
    """Whether a view's queue has entries that are to be distributed."""
    rows = ViewChange.objects.filter(view=view_id).order_by().values_list("pk")[:1]
    return bool(CompiledSelect(rows).run(entries=floors_of(rows.db).queues([view_id])))


def distribute(view_id: int) -> None:
    """Move the entries of a view's queue to the queues of its shards, in a short transaction.

    If the view has only one shard by now, they stay: its batches read only the view's queue.
    """
    using = router.db_for_write(ViewChange)
    if not connections[using].features.has_select_for_update:
        # On SQLite, a transaction that begins with a read cannot always write.
        ViewChange.objects.filter(pk=0).update(table="")
    keys, queued = read_queue(view_id)
    # Not earlier: see above.
    shards = list(ViewShard.objects.filter(view=view_id).order_by("pk").values_list("pk"))
    if len(shards) > 1:
        enqueue_for_shards([pk for (pk,) in shards], queued)
        delete_rows(ViewChange, keys)


def enqueue_for_shards(shards: Sequence[int], queued: Sequence[QueuedChange]) -> None:
    """Insert each change into the queue of each shard."""
    entries = [
        ShardChange(
            shard_id=shard, table=change.table, links=_stored_links(change),
            count=_count(change), logged_at=change.logged_at,
        )
        for shard in shards
        for change in queued
    ]  # fmt: skip
    ShardChange.objects.bulk_create(entries, batch_size=ENTRIES_AT_ONCE)


def _stored_links(change: QueuedChange) -> Any:
    """The links of a change, as a queue has them."""
    if change.table and isinstance(change.links, list):
        return [change.columns, *change.links]
    return change.links


def _count(change: QueuedChange) -> int:
    if isinstance(change.links, list):
        return len(change.links)
    return 1 if change.table else 0


def drain_shard(shard_id: int) -> list[QueuedChange]:
    """Empty a shard's queue. Call it in the transaction that computes its rows, before it does.

    Only batches of the shard call it, which have locked its row.
    """
    return drain(ShardChange, shard_id, f"shard_id = {int(shard_id)}")


def delete_shard_queues(shards: Collection[int]) -> None:
    """Empty the queues of shards that will begin with full refreshes, or are deleted."""
    rows = ShardChange.objects.filter(shard__in=shards).values_list("pk", flat=True)
    delete_rows(ShardChange, list(rows))


def sweep_shard_queues() -> None:
    """Delete entries of shards that are deleted, or that remain alone and read the view's queue.

    The process that distributed them saw several shards. So the number became one afterwards, when
    the shard that remains lost its checkpoints: its full refresh includes these changes.
    """
    several = ViewShard.objects.filter(view=OuterRef("view"), number__gt=0)
    read = ViewShard.objects.filter(Exists(several.order_by()), pk=OuterRef("shard"))
    left = ShardChange.objects.filter(~Exists(read.order_by()))
    delete_rows(ShardChange, list(left.values_list("pk", flat=True)))
