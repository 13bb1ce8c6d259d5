"""The bookkeeping tables. The database is the truth; a message is only a hint to look here."""

from typing import TypeVar

from django.core.validators import MinValueValidator
from django.db import models, router

from .phases import Phase
from .states import RefreshState, RunState, check_transition

__all__ = ["PhaseRun", "Refresh", "Stripe", "Trigger", "ViewControl"]

M = TypeVar("M", bound=models.Model)


class PrimaryManager(models.Manager[M]):
    """Reads where it writes: a replica that lags would answer with an old token."""

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().using(router.db_for_write(self.model))


class Trigger(models.TextChoices):
    """What asked for a refresh."""

    SCHEDULE = "schedule"
    ADMIN = "admin"
    COMMAND = "command"
    DEPENDENCY = "dependency"
    API = "api"


class ViewControl(models.Model):
    """By this row an operator steers a view. Made after `migrate`, one per registered view."""

    label = models.CharField(max_length=255, unique=True)
    enabled = models.BooleanField(default=True, help_text="Whether the view is refreshed at all.")
    include_in_batch = models.BooleanField(
        default=True, help_text="Whether a refresh of all views includes this one."
    )
    stripe_count = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1)],
        help_text="Shares of the keys that are worked on side by side.",
    )
    batch_size = models.PositiveIntegerField(
        null=True, blank=True, help_text="Rows per batch. Empty: as the code says."
    )
    batch_target = models.FloatField(
        null=True, blank=True, help_text="Seconds per batch. Empty: as the code says."
    )
    freshness_target = models.DurationField(
        null=True,
        blank=True,
        help_text="How old the last success may be. Empty: as the code says.",
    )
    last_insert = models.DateTimeField(null=True, editable=False)
    last_update = models.DateTimeField(null=True, editable=False)
    last_delete = models.DateTimeField(null=True, editable=False)

    objects = PrimaryManager["ViewControl"]()

    class Meta:
        ordering = ("label",)

    def __str__(self) -> str:
        return self.label


class Stripe(models.Model):
    """A fixed share of a view's keys, its token, and who works in it.

    The announcement (`worker`, `announced_at`, `attempts`) is about the batch of
    `announced_token`; once the token has moved past that, the batch is over. Before `watch_after`
    the stripe is taken to be in good hands.
    """

    view = models.ForeignKey(ViewControl, models.CASCADE, related_name="stripes")
    number = models.PositiveSmallIntegerField()
    token = models.BigIntegerField(default=1)
    watch_after = models.DateTimeField(null=True)
    resends = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=255, blank=True)
    announced_at = models.DateTimeField(null=True)
    announced_token = models.BigIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)

    objects = PrimaryManager["Stripe"]()

    class Meta:
        ordering = ("view", "number")
        constraints = (
            models.UniqueConstraint(fields=("view", "number"), name="matviews_stripe_number"),
        )

    def __str__(self) -> str:
        return f"stripe {self.number} of {self.view}"

    @property
    def announced(self) -> bool:
        """Whether a worker has announced the batch of the present token."""
        return self.announced_token == self.token


class Refresh(models.Model):
    """One request to bring a view up to date: who asked, which phases, how it ended."""

    # A constraint would lock the control on MariaDB until the transaction that asks has ended, and
    # no worker could close another refresh of the view meanwhile.
    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="refreshes", db_constraint=False
    )
    phases = models.JSONField()
    trigger = models.CharField(max_length=16, choices=Trigger.choices)
    requested_by = models.CharField(max_length=255, blank=True)
    batch_size = models.PositiveIntegerField(null=True)
    state = models.CharField(max_length=16, choices=RefreshState.choices, default=RefreshState.OPEN)
    requested_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    error = models.TextField(blank=True)

    objects = PrimaryManager["Refresh"]()

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=("view", "state"), name="matviews_refresh_state"),)

    def __str__(self) -> str:
        return f"refresh {self.pk} of {self.view}"


class PhaseRun(models.Model):
    """One phase of one refresh in one stripe: where it stands and what it did.

    A run that is merged into another does nothing itself and shares the other's end. One that has
    caught up has done a batch smaller than it might have been; it goes on while `needs_*` says so,
    but the next phase no longer waits for it.
    """

    refresh = models.ForeignKey(Refresh, models.CASCADE, related_name="runs")
    stripe = models.ForeignKey(Stripe, models.CASCADE, related_name="runs")
    phase = models.CharField(max_length=8, choices=Phase.choices)
    state = models.CharField(max_length=16, choices=RunState.choices, default=RunState.PENDING)
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    cursor = models.JSONField(null=True)
    batch_size = models.PositiveIntegerField(null=True)
    pace = models.JSONField(default=dict)
    batches = models.PositiveIntegerField(default=0)
    rows = models.BigIntegerField(default=0)
    estimate = models.BigIntegerField(null=True)
    seconds = models.FloatField(default=0.0)
    failures = models.PositiveSmallIntegerField(default=0)
    caught_up = models.BooleanField(default=False)
    ran_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

    objects = PrimaryManager["PhaseRun"]()

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=("stripe", "phase"), name="matviews_run_phase"),)
        constraints = (
            models.UniqueConstraint(
                fields=("refresh", "stripe", "phase"), name="matviews_run_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.phase} of refresh {self.refresh_id}"

    @property
    def active(self) -> bool:
        """Whether batches are still to come."""
        return RunState(self.state).active

    @property
    def rate(self) -> float | None:
        """Rows per second of work, None before the first."""
        return self.rows / self.seconds if self.seconds else None

    def move_to(self, state: RunState) -> None:
        """Change the state, if the table of transitions allows it.

        Raises:
            IllegalTransition: it does not.
        """
        check_transition(RunState(self.state), state)
        self.state = state
