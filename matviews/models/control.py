"""A view as operators see it: its switches, its shards, and the heartbeat of maintenance."""

from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..conf import get_settings
from ..definition import ViewDefinition, ViewOptions
from ..json_fields import CheckpointsField, CostsField, DrainsField
from ..registry import registry
from .base import Bookkeeping, WriteDatabaseManager

__all__ = ["ControlManager", "Heartbeat", "NamedKey", "ViewControl", "ViewShard"]


class NamedKey(int):
    """A primary key that was looked up by label, so it is of this database and not from a dump."""


class ControlManager(WriteDatabaseManager["ViewControl"]):
    """Finds controls by their natural key."""

    def get_by_natural_key(self, label: str) -> "ViewControl":
        """The control of a label; the type of its primary key tells that it was looked up."""
        found = self.get(label=label)
        found.pk = NamedKey(found.pk)
        return found


class ViewControl(models.Model):
    """What an operator has set for a view. `migrate` creates a row for each registered view."""

    label = models.CharField(_("label"), max_length=255, unique=True)
    enabled = models.BooleanField(
        _("enabled"),
        default=True,
        help_text=_("If off, the view is not refreshed, and requests are refused."),
    )
    paused = models.BooleanField(
        _("paused"),
        default=False,
        help_text=_("If on, no further batch of the view starts. Requests are kept and wait."),
    )
    include_in_refresh_all = models.BooleanField(
        _("refresh with all views"),
        default=True,
        help_text=_("Whether a refresh of all views includes this one."),
    )
    shard_count = models.PositiveSmallIntegerField(
        _("shard count"),
        default=1,
        validators=[MinValueValidator(1)],
        help_text=_("How many shards of the keys are processed in parallel."),
    )
    batch_size = models.PositiveIntegerField(
        _("batch size"),
        null=True,
        blank=True,
        help_text=_("Rows per batch. Leave empty to use the default from the code."),
    )
    batch_target = models.FloatField(
        _("batch target"),
        null=True,
        blank=True,
        help_text=_("Seconds per batch. Leave empty to use the default from the code."),
    )
    freshness_target = models.DurationField(
        _("freshness target"),
        null=True,
        blank=True,
        help_text=_("How old the rows may be. Leave empty to use the default from the code."),
    )
    #: When each phase last succeeded.
    last_insert = models.DateTimeField(null=True, editable=False)
    last_update = models.DateTimeField(null=True, editable=False)
    last_delete = models.DateTimeField(null=True, editable=False)
    #: Whether `MatviewMeta.refresh_every` has been applied, which happens only once.
    default_scheduled = models.BooleanField(default=False, editable=False)
    #: By derived phase, the fingerprint of the definition that it last succeeded with.
    fingerprints = models.JSONField(default=dict, editable=False)
    #: The result of the last `verify()`.
    verification = models.JSONField(null=True, editable=False)

    objects = ControlManager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("label",)
        verbose_name = _("materialized view")
        verbose_name_plural = _("materialized views")
        permissions = (
            ("operate_viewcontrol", "Can refresh, pause, resume and stop materialized views"),
        )

    def __str__(self) -> str:
        return self.label

    def natural_key(self) -> tuple[str]:
        """The label; primary keys differ between databases."""
        return (self.label,)

    @property
    def held(self) -> bool:
        """Whether it is paused or disabled, so that none of its batches starts."""
        return self.paused or not self.enabled

    @property
    def definition(self) -> ViewDefinition | None:
        """The view's definition; None if the code no longer has it."""
        return registry.find(self.label) if self.label in registry else None

    @property
    def options(self) -> ViewOptions:
        """The options from the code; the defaults if the code no longer defines the view."""
        return self.definition.options if self.definition else ViewOptions()

    @property
    def seconds_per_batch(self) -> float:
        """How long a batch should take: by this row, else by the code, else by the settings."""
        return self.batch_target or self.options.batch_target or get_settings().BATCH_TARGET


class Heartbeat(Bookkeeping):
    """When `matviews.maintain` last ran, in one row. Unless it runs, no lost message is re-sent."""

    ran_at = models.DateTimeField()

    objects = WriteDatabaseManager["Heartbeat"]()

    def __str__(self) -> str:
        return f"maintenance ran at {self.ran_at}"


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

    # The rest is used by views with change tracking only.

    #: How often the view's queue has been drained here.
    drain_number = models.BigIntegerField(default=0)
    #: Phases whose checkpoint is below this drain need a full refresh, for `full_refresh_reason`.
    full_refresh_after = models.BigIntegerField(default=0)
    full_refresh_reason = models.CharField(max_length=255, blank=True)
    #: The drains that some phase has yet to process.
    pending = DrainsField(default=list)
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
