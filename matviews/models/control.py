"""A view as operators see it: its settings, and the results of its refreshes."""

from typing import Any

from django.core.validators import MinValueValidator
from django.db import models, router
from django.db.models import Case, F, Value, When
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..conf import get_settings
from ..databases.clock import UtcNow
from ..definition import ViewDefinition, ViewOptions
from ..json_fields import WaitField
from ..quiet_hours import QuietHours, zone_fault
from ..registry import registry
from ..states import RefreshStrategy
from .base import WriteDatabaseManager
from .totals import Totals

__all__ = ["ControlManager", "NamedKey", "ViewControl"]


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
            "From this time of day on, refreshes wait unless they are forced, and the view does "
            "not count as late. Leave both empty to use the default from the code; the same time "
            "twice means no quiet hours."
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
