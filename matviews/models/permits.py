"""Which views are refreshed, and which wait, while `MAX_REFRESHES` is set."""

from django.db import models

from .base import Bookkeeping, WriteDatabaseManager
from .control import ViewControl

__all__ = ["RefreshPermit"]


class RefreshPermit(Bookkeeping):
    """The permit of a queue that a view has, or its place in the line for one.

    The constraint gives a permit to one view only, so nobody has to lock anything.
    """

    view = models.OneToOneField(
        ViewControl, models.CASCADE, related_name="permit", db_constraint=False
    )
    #: The name of the queue, "" for that of views that have none.
    queue = models.CharField(max_length=255, blank=True)
    #: Which permit of the queue it has, from 0; null while the view waits for one.
    number = models.PositiveIntegerField(null=True)
    #: When a batch of the view was last about to begin in this permit; null while it waits.
    used_at = models.DateTimeField(null=True)
    #: Since when the view waits for a permit; null if it has one.
    waiting_since = models.DateTimeField(null=True)

    objects = WriteDatabaseManager["RefreshPermit"]()

    class Meta(Bookkeeping.Meta):
        constraints = (
            models.UniqueConstraint(fields=("queue", "number"), name="matviews_permit_number"),
        )

    def __str__(self) -> str:
        return f"permit {self.number} of {self.queue!r}: {self.view}"
