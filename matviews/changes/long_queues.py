"""Queues that grow because nobody drains them: one entry for all keys takes the place of theirs."""

from django.db.models import Count, Q, Sum

from ..models import ShardChange, ViewChange
from .change_log import Queue, QueuedChange, drain_queue, enqueue, too_many
from .shard_queues import drain_shard, enqueue_for_shards

__all__ = [
    "collapse_queue", "collapse_shard_queue", "overlong_queues", "overlong_shard_queues",
]  # fmt: skip

MAX_QUEUED_CHANGES = 100_000  # of a view or shard; beyond that, its next refresh is full


def overlong_queues() -> list[int]:
    """The views whose queues are too long, because nobody refreshes them."""
    return _overlong(ViewChange, "view")


def overlong_shard_queues() -> list[int]:
    """The shards whose queues are too long, because their batches fail or do not run."""
    return _overlong(ShardChange, "shard")


def _overlong(model: type[Queue], owner: str) -> list[int]:
    counted = model.objects.order_by().values(owner)
    counted = counted.annotate(changes=Sum("count"), entries=Count("pk"))
    overlong = Q(changes__gt=MAX_QUEUED_CHANGES) | Q(entries__gt=MAX_QUEUED_CHANGES)
    return list(counted.filter(overlong).values_list(owner, flat=True))


def collapse_queue(view_id: int) -> None:
    """Replace a view's queue by one entry for all keys, in a short transaction."""
    if queued := drain_queue(view_id):
        oldest = min(change.logged_at for change in queued)
        enqueue({view_id}, too_many(MAX_QUEUED_CHANGES), oldest)


def collapse_shard_queue(shard_id: int) -> None:
    """Replace a shard's queue by one entry for all keys, while nobody else holds the shard."""
    if queued := drain_shard(shard_id):
        oldest = min(change.logged_at for change in queued)
        collapsed = QueuedChange("", [], too_many(MAX_QUEUED_CHANGES), oldest)
        enqueue_for_shards([shard_id], [collapsed])
