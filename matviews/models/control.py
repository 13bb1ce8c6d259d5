"""A view as operators see it: its switches and its shards."""

from typing import Any

from django.core.validators import MinValueValidator
from django.db import models, router
from django.db.models import Case, F, Value, When
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..conf import get_settings
from ..databases.clock import UtcNow
from ..databases.keys import Range, from_json
from ..definition import ViewDefinition, ViewOptions
from ..json_fields import CheckpointsField, CostsField, DrainsField, WaitField
from ..quiet_hours import QuietHours, zone_fault
from ..registry import registry
from ..states import RefreshStrategy
from .base import Bookkeeping, WriteDatabaseManager
from .totals import Totals

__all__ = ["ControlManager", "NamedKey", "ViewControl", "ViewShard"]


class NamedKey(int):
    """A primary key that was looked up by label, so it is of this database and not from a dump."""


def _pause(paused: Any, paused_by: Any = "") -> dict[str, Any]:
    """What a change of `paused` sets, in this order: MariaDB and MySQL assign from left to right,
    and must compare with the old value.
    """
    since, by = (Value(None), "") if paused is False else (UtcNow(), paused_by or "")
    kept = When(paused=paused, then=F("paused_at"))
    return {
        "paused_at": Case(kept, default=since, output_field=models.DateTimeField(null=True)),
        "paused_by": Case(When(paused=paused, then=F("paused_by")), default=Value(by)),
        "paused": paused,
    }


class ControlQuerySet(models.QuerySet["ViewControl"]):
    """Changes of `paused` record since when, and by whom if that is given."""

    def update(self, **values: Any) -> int:
        """As in Django; `paused_by` without `paused_at` is who pauses or resumes."""
        if "paused" in values and "paused_at" not in values:
            values |= _pause(values.pop("paused"), values.pop("paused_by", ""))
        return super().update(**values)


class ControlManager(WriteDatabaseManager["ViewControl"]):
    """Finds controls by their natural key; its changes of `paused` are recorded."""

    def get_queryset(self) -> ControlQuerySet:
        return ControlQuerySet(self.model, using=self._db or router.db_for_write(self.model))

    def get_by_natural_key(self, label: str) -> "ViewControl":
        """The control of a label; `NamedKey` as its primary key says that it was looked up."""
        found = self.get(label=label)
        found.pk = NamedKey(found.pk)
        return found


class ViewControl(Totals):
    """What an operator has set for a view. `migrate` creates a row for each registered view."""

    label = models.CharField(_("label"), max_length=255, unique=True)
    enabled = models.BooleanField(
        _("enabled"),
        default=True,
        help_text=_("If off, the view is not refreshed, and requests are refused."),
    )
    #: Since when it is paused, by the database's clock, and by whom; blank if that is not known.
    #: Before `paused`, for `_pause`.
    paused_at = models.DateTimeField(null=True, editable=False)
    paused_by = models.CharField(max_length=255, blank=True, editable=False)
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
    strategy = models.CharField(
        _("strategy"),
        max_length=16,
        blank=True,
        choices=RefreshStrategy.choices,
        help_text=_(
            "How the view is refreshed after a change. Leave empty to use the default from the "
            "code, or what costs least."
        ),
    )
    queue = models.CharField(
        _("queue"),
        max_length=255,
        blank=True,
        help_text=_(
            "The Celery queue of its tasks. Leave empty to use the default from the code. A worker "
            "must listen to it."
        ),
    )
    quiet_from = models.TimeField(
        _("quiet from"),
        null=True,
        blank=True,
        help_text=_(
            "From this time of day on, refreshes wait unless they are forced, and a late view is "
            "not a fault. Leave both empty to use the default from the code; the same time twice "
            "means no quiet hours."
        ),
    )
    quiet_until = models.TimeField(
        _("quiet until"),
        null=True,
        blank=True,
        help_text=_("If this is not later than the start, the quiet hours end on the next day."),
    )
    quiet_zone = models.CharField(
        _("time zone of the quiet hours"),
        max_length=63,
        blank=True,
        help_text=_("As in Europe/Berlin. Leave empty to use the time zone of the project."),
    )
    #: When each phase last succeeded.
    last_insert = models.DateTimeField(null=True, editable=False)
    last_update = models.DateTimeField(null=True, editable=False)
    last_delete = models.DateTimeField(null=True, editable=False)
    #: As of when the rows of each phase are: it has processed every change that committed before.
    #: Stays as it is while keys are parked.
    insert_as_of = models.DateTimeField(null=True, editable=False)
    update_as_of = models.DateTimeField(null=True, editable=False)
    delete_as_of = models.DateTimeField(null=True, editable=False)
    #: How often in a row refreshes have failed, and since when. These and the next six change in
    #: the transactions that end refreshes; times are by the database's clock.
    failures = models.PositiveIntegerField(default=0, editable=False)
    failing_since = models.DateTimeField(null=True, editable=False)
    #: The same without failures whose cause lies outside the view.
    own_failures = models.PositiveIntegerField(default=0, editable=False)
    own_failing_since = models.DateTimeField(null=True, editable=False)
    #: The phases that have failed and not succeeded since.
    failed_phases = models.JSONField(default=list, editable=False)
    #: The digest of the definition that failed last.
    failed_definition = models.CharField(max_length=64, blank=True, editable=False)
    #: Until then, refreshes that are not forced wait: after a failure, or for `wait`.
    retry_at = models.DateTimeField(null=True, editable=False)
    wait = WaitField(null=True, editable=False)
    #: Since when the governor lets its refreshes wait.
    governed_since = models.DateTimeField(null=True, editable=False)
    #: How often in a row only its own refreshes have changed its source, see `engine.echoes`.
    echoes = models.PositiveSmallIntegerField(default=0, editable=False)
    #: Since when refreshes wait for a person, because the view kept failing.
    suspended_at = models.DateTimeField(null=True, editable=False)
    #: Whether `MatviewMeta.refresh_every` has been applied, which happens only once.
    default_schedules_created = models.BooleanField(default=False, editable=False)
    #: Whether the view is additive, and why; None until that is decided.
    additive = models.BooleanField(null=True, editable=False)
    additive_reason = models.CharField(max_length=255, blank=True, editable=False)
    #: By derived phase, the fingerprint of the definition that it last succeeded with.
    fingerprints = models.JSONField(default=dict, editable=False)
    #: The result of the last `verify()`.
    verification = models.JSONField(null=True, editable=False)
    #: Since when rows are known to differ from the source for no pending change, and how many, as
    #: the last verification in the background counted them. A full verification that finds none,
    #: or a repair, clears it.
    differing = models.JSONField(null=True, editable=False)

    objects = ControlManager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("label",)
        verbose_name = _("materialized view")
        verbose_name_plural = _("materialized views")
        permissions = (
            ("operate_viewcontrol", "Can refresh, pause, resume and stop materialized views"),
            ("resume_viewcontrol", "Can resume suspended materialized views"),
        )

    def __str__(self) -> str:
        return self.label

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the row. If that pauses the view, it is paused since now, and by `paused_by`."""
        fields = kwargs.get("update_fields")
        if fields is not None and "paused" not in fields:
            super().save(*args, **kwargs)
            return
        if fields is not None:
            kwargs["update_fields"] = {*fields, "paused_at", "paused_by"}
        if self._state.adding:
            self.paused_at = UtcNow() if self.paused else None
        else:
            changes = _pause(self.paused, self.paused_by)
            self.paused_at, self.paused_by = changes["paused_at"], changes["paused_by"]
        super().save(*args, **kwargs)
        self.refresh_from_db(fields=("paused_at", "paused_by"))

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
    def pinned_strategy(self) -> RefreshStrategy | None:
        """The strategy of every refresh: from this row, or else the code; None to choose by
        cost.
        """
        return RefreshStrategy(self.strategy) if self.strategy else self.options.strategy

    @property
    def is_additive(self) -> bool:
        """Whether the view is to be additive, if it can be: by the code, else as was decided."""
        by_code = self.options.additive
        return bool(self.additive if by_code is None else by_code)

    @property
    def queue_name(self) -> str | None:
        """The Celery queue of its tasks: by this row, else by the code, else by the settings."""
        return self.queue or self.options.queue or get_settings().CELERY_QUEUE

    @property
    def quiet_hours(self) -> QuietHours | None:
        """The quiet hours: by this row, else by the code; None without any."""
        if self.quiet_from is None or self.quiet_until is None:
            return self.options.quiet_hours
        zone = self.quiet_zone or timezone.get_default_timezone_name()
        if self.quiet_from == self.quiet_until or zone_fault(zone):
            return None
        return QuietHours(self.quiet_from, self.quiet_until, zone)

    @property
    def has_target(self) -> bool:
        """Whether it has a freshness target of its own: by this row, or by the code."""
        return bool(self.freshness_target or self.options.targets)

    @property
    def seconds_per_batch(self) -> float:
        """How long a batch should take: by this row, else by the code, else by the settings."""
        return self.batch_target or self.options.batch_target or get_settings().BATCH_TARGET


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
