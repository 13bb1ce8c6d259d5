"""The signs of life of maintenance, workers, beat and the broker."""

from django.db import models

from .base import Bookkeeping, WriteDatabaseManager

__all__ = ["Heartbeat"]


class Heartbeat(Bookkeeping):
    """The last signs of life of maintenance, beat and the broker, in one row.

    All times are the database's. Unless maintenance runs, no lost message is re-sent.
    """

    #: When `matviews.maintain` last ran to its end.
    maintenance_ended_at = models.DateTimeField(null=True)
    #: When a worker last began it.
    maintenance_began_at = models.DateTimeField(null=True)
    #: The triggers were in place after this; None if they were never checked.
    triggers_seen_at = models.DateTimeField(null=True)
    #: When beat last began to send its message.
    beat_began_at = models.DateTimeField(null=True)
    #: When the broker last took that message from beat.
    beat_sent_at = models.DateTimeField(null=True)
    #: When a worker last polled for refreshes that are due on change, and when a process of the
    #: command with --follow did; each is recorded every few seconds.
    pulsed_at = models.DateTimeField(null=True)
    followed_at = models.DateTimeField(null=True)
    #: When a process other than beat last failed to send a message, and why; None once a process
    #: that failed has sent another.
    send_failed_at = models.DateTimeField(null=True)
    send_error = models.CharField(max_length=300, blank=True)

    objects = WriteDatabaseManager["Heartbeat"]()

    def __str__(self) -> str:
        return f"maintenance ran at {self.maintenance_ended_at}"
