"""The shards of a view: their keys, the batch that a worker runs, and how far it is."""

from django.db import models

from ..databases.keys import Range, from_json
from ..json_fields import CheckpointsField, CostsField, DrainsField
from .base import Bookkeeping, WriteDatabaseManager
from .control import ViewControl

__all__ = ["ViewShard"]


class ViewShard(Bookkeeping):
    """A fixed share of a view's keys: its token, its claim, and which changes its rows reflect."""

    view = models.ForeignKey(ViewControl, models.CASCADE, related_name="shards")
    number = models.PositiveSmallIntegerField()
    #: The fencing token. Every batch advances it by one.
    token = models.BigIntegerField(default=1)
    #: Until then, assume that a worker is handling the shard or will take its message.
    resend_after = models.DateTimeField(null=True)
    #: How often in a row the message was re-sent; the interval doubles each time.
    resends = models.PositiveIntegerField(default=0)
    #: The claim: who runs the batch of `claimed_token`, since when, at which attempt. Once `token`
    #: is past it, that batch is over.
    worker = models.CharField(max_length=255, blank=True)
    claimed_at = models.DateTimeField(null=True)
    claimed_token = models.BigIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    #: How many claims there have been. It never decreases.
    claims = models.BigIntegerField(default=0)
    #: `[low, high, order, rows]`: it has the keys after `low`, up to and including `high`; null is
    #: open. How keys were compared when they were split, see `key_order`, and of how many rows.
    #: None: all keys of a view derived from `source()`, or what the hooks take.
    key_range = models.JSONField(null=True)
    #: How many rows of `ParkedKey` it has, so that a batch without any reads none.
    parked_count = models.PositiveIntegerField(default=0)

    #: The queue in which it takes turns with other long refreshes, "" for the default; None: none.
    turn_queue = models.CharField(max_length=255, null=True, db_index=True)  # noqa: DJ001
    #: When its turn should come at the latest; None if it does not wait for one.
    turn_deadline = models.DateTimeField(null=True)
    #: The token for which it was last granted a turn, and when.
    turn_token = models.BigIntegerField(default=0)
    turn_granted_at = models.DateTimeField(null=True)

    # The rest is used by views with change tracking only.

    #: How often the view's queue has been drained here.
    drain_number = models.BigIntegerField(default=0)
    #: Phases whose checkpoint is below this drain need a full refresh, for `full_refresh_reason`.
    full_refresh_after = models.BigIntegerField(default=0)
    full_refresh_reason = models.CharField(max_length=255, blank=True)
    #: The drains that some phase has yet to process.
    pending_drains = DrainsField(default=list)
    #: By phase, which drains its rows reflect and for which source. Without a fingerprint, the next
    #: run is a full refresh.
    checkpoints = CheckpointsField(default=dict)
    #: By phase, what refreshes took: a refresh is by keys while that is cheaper than a full one.
    costs = CostsField(default=dict)

    objects = WriteDatabaseManager["ViewShard"]()

    class Meta:
        ordering = ("view", "number")
        constraints = (
            models.UniqueConstraint(fields=("view", "number"), name="matviews_viewshard_number"),
        )

    def __str__(self) -> str:
        return f"shard {self.number} of {self.view}"

    @property
    def is_claimed(self) -> bool:
        """Whether a worker has claimed the batch of the current token."""
        return self.claimed_token == self.token

    @property
    def keys_within(self) -> Range:
        """The range of its keys."""
        low, high, *_others = self.key_range or (None, None)
        return low and from_json(low), high and from_json(high)

    @property
    def key_order(self) -> list[str] | None:
        """How keys were compared when they were split; None if it has all of them."""
        return self.key_range and list(self.key_range[2])
