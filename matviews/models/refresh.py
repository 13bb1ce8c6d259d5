"""Requests for a refresh, and the runs of their phases."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..json_fields import CheckpointField, WaitField
from ..phases import Phase
from ..states import RefreshState, RefreshStrategy, RunState, check_transition
from .base import Bookkeeping, WriteDatabaseManager
from .control import ViewControl
from .shard import ViewShard

__all__ = ["Origin", "PhaseRun", "Refresh"]


class Origin(models.TextChoices):
    """What requested a refresh."""

    SCHEDULE = "schedule", _("schedule")
    ADMIN = "admin", _("admin")
    COMMAND = "command", _("command")
    API = "api", "API"
    #: A refresh of a view that it reads, see `Refresh.upstream_refreshes`.
    DEPENDENCY = "dependency", _("dependency")


class Refresh(Bookkeeping):
    """A request to bring a view up to date, with those that joined it, and its outcome."""

    # A constraint would lock the control on MariaDB until the transaction that requests has ended,
    # and no worker could close another refresh of the view meanwhile.
    view = models.ForeignKey(
        ViewControl,
        models.CASCADE,
        related_name="refreshes",
        db_constraint=False,
        db_index=False,
        verbose_name=_("materialized view"),
    )
    phases = models.JSONField()
    #: Of the first request, as is `requested_by`.
    origin = models.CharField(_("origin"), max_length=16, choices=Origin.choices)
    requested_by = models.CharField(max_length=255, blank=True)
    #: Rows per batch, if the request gave it.
    batch_size = models.PositiveIntegerField(null=True)
    state = models.CharField(
        _("state"), max_length=16, choices=RefreshState.choices, default=RefreshState.OPEN
    )
    requested_at = models.DateTimeField(_("requested at"))
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    stop_requested = models.BooleanField(default=False)
    #: Whether it begins even while the view waits after a failure or is suspended.
    forced = models.BooleanField(default=False)
    #: Primary keys of the refreshes that it follows: of views upstream. Some may have been deleted.
    upstream_refreshes = models.JSONField(default=list)
    #: Whether it begins only when those have ended or cannot continue.
    waits_for_upstream = models.BooleanField(default=False)
    #: The refresh whose runs do its work. If it was merged before it began, it has no runs of its
    #: own and ends with that one; if its phases were merged one by one, this is set when it ends.
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    #: How many requests it stands for: the first, and those that joined it.
    requests = models.PositiveIntegerField(default=1)
    #: The sum of the `claims` of the view's shards at the request. While the sum is the same, no
    #: batch can have begun this refresh.
    claims_at_request = models.BigIntegerField(null=True)
    error = models.TextField(blank=True)
    #: The load or limit that still held when it had waited long enough and proceeded.
    proceeded_despite = WaitField(null=True)
    #: How many earlier refreshes it stands for that failed in the same way, and when the first of
    #: them did.
    repeats = models.PositiveIntegerField(default=0)
    repeated_since = models.DateTimeField(null=True)

    objects = WriteDatabaseManager["Refresh"]()

    class Meta:
        ordering = ("id",)
        verbose_name = _("refresh")
        verbose_name_plural = _("refreshes")
        indexes = (
            models.Index(fields=("view", "state"), name="matviews_refresh_state"),
            models.Index(fields=("view", "id"), name="matviews_refresh_history"),
            models.Index(fields=("state", "finished_at"), name="matviews_refresh_ended"),
        )

    def __str__(self) -> str:
        return str(_("refresh %(refresh)s of %(view)s") % {"refresh": self.pk, "view": self.view})

    @property
    def pinned_size(self) -> int | None:
        """Rows per batch from the request, the control or the code; None if the size adapts."""
        return self.batch_size or self.view.batch_size or self.view.options.batch_size


class PhaseRun(Bookkeeping):
    """One phase of one refresh in one shard: how far it is and what it did."""

    refresh = models.ForeignKey(Refresh, models.CASCADE, related_name="runs", db_index=False)
    shard = models.ForeignKey(ViewShard, models.CASCADE, related_name="runs", db_index=False)
    phase = models.CharField(max_length=8, choices=Phase.choices)
    state = models.CharField(max_length=16, choices=RunState.choices, default=RunState.PENDING)
    #: The run that does its work, and whose end it shares.
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    #: Where the next batch continues.
    cursor = models.JSONField(null=True)
    #: The current limit of a batch.
    batch_size = models.PositiveIntegerField(null=True)
    #: What the pacer has learnt; the next run of the phase starts from it.
    pace = models.JSONField(default=dict)
    #: `[number, limit, rows, seconds]` of batches spread over the run.
    samples = models.JSONField(default=list)
    batches = models.PositiveIntegerField(default=0)
    rows = models.BigIntegerField(default=0)
    #: Rows, or keys of a derived phase, that there will be in the end; None if unknown.
    estimate = models.BigIntegerField(null=True)
    #: Seconds of work in batches.
    seconds = models.FloatField(default=0.0)
    #: How often in a row the current batch has failed.
    failures = models.PositiveSmallIntegerField(default=0)
    #: How often a batch was rolled back or killed its worker, in all.
    failed_batches = models.PositiveIntegerField(default=0)
    #: Whether the last batch wrote fewer rows than its limit. The run continues while `needs_*`
    #: says so, but the next phase no longer waits for it.
    caught_up = models.BooleanField(default=False)
    last_batch_at = models.DateTimeField(null=True)
    #: It includes every change that committed before; by the database's own clock.
    as_of = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)
    #: Whether it failed for a cause outside the view: a lost connection, a full disk, a right.
    external_cause = models.BooleanField(default=False)

    # The rest is used by phases derived from source() only.

    #: The definition that the run works by, and how often that changed during the run.
    fingerprint = models.CharField(max_length=64, blank=True)
    restarts = models.PositiveSmallIntegerField(default=0)
    keys_scanned = models.BigIntegerField(default=0)
    #: Ranges of keys that need nothing more in this refresh.
    inserted_ranges = models.JSONField(default=list)
    #: The name of the staging table.
    stage = models.CharField(max_length=255, blank=True)
    #: What the shard's `checkpoints` will have for the phase when the run has succeeded.
    checkpoint = CheckpointField(null=True)
    #: Only keys that got dirty after this drain are processed; None for a full refresh, whose
    #: reason is in `full_refresh_reason`.
    dirty_after = models.BigIntegerField(null=True)
    #: How it was done; blank before it starts, and if nothing had changed.
    strategy = models.CharField(max_length=16, blank=True, choices=RefreshStrategy.choices)
    #: Seconds that each strategy was expected to take when the run started, as far as known.
    expected_seconds = models.JSONField(default=dict)
    full_refresh_reason = models.CharField(max_length=255, blank=True)
    #: How many keys it has left out, because their rows cannot be computed or written.
    parked = models.PositiveIntegerField(default=0)

    objects = WriteDatabaseManager["PhaseRun"]()

    class Meta:
        ordering = ("id",)
        verbose_name = _("phase run")
        verbose_name_plural = _("phase runs")
        indexes = (models.Index(fields=("shard", "phase"), name="matviews_run_phase"),)
        constraints = (
            models.UniqueConstraint(fields=("refresh", "shard", "phase"), name="matviews_run_once"),
        )

    def __str__(self) -> str:
        return f"{self.phase} of refresh {self.refresh_id}"

    @property
    def active(self) -> bool:
        """Whether more batches may follow."""
        return RunState(self.state).active

    @property
    def done(self) -> int:
        """What `estimate` estimates: keys checked for a derived phase, else rows written."""
        return self.keys_scanned if self.fingerprint else self.rows

    def move_to(self, state: RunState) -> None:
        """Change the state if `TRANSITIONS` allows it.

        Raises:
            IllegalTransition: it does not allow that.
        """
        check_transition(RunState(self.state), state)
        self.state = state
