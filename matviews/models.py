"""The bookkeeping tables. The database is the truth; a message is only a hint to look here."""

from collections.abc import Iterator
from datetime import timedelta
from secrets import token_hex
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, router

from .conf import get_settings
from .databases import dialect_of
from .databases.clock import UtcNow
from .definition import ViewDefinition, ViewOptions
from .json_fields import CheckpointField, CheckpointsField, DrainsField
from .limits import REFRESH_INTERVAL
from .phases import Phase
from .presentation import pluralize
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

M = TypeVar("M", bound=models.Model)


class PrimaryManager(models.Manager[M]):
    """Reads where it writes: a replica that lags would answer with an old token."""

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().using(self._db or router.db_for_write(self.model))


class Bookkeeping(models.Model):
    """What only the database itself can tell of itself: no row of a dump is loaded.

    `loaddata`, fixtures and whatever else saves deserialized objects skip it. So no such row harms
    what is there, nor is believed.
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
    """A primary key that was found by a label: one of this database, and not of that of a dump."""


class ControlManager(PrimaryManager["ViewControl"]):
    """Finds controls by what a dump calls them."""

    def get_by_natural_key(self, label: str) -> "ViewControl":
        """The control of a label; its primary key says that it was found so."""
        found = self.get(label=label)
        found.pk = NamedKey(found.pk)
        return found


class Origin(models.TextChoices):
    """What asked for a refresh."""

    SCHEDULE = "schedule"
    ADMIN = "admin"
    COMMAND = "command"
    API = "api"


class ViewControl(models.Model):
    """By this row an operator steers a view. Made after `migrate`, one per registered view."""

    label = models.CharField(max_length=255, unique=True)
    enabled = models.BooleanField(
        default=True,
        help_text="Whether the view is refreshed at all. If not, requests are refused.",
    )
    paused = models.BooleanField(
        default=False,
        help_text="Whether its work is held between two batches. Requests are kept and wait.",
    )
    include_in_refresh_all = models.BooleanField(
        "refresh with all views",
        default=True,
        help_text="Whether a refresh of all views includes this one.",
    )
    shard_count = models.PositiveSmallIntegerField(
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

    default_scheduled = models.BooleanField(default=False, editable=False)
    # By phase, the definition that it last succeeded with; for phases derived from source().
    fingerprints = models.JSONField(default=dict, editable=False)
    verification = models.JSONField(null=True, editable=False)

    objects = ControlManager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("label",)
        verbose_name = "view"
        permissions = (("refresh_viewcontrol", "Can refresh, pause, resume and stop"),)

    def __str__(self) -> str:
        return self.label

    def natural_key(self) -> tuple[str]:
        """What a dump calls it."""
        return (self.label,)

    @property
    def held(self) -> bool:
        """Whether an operator keeps its batches from running."""
        return self.paused or not self.enabled

    @property
    def definition(self) -> ViewDefinition | None:
        """What the code says of the view, None if it no longer defines it."""
        return registry.find(self.label) if self.label in registry else None

    @property
    def options(self) -> ViewOptions:
        """Its options; the defaults, if the code no longer defines it."""
        return self.definition.options if self.definition else ViewOptions()

    @property
    def seconds_per_batch(self) -> float:
        """What the pacer steers toward: as the control says, else the code, else the settings."""
        return self.batch_target or self.options.batch_target or get_settings().BATCH_TARGET


class Period(models.TextChoices):
    """The units of an interval: those of django-celery-beat's `IntervalSchedule`."""

    SECONDS = "seconds"
    MINUTES = "minutes"
    HOURS = "hours"
    DAYS = "days"

    @property
    def length(self) -> timedelta:
        """One of it."""
        return timedelta(**{self.value: 1})


LONGEST_JITTER = 1800  # seconds; Redis delivers a delayed message again after an hour


class ScheduleManager(PrimaryManager["RefreshSchedule"]):
    """Finds schedules by what a dump calls them."""

    def get_by_natural_key(
        self, label: str, phases: list[str], every: int | None, period: str, crontab: int | None
    ) -> "RefreshSchedule":
        """The schedule of a view that asks for the same at the same time.

        Raises:
            RefreshSchedule.DoesNotExist: there is none.
        """
        same_time = self.filter(view__label=label, every=every, period=period, crontab=crontab)
        for schedule in same_time.order_by("pk"):
            if schedule.phases == phases:
                return schedule
        raise self.model.DoesNotExist


class RefreshSchedule(models.Model):
    """How often which phases of a view are asked for: an interval or a crontab.

    The truth about a view's intervals; the periodic tasks of django-celery-beat are written from it.
    """

    view = models.ForeignKey(ViewControl, models.CASCADE, related_name="schedules")
    phases = models.JSONField(
        default=list, blank=True, help_text="Which phases. Empty: all that the view has."
    )
    every = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="How many of the period. Empty: by the crontab.",
    )
    period = models.CharField(max_length=8, choices=Period.choices, default=Period.MINUTES)
    crontab = models.ForeignKey(
        "django_celery_beat.CrontabSchedule",
        models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text="Instead of an interval.",
    )
    enabled = models.BooleanField(default=True)
    jitter = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(LONGEST_JITTER)],
        help_text="Seconds over which the starts of views on one schedule are spread. Empty: as many "
        "as a tenth of the schedules, at most a minute; a crontab starts at its time.",
    )

    objects = ScheduleManager()

    class Meta:
        base_manager_name = "objects"
        ordering = ("view", "id")
        constraints = (
            models.CheckConstraint(
                condition=models.Q(every__gte=1, crontab=None)
                | models.Q(every=None, crontab__isnull=False),
                name="matviews_schedule_either",
                violation_error_message="Give either an interval of at least 1 or a crontab.",
            ),
        )

    def __str__(self) -> str:
        phases = ", ".join(self.phases)
        return f"{self.view}{phases and f' ({phases})'}: {self.how_often}"

    def natural_key(self) -> tuple[str, list[str], int | None, str, int | None]:
        """What a dump calls it."""
        return self.view.label, self.phases, self.every, self.period, self.crontab_id

    natural_key.dependencies = [  # type: ignore[attr-defined]
        "matviews.viewcontrol", "django_celery_beat.crontabschedule",
    ]  # fmt: skip

    def clean(self) -> None:
        """Refuse what can never work, and a second schedule that asks for the same.

        Raises:
            ValidationError: with a sentence for each field.
        """
        if faults := self.faults():
            raise ValidationError(dict(faults))
        self.phases = [phase.value for phase in Phase if phase in self.phases]
        if any(map(self._asks_the_same, self._others())):
            raise ValidationError(
                {
                    "every" if self.every else "crontab": f"{self.view} has this schedule already: "
                    f"change that one, or choose other phases or another time."
                }
            )

    def faults(self) -> dict[str, str]:
        """What is wrong with it, a sentence for each field."""
        return dict(self._faults())

    def _faults(self) -> Iterator[tuple[str, str]]:
        period = Period(self.period).length if self.period in Period else None
        if self.every is None and self.crontab_id is None:
            yield "every", "Give an interval or choose a crontab."
        elif self.every is not None and self.crontab_id is not None:
            yield "crontab", "Leave the interval or the crontab empty: a schedule follows one."
        elif self.every is not None and self.every < 1:
            yield "every", "An interval is at least 1."
        elif self.every and period and self.every > REFRESH_INTERVAL.high // period:
            yield "every", f"An interval is at most {REFRESH_INTERVAL.high.days:,} days."
        elif self.every and period and (self.jitter or 0) > self.every * period.total_seconds():
            yield "jitter", "The jitter is at most the interval, or its messages would pile up."
        if fault := self._phases_fault():
            yield "phases", fault

    def _phases_fault(self) -> str | None:
        if not isinstance(self.phases, list):
            return f"Give a list of phases, of {', '.join(Phase)}; an empty one for all."
        has = self.view.options.phases if self.view_id else tuple(Phase)
        if lacking := ", ".join(str(phase) for phase in self.phases if phase not in has):
            name = self.view.label if self.view_id else "the view"
            return f"{name} has no phase {lacking}; it has {', '.join(has)}. Leave the other out."
        return None

    def _others(self) -> models.QuerySet["RefreshSchedule"]:
        return RefreshSchedule.objects.filter(view=self.view_id).exclude(pk=self.pk)

    def _asks_the_same(self, other: "RefreshSchedule") -> bool:
        mine, theirs = (each.phases or list(Phase) for each in (self, other))
        same_time = (self.interval, self.crontab_id) == (other.interval, other.crontab_id)
        return same_time and set(map(str, mine)) == set(map(str, theirs))

    @property
    def interval(self) -> timedelta | None:
        """The time between two requests, None for a crontab."""
        return self.every * Period(self.period).length if self.every else None

    @property
    def how_often(self) -> str:
        """As in "every 5 minutes", or the crontab."""
        if self.every is None:
            return str(self.crontab)
        period = Period(self.period).value
        return f"every {period[:-1]}" if self.every == 1 else f"every {self.every} {period}"


class Heartbeat(Bookkeeping):
    """When `matviews.maintain` last ran, in one row. Without it, nothing re-sends lost messages."""

    ran_at = models.DateTimeField()

    objects = PrimaryManager["Heartbeat"]()

    def __str__(self) -> str:
        return f"maintenance ran at {self.ran_at}"


class ViewShard(Bookkeeping):
    """A fixed share of a view's keys, its token, and who works in it.

    The claim (`worker`, `claimed_at`, `attempts`) is of the batch of
    `claimed_token`; once the token has moved past that, the batch is over. Before `resend_after`
    the shard is taken to be in good hands. `claims` counts them, and never goes back.

    What follows is of views whose changes are tracked: `drain_number` counts how often something has been
    taken from the view's queue (drained), and `checkpoints` says by phase up to which drain it has processed
    all changes, and of which moment of the source its rows are: `[drain number, fingerprint]`. Without a moment
    the next run has to look at all keys. What was taken up to `full_refresh_after` may concern any key, for
    `full_refresh_reason`. `pending` has the time of the oldest change of drains that a phase has yet to
    process: `[[number, time], ...]`.
    """

    view = models.ForeignKey(ViewControl, models.CASCADE, related_name="shards")
    number = models.PositiveSmallIntegerField()
    token = models.BigIntegerField(default=1)
    resend_after = models.DateTimeField(null=True)
    resends = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=255, blank=True)
    claimed_at = models.DateTimeField(null=True)
    claimed_token = models.BigIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    claims = models.BigIntegerField(default=0)
    drain_number = models.BigIntegerField(default=0)
    full_refresh_after = models.BigIntegerField(default=0)
    full_refresh_reason = models.CharField(max_length=255, blank=True)
    pending = DrainsField(default=list)
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
        """Whether a worker has claimed the batch of the present token."""
        return self.claimed_token == self.token


class Refresh(Bookkeeping):
    """A request to bring a view up to date, with those that joined it: who asked first, which phases, how it ended.

    `requests` counts them. `claims_seen` is the sum of the `claims` of the view's shards before the first:
    while that is still their sum, no batch can have begun the refresh. One that was merged before it began has no
    phase runs, and ends with that of `merged_into`; of one that was merged phase by phase, that is filled in at the end.
    """

    # A constraint would lock the control on MariaDB until the transaction that asks has ended, and
    # no worker could close another refresh of the view meanwhile.
    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="refreshes", db_constraint=False, db_index=False
    )
    phases = models.JSONField()
    origin = models.CharField(max_length=16, choices=Origin.choices)
    requested_by = models.CharField(max_length=255, blank=True)
    batch_size = models.PositiveIntegerField(null=True)
    state = models.CharField(max_length=16, choices=RefreshState.choices, default=RefreshState.OPEN)
    requested_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    stop_requested = models.BooleanField(default=False)
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    requests = models.PositiveIntegerField(default=1)
    claims_seen = models.BigIntegerField(null=True)
    error = models.TextField(blank=True)

    objects = PrimaryManager["Refresh"]()

    class Meta:
        ordering = ("id",)
        verbose_name_plural = "refreshes"
        indexes = (
            models.Index(fields=("view", "state"), name="matviews_refresh_state"),
            models.Index(fields=("view", "id"), name="matviews_refresh_history"),
            models.Index(fields=("state", "finished_at"), name="matviews_refresh_ended"),
        )

    def __str__(self) -> str:
        return f"refresh {self.pk} of {self.view}"

    @property
    def pinned_size(self) -> int | None:
        """Rows per batch, as the request, the control or the code says; None leaves it free."""
        return self.batch_size or self.view.batch_size or self.view.options.batch_size

    @property
    def asked_by(self) -> str:
        """What asked for it first, who where that is known, and how many requests joined it."""
        first = f"{self.origin}: {self.requested_by}" if self.requested_by else self.origin
        joined = self.requests - 1
        return f"{first}, and {pluralize(joined, 'more request')}" if joined else first


class PhaseRun(Bookkeeping):
    """One phase of one refresh in one shard: where it stands and what it did.

    A run that is merged into another does nothing itself and shares the other's end. One that has
    caught up has done a batch smaller than it might have been; it goes on while `needs_*` says so,
    but the next phase no longer waits for it. `samples` holds
    `[number, limit, rows, seconds]` of batches spread over the run.

    What follows is of phases derived from `source()`: `keys_scanned` is the keys that the batches have scanned,
    `inserted_ranges` the ranges of keys that need nothing more in this refresh, `stage` the staging
    table, `fingerprint` the definition that the run works by, `restarts` how often that has changed,
    `checkpoint` what the shard's `checkpoints` will say when it has succeeded, `dirty_after` the number of changes
    after which it looks at dirty keys alone, None for a full refresh, and `full_refresh_reason` why it is one.
    """

    refresh = models.ForeignKey(Refresh, models.CASCADE, related_name="runs", db_index=False)
    shard = models.ForeignKey(ViewShard, models.CASCADE, related_name="runs", db_index=False)
    phase = models.CharField(max_length=8, choices=Phase.choices)
    state = models.CharField(max_length=16, choices=RunState.choices, default=RunState.PENDING)
    merged_into = models.ForeignKey("self", models.SET_NULL, null=True, related_name="merged")
    cursor = models.JSONField(null=True)
    batch_size = models.PositiveIntegerField(null=True)
    pace = models.JSONField(default=dict)
    samples = models.JSONField(default=list)
    batches = models.PositiveIntegerField(default=0)
    rows = models.BigIntegerField(default=0)
    estimate = models.BigIntegerField(null=True)
    keys_scanned = models.BigIntegerField(default=0)
    inserted_ranges = models.JSONField(default=list)
    stage = models.CharField(max_length=255, blank=True)
    fingerprint = models.CharField(max_length=64, blank=True)
    restarts = models.PositiveSmallIntegerField(default=0)
    checkpoint = CheckpointField(null=True)
    dirty_after = models.BigIntegerField(null=True)
    full_refresh_reason = models.CharField(max_length=255, blank=True)
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
        indexes = (models.Index(fields=("shard", "phase"), name="matviews_run_phase"),)
        constraints = (
            models.UniqueConstraint(fields=("refresh", "shard", "phase"), name="matviews_run_once"),
        )

    def __str__(self) -> str:
        return f"{self.phase} of refresh {self.refresh_id}"

    @property
    def active(self) -> bool:
        """Whether batches are still to come."""
        return RunState(self.state).active

    @property
    def done(self) -> int:
        """What the estimate is of: keys checked for a derived phase, else rows written."""
        return self.keys_scanned if self.fingerprint else self.rows

    def move_to(self, state: RunState) -> None:
        """Change the state, if the table of transitions allows it.

        Raises:
            IllegalTransition: it does not.
        """
        check_transition(RunState(self.state), state)
        self.state = state


class TableNameField(models.CharField):  # type: ignore[type-arg]
    """The name of a table: the case of its letters tells it from another, as it may in each database."""

    def db_parameters(self, connection: Any) -> Any:
        found = super().db_parameters(connection)
        collation = dialect_of(connection.alias).exact_collation
        return {**found, "collation": collation} if collation else found


class TrackedTable(Bookkeeping):
    """A table whose changes are logged by triggers, and for which views.

    `columns` are those of which a change is logged, None for all; `links` those whose old and new
    values are in the log. The triggers are there, by what tells each from one that is made later,
    once they log and the views were told of all that came before. The views stand here, as primary
    keys of their controls, and not in the code alone, for the log is moved by whatever version of the
    code a worker has.
    """

    table = TableNameField(max_length=255, unique=True)
    columns = models.JSONField(null=True)
    links = models.JSONField(default=list)
    triggers = models.JSONField(default=list)
    views = models.JSONField(default=list)
    pending = models.CharField(max_length=8, blank=True)

    objects = PrimaryManager["TrackedTable"]()

    def __str__(self) -> str:
        return str(self.table)


class Change(Bookkeeping):
    """An entry of the log that the triggers write: rows of this table have changed.

    `links` has the names of the columns by which they hang on keys of views, and then lists of the
    values of these, before or after the change, `count` of them; None where any row may have
    changed, or a text that says why.
    """

    table = TableNameField(max_length=255)
    links = models.JSONField(null=True)
    count = models.PositiveIntegerField(db_default=1)
    logged_at = models.DateTimeField(db_default=UtcNow())

    objects = PrimaryManager["Change"]()

    class Meta:
        indexes = (models.Index(fields=("table",), name="matviews_change_table"),)

    def __str__(self) -> str:
        return f"change {self.pk} of {self.table}"


class LogSecret(Bookkeeping):
    """What a session has to know to switch logging off, as `untracked()` does; one row.

    Whoever may read it may write without being logged, so it belongs to the roles of matviews alone.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    value = models.CharField(max_length=64, default=token_hex)

    objects = PrimaryManager["LogSecret"]()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return "the secret of untracked()"


class ViewChange(Bookkeeping):
    """An entry of a view's queue: rows have changed that it depends on.

    As in the log, of equal entries the oldest; or, without a table, `links` are keys that somebody has
    marked as dirty, or says why all are.
    """

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="changes", db_constraint=False
    )
    table = TableNameField(max_length=255, blank=True)
    links = models.JSONField(null=True)
    count = models.PositiveIntegerField(db_default=1)
    logged_at = models.DateTimeField(db_default=UtcNow())

    objects = PrimaryManager["ViewChange"]()

    def __str__(self) -> str:
        return f"change {self.pk} for {self.view}"


class DirtyKeys(Bookkeeping):
    """Keys of a view of which something has changed: what was taken from its queue at one time.

    `drain_number` is what the shard's `drain_number` said then. A phase whose checkpoint is before that has these keys to do.
    """

    shard = models.ForeignKey(ViewShard, models.CASCADE, related_name="dirty", db_constraint=False)
    drain_number = models.BigIntegerField()
    count = models.PositiveIntegerField()
    keys = models.JSONField()

    objects = PrimaryManager["DirtyKeys"]()

    class Meta:
        verbose_name_plural = "dirty keys"

    def __str__(self) -> str:
        return f"{self.count} keys of {self.shard}"
