"""Verifications in the background that are requested or running."""

from django.db import models

from ..json_fields import WaitField
from .base import Bookkeeping, WriteDatabaseManager
from .control import ViewControl
from .refresh import Origin

__all__ = ["VerifyRun"]


class VerifyRun(Bookkeeping):
    """A verification of a view, from its request to its end: then its row is deleted.

    A message has its primary key and its token, and only the first one with that token is obeyed.
    A worker advances the token when it takes the message, and must hold it to save anything.
    """

    view = models.OneToOneField(
        ViewControl, models.CASCADE, related_name="verify_run", db_constraint=False
    )
    token = models.BigIntegerField(default=1)
    #: About how many keys to compare; None for all.
    sample = models.PositiveIntegerField(null=True)
    #: Whether to write the rows that differ.
    repair = models.BooleanField(default=False)
    origin = models.CharField(max_length=16, choices=Origin.choices)
    requested_by = models.CharField(max_length=255, blank=True)
    requested_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    #: Who works on it, or did last.
    worker = models.CharField(max_length=255, blank=True)
    #: Until then, assume that a worker has it or will take its message; by the database's clock.
    resend_after = models.DateTimeField(null=True)
    #: How often in a row it was taken without getting any further.
    attempts = models.PositiveIntegerField(default=0)
    #: How far it is, and what it has found.
    progress = models.JSONField(default=dict)
    #: Why it waits, for quiet hours or the governor, and since when it waits for the governor.
    wait = WaitField(null=True)
    waiting_since = models.DateTimeField(null=True)
    #: The load that still held when it had waited long enough and proceeded.
    proceeded_despite = WaitField(null=True)

    objects = WriteDatabaseManager["VerifyRun"]()

    def __str__(self) -> str:
        return f"verification of {self.view}"
