"""Alarms: problems of health that have lasted, and who was notified of them."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from .base import Bookkeeping, WriteDatabaseManager

__all__ = ["Alarm", "AlarmEvent"]


class AlarmEvent(models.TextChoices):
    """What happened to an alarm."""

    RAISED = "raised"
    REPEATED = "repeated"
    ENDED = "ended"


class Alarm(Bookkeeping):
    """A problem of health, from the first time that maintenance has seen it to its end.

    It is raised, and people are notified, once it has lasted.
    """

    #: What the problem is: the `kind` of a `health.Problem`. While it lasts, that of a view may
    #: change, as from "failed" to "suspended".
    kind = models.CharField(max_length=32)
    #: The label of the view; "" if it concerns all.
    view = models.CharField(max_length=255, blank=True)
    #: "state" for the state of a view, or else the kind: a view has one alarm for each.
    slot = models.CharField(max_length=32)
    #: The problem in a sentence.
    text = models.TextField()
    #: The error that the view fails with, as in the history; "" without one.
    error = models.TextField(blank=True)
    #: Labels of the views that are late because of it, and have no alarm of their own for that.
    views = models.JSONField(default=list)
    #: When the problem was first seen.
    since = models.DateTimeField()
    #: Since when it has not been seen any more; None while it is.
    gone_since = models.DateTimeField(null=True)
    raised_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    #: True until it ends, then None: so no two of the same are open at once.
    is_open = models.BooleanField(null=True, default=True)
    #: When people were last notified, and of what.
    notified_at = models.DateTimeField(null=True)
    event = models.CharField(max_length=8, choices=AlarmEvent.choices, blank=True)
    #: What could not be delivered then: "signal", "mail" or "hook", separated by commas.
    undelivered = models.CharField(max_length=32, blank=True)
    #: The maintenance task that notifies people now, and when one last began to.
    claim = models.CharField(max_length=32, blank=True)
    claimed_at = models.DateTimeField(null=True)

    objects = WriteDatabaseManager["Alarm"]()

    class Meta:
        ordering = ("id",)
        verbose_name = _("alarm")
        verbose_name_plural = _("alarms")
        constraints = (
            models.UniqueConstraint(fields=("view", "slot", "is_open"), name="matviews_alarm_open"),
        )

    def __str__(self) -> str:
        return f"{self.view or 'matviews'}: {self.kind}"
