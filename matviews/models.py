"""The bookkeeping tables. The database is the truth; a message is only a hint to look here."""

from collections.abc import Iterator
from datetime import timedelta
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, router
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy, override

from .conf import get_settings
from .databases import dialect_of
from .databases.clock import UtcNow
from .definition import ViewDefinition, ViewOptions
from .json_fields import CheckpointField, CheckpointsField, DrainsField
from .limits import REFRESH_INTERVAL
from .phases import Phase
from .registry import registry
from .states import RefreshState, RunState, check_transition

__all__ = [
    "LONGEST_JITTER",
    "Bookkeeping",
    "Change",
    "DirtyKeys",
    "Heartbeat",
    "LogSecret",
    "NamedKey",
    "Origin",
    "Period",
    "PhaseRun",
    "Refresh",
    "RefreshSchedule",
    "TrackedTable",
    "ViewChange",
    "ViewControl",
    "ViewShard",
]  # fmt: skip

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

M = TypeVar("M", bound=models.Model)


class PrimaryManager(models.Manager[M]):
    """Reads where it writes: a replica that lags would answer with an old token."""

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().using(self._db or router.db_for_write(self.model))


class Bookkeeping(models.Model):
    """State that is true of this database only, so `loaddata` and fixtures skip its rows.

    A row from a dump would overwrite the state here, or claim work that was done elsewhere.
    """

    objects: Any = PrimaryManager()

    class Meta:
        abstract = True
        base_manager_name = (
            "objects"  # what a row refers to, and refresh_from_db(), is read there too
        )

    def _save_table(self, raw: bool = False, *args: Any, **kwargs: Any) -> bool:
        return True if raw else super()._save_table(raw, *args, **kwargs)  # type: ignore[misc]


class NamedKey(int):
    """A primary key that was looked up by label, so it is of this database and not from a dump."""


class ControlManager(PrimaryManager["ViewControl"]):
    """Finds controls by their natural key."""

    def get_by_natural_key(self, label: str) -> "ViewControl":
        """The control of a label; the type of its primary key tells that it was looked up."""
        found = self.get(label=label)
        found.pk = NamedKey(found.pk)
        return found


class Origin(models.TextChoices):
    """What requested a refresh."""

    SCHEDULE = "schedule", _("schedule")
    ADMIN = "admin", _("admin")
    COMMAND = "command", _("command")
    API = "api", "API"


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
    #: Whether `MatviewMeta.refresh_every` has been applied; it is only once.
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
        """How long a batch should take: from here, else from the code, else from the settings."""
        return self.batch_target or self.options.batch_target or get_settings().BATCH_TARGET


class Period(models.TextChoices):
    """The units of an interval: those of django-celery-beat's `IntervalSchedule`."""

    SECONDS = "seconds", _("seconds")
    MINUTES = "minutes", _("minutes")
    HOURS = "hours", _("hours")
    DAYS = "days", _("days")

    @property
    def length(self) -> timedelta:
        """The length of one such unit."""
        return timedelta(**{self.value: 1})


_EVERY = {
    Period.SECONDS: ngettext_lazy("every second", "every %(count)d seconds", "count"),
    Period.MINUTES: ngettext_lazy("every minute", "every %(count)d minutes", "count"),
    Period.HOURS: ngettext_lazy("every hour", "every %(count)d hours", "count"),
    Period.DAYS: ngettext_lazy("every day", "every %(count)d days", "count"),
}

LONGEST_JITTER = 1800  # seconds; Redis delivers a delayed message again after an hour


class ScheduleManager(PrimaryManager["RefreshSchedule"]):
    """Finds schedules by their natural key."""

    def get_by_natural_key(
        self, label: str, phases: list[str], every: int | None, period: str, crontab: int | None
    ) -> "RefreshSchedule":
        """The schedule of a view that requests the same phases at the same times.

        Raises:
            RefreshSchedule.DoesNotExist: the view has no such schedule.
        """
        same_time = self.filter(view__label=label, every=every, period=period, crontab=crontab)
        for schedule in same_time.order_by("pk"):
            if schedule.phases == phases:
                return schedule
        raise self.model.DoesNotExist


class RefreshSchedule(models.Model):
    """How often some or all phases of a view are refreshed: an interval or a crontab.

    The periodic tasks of django-celery-beat are generated from these rows.
    """

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="schedules", verbose_name=_("materialized view")
    )
    phases = models.JSONField(
        _("phases"), default=list, blank=True, help_text=_("Leave empty for all phases.")
    )
    every = models.PositiveIntegerField(
        _("every"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Interval; leave empty to use a crontab."),
    )
    period = models.CharField(
        _("period"), max_length=8, choices=Period.choices, default=Period.MINUTES
    )
    crontab = models.ForeignKey(
        "django_celery_beat.CrontabSchedule",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("crontab"),
        help_text=_("Instead of an interval."),
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    jitter = models.PositiveIntegerField(
        _("jitter"),
        null=True,
        blank=True,
        validators=[MaxValueValidator(LONGEST_JITTER)],
        help_text=_(
            "Seconds over which the starts of views on one schedule are spread. If empty: one second "
            "per ten schedules, at most a minute; a crontab starts on time."
        ),
    )

    objects = ScheduleManager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("view", "id")
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        constraints = (
            models.CheckConstraint(
                condition=models.Q(every__gte=1, crontab=None)
                | models.Q(every=None, crontab__isnull=False),
                name="matviews_schedule_either",
                violation_error_message=_("Give either an interval of at least 1 or a crontab."),
            ),
        )

    def __str__(self) -> str:
        phases = ", ".join(self.phases)
        return f"{self.view}{phases and f' ({phases})'}: {self.frequency}"

    def natural_key(self) -> tuple[str, list[str], int | None, str, int | None]:
        """What it requests and when: there are no two such schedules of a view."""
        return self.view.label, self.phases, self.every, self.period, self.crontab_id

    natural_key.dependencies = [  # type: ignore[attr-defined]
        "matviews.viewcontrol", "django_celery_beat.crontabschedule",
    ]  # fmt: skip

    def clean(self) -> None:
        """Refuse what can never work, and a second schedule that requests the same.

        Raises:
            ValidationError: with a sentence for each field.
        """
        if faults := dict(self._faults()):
            raise ValidationError(faults)
        self.phases = [phase.value for phase in Phase if phase in self.phases]
        if any(map(self._is_duplicate, self._others())):
            duplicate = _(
                "%(view)s has this schedule already: change that one, or choose other phases or "
                "another time."
            )
            raise ValidationError(
                {"every" if self.every else "crontab": duplicate % {"view": self.view}}
            )

    def faults(self) -> dict[str, str]:
        """What is wrong with it, an English sentence for each field, whatever language is active."""
        with override(None):
            return {field: str(fault) for field, fault in self._faults()}

    def _faults(self) -> Iterator[tuple[str, "StrOrPromise"]]:
        period = Period(self.period).length if self.period in Period else None
        if self.every is None and self.crontab_id is None:
            yield "every", _("Give an interval or choose a crontab.")
        elif self.every is not None and self.crontab_id is not None:
            yield "crontab", _("Leave either the interval or the crontab empty.")
        elif self.every is not None and self.every < 1:
            yield "every", _("An interval is at least 1.")
        elif self.every and period and self.every > REFRESH_INTERVAL.high // period:
            longest = {"days": f"{REFRESH_INTERVAL.high.days:,}"}
            yield "every", _("An interval is at most %(days)s days.") % longest
        elif self.every and period and (self.jitter or 0) > self.every * period.total_seconds():
            yield "jitter", _("The jitter is at most the interval, or messages would pile up.")
        if fault := self._phases_fault():
            yield "phases", fault

    def _phases_fault(self) -> "StrOrPromise | None":
        if not isinstance(self.phases, list):
            all_phases = {"phases": ", ".join(Phase)}
            return _("Give a list of phases (%(phases)s); an empty one for all.") % all_phases
        has = self.view.options.phases if self.view_id else tuple(Phase)
        unknown = ", ".join(str(phase) for phase in self.phases if phase not in has)
        if not unknown:
            return None
        names = {"unknown": unknown, "phases": ", ".join(has)}
        if not self.view_id:
            return _("There is no phase %(unknown)s; there are %(phases)s.") % names
        return _("%(view)s has no phase %(unknown)s; it has %(phases)s.") % {
            "view": self.view.label,
            **names,
        }

    def _others(self) -> models.QuerySet["RefreshSchedule"]:
        return RefreshSchedule.objects.filter(view=self.view_id).exclude(pk=self.pk)

    def _is_duplicate(self, other: "RefreshSchedule") -> bool:
        mine, theirs = (each.phases or list(Phase) for each in (self, other))
        same_time = (self.interval, self.crontab_id) == (other.interval, other.crontab_id)
        return same_time and set(map(str, mine)) == set(map(str, theirs))

    @property
    def interval(self) -> timedelta | None:
        """The time between two requests, None for a crontab."""
        return self.every * Period(self.period).length if self.every else None

    @property
    def frequency(self) -> str:
        """The interval, as in "every 5 minutes", or the crontab; in the active language."""
        if self.every is None:
            return str(self.crontab)
        return str(_EVERY[Period(self.period)] % {"count": self.every})

    @property
    def how_often(self) -> str:
        """`frequency` in English, whatever language is active."""
        with override(None):
            return self.frequency


class Heartbeat(Bookkeeping):
    """When `matviews.maintain` last ran, in one row. While it does not, lost messages are not re-sent."""

    ran_at = models.DateTimeField()

    objects = PrimaryManager["Heartbeat"]()

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
    #: By phase, which drains its rows reflect, and for which source. Without a fingerprint, the next
    #: run is a full refresh.
    checkpoints = CheckpointsField(default=dict)

    objects = PrimaryManager["ViewShard"]()

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
    #: The refresh whose runs do its work. If it was merged before it began, it has no runs of its
    #: own and ends with that one; if its phases were merged one by one, this is set when it ends.
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    #: How many requests it stands for: the first, and those that joined it.
    requests = models.PositiveIntegerField(default=1)
    #: The sum of the `claims` of the view's shards at the request. While the sum is the same, no
    #: batch can have begun this refresh.
    claims_seen = models.BigIntegerField(null=True)
    error = models.TextField(blank=True)

    objects = PrimaryManager["Refresh"]()

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
    """One phase of one refresh in one shard: where it stands and what it did."""

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
    #: Whether the last batch wrote fewer rows than its limit. The run goes on while `needs_*` says
    #: so, but the next phase no longer waits for it.
    caught_up = models.BooleanField(default=False)
    ran_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)
    traceback = models.TextField(blank=True)

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
    full_refresh_reason = models.CharField(max_length=255, blank=True)

    objects = PrimaryManager["PhaseRun"]()

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


class TableNameField(models.CharField):  # type: ignore[type-arg]
    """The name of a table, compared byte by byte: "Order" and "order" may be two tables."""

    def db_parameters(self, connection: Any) -> Any:
        found = super().db_parameters(connection)
        collation = dialect_of(connection.alias).exact_collation
        return {**found, "collation": collation} if collation else found


class TrackedTable(Bookkeeping):
    """A source table whose changes triggers log, and the views that need them.

    The views are recorded here because any worker may move the log, and its code may be of another
    version.
    """

    table = TableNameField(max_length=255, unique=True)
    #: The columns whose changes are logged; None for all.
    columns = models.JSONField(null=True)
    #: The columns whose values are logged, before and after a change.
    links = models.JSONField(default=list)
    #: What identifies each trigger. Filled once they log and every view has a full refresh queued.
    triggers = models.JSONField(default=list)
    #: Primary keys of the views' controls.
    views = models.JSONField(default=list)
    #: The version of the triggers that are still to be created; "" if there are none.
    pending = models.CharField(max_length=8, blank=True)

    objects = PrimaryManager["TrackedTable"]()

    def __str__(self) -> str:
        return str(self.table)


class Change(Bookkeeping):
    """An entry of the change log, written by a trigger: rows of a table have changed."""

    table = TableNameField(max_length=255)
    #: A list of column names, then lists of their values before or after the change. None if any
    #: row may have changed, or a text that says why.
    links = models.JSONField(null=True)
    #: The number of lists of values.
    count = models.PositiveIntegerField(db_default=1)
    logged_at = models.DateTimeField(db_default=UtcNow())

    objects = PrimaryManager["Change"]()

    class Meta:
        indexes = (models.Index(fields=("table",), name="matviews_change_table"),)

    def __str__(self) -> str:
        return f"change {self.pk} of {self.table}"


class LogSecret(Bookkeeping):
    """What a session must know to switch logging off, as `untracked()` does; one row.

    Who can read it can write without being logged, so only the roles of matviews may.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    value = models.CharField(max_length=64, default=token_hex)

    objects = PrimaryManager["LogSecret"]()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return "the secret of untracked()"


class ViewChange(Bookkeeping):
    """An entry of a view's change queue. Equal entries are merged, and the oldest time is kept."""

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="changes", db_constraint=False
    )
    #: Blank if no table changed: then `links` has marked keys, or the reason why all are dirty.
    table = TableNameField(max_length=255, blank=True)
    #: As in the log.
    links = models.JSONField(null=True)
    count = models.PositiveIntegerField(db_default=1)
    logged_at = models.DateTimeField(db_default=UtcNow())

    objects = PrimaryManager["ViewChange"]()

    def __str__(self) -> str:
        return f"change {self.pk} for {self.view}"


class DirtyKeys(Bookkeeping):
    """Keys of a view whose rows may be out of date, from one drain of its queue."""

    shard = models.ForeignKey(ViewShard, models.CASCADE, related_name="dirty", db_constraint=False)
    #: The drain. A phase whose checkpoint is below it has these keys to process.
    drain_number = models.BigIntegerField()
    count = models.PositiveIntegerField()
    keys = models.JSONField()

    objects = PrimaryManager["DirtyKeys"]()

    class Meta:
        verbose_name_plural = "dirty keys"

    def __str__(self) -> str:
        return f"{self.count} keys of {self.shard}"
