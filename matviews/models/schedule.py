"""Schedules, as operators edit them."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy, override

from ..limits import REFRESH_INTERVAL
from ..phases import Phase
from ..presentation import localized
from .base import WriteDatabaseManager
from .control import ViewControl

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = [
    "MAX_JITTER", "Period", "RefreshSchedule", "ScheduleKind", "ScheduleManager", "intervals_of",
]  # fmt: skip


class ScheduleKind(models.TextChoices):
    """What a schedule requests."""

    REFRESH = "refresh", _("refresh")
    VERIFY = "verify", _("verification")


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


def intervals_of(
    schedules: Iterable[tuple[int | None, str, bool, list[str]]],
) -> list[timedelta | None]:
    """How often schedules promise to refresh a view; None stands for a crontab, or for its target.

    One on change of all phases promises more than the others of the view, which then do not count.

    Args:
        schedules: `every`, `period`, `on_change` and `phases` of each.
    """
    rows = list(schedules)
    only_on_change = any(on_change and not phases for *_when, on_change, phases in rows)
    found = list[timedelta | None]()
    for every, period, on_change, _phases in rows:
        length = _length(every, period)
        if on_change:
            found.append(length if length is None else max(length, ON_CHANGE))
        elif not only_on_change:
            found.append(length)
    return found


def _length(every: int | None, period: str) -> timedelta | None:
    return None if every is None else every * Period(period).length


_EVERY = {
    Period.SECONDS: ngettext_lazy("every second", "every %(count)d seconds", "count"),
    Period.MINUTES: ngettext_lazy("every minute", "every %(count)d minutes", "count"),
    Period.HOURS: ngettext_lazy("every hour", "every %(count)d hours", "count"),
    Period.DAYS: ngettext_lazy("every day", "every %(count)d days", "count"),
}

#: For a view without a target, a schedule on change counts as an interval of at least this: if a
#: process that looks for changes is lost, a refresh may be this late.
ON_CHANGE = timedelta(seconds=30)
MAX_JITTER = 1800  # seconds; Redis delivers a delayed message again after an hour


class ScheduleManager(WriteDatabaseManager["RefreshSchedule"]):
    """Finds schedules by their natural key."""

    def get_by_natural_key(
        self,
        label: str,
        phases: list[str],
        every: int | None,
        period: str,
        crontab: int | None,
        kind: str = ScheduleKind.REFRESH,
        on_change: bool = False,
    ) -> "RefreshSchedule":
        """The schedule of a view that requests the same at the same times.

        Raises:
            RefreshSchedule.DoesNotExist: the view has no such schedule.
        """
        same_time = self.filter(view__label=label, every=every, period=period, crontab=crontab)
        for schedule in same_time.filter(kind=kind, on_change=on_change).order_by("pk"):
            if schedule.phases == phases:
                return schedule
        raise self.model.DoesNotExist


class RefreshSchedule(models.Model):
    """When a view is refreshed or verified: by an interval, by a crontab, or on change.

    The periodic tasks of django-celery-beat are generated from the first two. What is due on change
    is found by whatever polls for changes: the task `matviews.pulse`, or the command with --follow.
    """

    view = models.ForeignKey(
        ViewControl, models.CASCADE, related_name="schedules", verbose_name=_("materialized view")
    )
    kind = models.CharField(
        _("what"), max_length=8, choices=ScheduleKind.choices, default=ScheduleKind.REFRESH
    )
    phases = models.JSONField(
        _("phases"), default=list, blank=True, help_text=_("Leave empty for all phases.")
    )
    on_change = models.BooleanField(
        _("on change"),
        default=False,
        help_text=_(
            "Refresh this long after the first change of the source (0: at once), instead of at "
            "regular times. Leave the time empty to refresh as late as the freshness target allows."
        ),
    )
    every = models.PositiveIntegerField(
        _("every"),
        null=True,
        blank=True,
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
        validators=[MaxValueValidator(MAX_JITTER)],
        help_text=_(
            "Seconds over which the starts of views on one schedule are spread. If empty: one "
            "second per ten schedules, at most a minute; a crontab starts on time."
        ),
    )

    sample = models.PositiveIntegerField(
        _("sample"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_(
            "About how many keys each verification compares, in ranges that it chooses at random. "
            "Leave empty for all keys."
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
                condition=models.Q(on_change=False, every__gte=1, crontab=None)
                | models.Q(on_change=False, every=None, crontab__isnull=False)
                | models.Q(on_change=True, crontab=None),
                name="matviews_schedule_either",
                violation_error_message=_("Give either an interval of at least 1 or a crontab."),
            ),
        )

    def __str__(self) -> str:
        requested = ", ".join(self.phases) if self.refreshes else self.kind
        return f"{self.view}{requested and f' ({requested})'}: {self.frequency}"

    def natural_key(self) -> tuple[str, list[str], int | None, str, int | None, str, bool]:
        """What it requests and when: there are no two such schedules of a view."""
        when = self.every, self.period, self.crontab_id
        return self.view.label, self.phases, *when, self.kind, self.on_change

    natural_key.dependencies = [  # type: ignore[attr-defined]
        "matviews.viewcontrol", "django_celery_beat.crontabschedule",
    ]  # fmt: skip

    def clean(self) -> None:
        """Refuse what can never work, and a second schedule that requests the same.

        Raises:
            ValidationError: with a sentence for each field.
        """
        if faults := self.faults():
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
        """What is wrong with it, a sentence for each field, in the active language."""
        return {field: str(fault) for field, fault in self._faults()}

    def _faults(self) -> Iterator[tuple[str, "StrOrPromise"]]:
        period = Period(self.period).length if self.period in Period else None
        if self.every and period and self.every > REFRESH_INTERVAL.high // period:
            longest = {"days": localized(f"{REFRESH_INTERVAL.high.days:,}")}
            yield "every", _("An interval must be at most %(days)s days.") % longest
        elif self.on_change:
            yield from self._faults_on_change()
        elif self.every is None and self.crontab_id is None:
            yield "every", _("Enter an interval or choose a crontab.")
        elif self.every is not None and self.crontab_id is not None:
            yield "crontab", _("Leave either the interval or the crontab empty.")
        elif self.every is not None and self.every < 1:
            yield "every", _("An interval must be at least 1.")
        elif self.every and period and (self.jitter or 0) > self.every * period.total_seconds():
            yield "jitter", _("The jitter must not exceed the interval, or messages would pile up.")
        if fault := self._phases_fault():
            yield "phases", fault
        yield from self._verification_faults()

    def _faults_on_change(self) -> Iterator[tuple[str, "StrOrPromise"]]:
        if not self.refreshes:
            yield (
                "on_change",
                _("A verification cannot run on change: give it an interval or a crontab."),
            )
        if self.crontab_id is not None:
            yield "crontab", _("A schedule on change has no crontab: add another schedule for it.")
        if self.jitter is not None:
            yield "jitter", _("A schedule on change has no jitter.")
        if self.every is None and self.view_id and not self.view.has_target:
            yield (
                "every",
                _("Enter how long a change may wait, 0 for not at all, or give the view a target."),
            )

    def _verification_faults(self) -> Iterator[tuple[str, "StrOrPromise"]]:
        if self.kind not in ScheduleKind:
            yield "kind", _("Choose what to request.")
        elif self.refreshes and self.sample is not None:
            yield "sample", _("Only a verification can have a sample.")
        elif not self.refreshes and self.phases:
            yield "phases", _("A verification compares whole rows: leave the phases empty.")
        elif not self.refreshes and self.view_id and not self._has_source():
            yield (
                "kind",
                _("%(view)s has no source() to compare it with.") % {"view": self.view.label},
            )

    def _has_source(self) -> bool:
        definition = self.view.definition
        return definition is None or definition.has_source

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
            return _("There is no phase %(unknown)s; the phases are %(phases)s.") % names
        return _("%(view)s has no phase %(unknown)s; it has %(phases)s.") % {
            "view": self.view.label,
            **names,
        }

    def _others(self) -> models.QuerySet["RefreshSchedule"]:
        return RefreshSchedule.objects.filter(view=self.view_id).exclude(pk=self.pk)

    def _is_duplicate(self, other: "RefreshSchedule") -> bool:
        mine, theirs = (each.phases or list(Phase) for each in (self, other))
        same = all(
            getattr(self, name) == getattr(other, name)
            for name in ("kind", "on_change", "interval", "delay", "crontab_id")
        )
        return same and set(map(str, mine)) == set(map(str, theirs))

    @property
    def refreshes(self) -> bool:
        """Whether it requests refreshes."""
        return self.kind == ScheduleKind.REFRESH

    @property
    def interval(self) -> timedelta | None:
        """The time between two requests; None for a crontab, and on change."""
        return None if self.on_change else _length(self.every, self.period)

    @property
    def delay(self) -> timedelta | None:
        """On change: how long after the first change it requests a refresh.

        None if that is as late as the view's freshness target allows.
        """
        return _length(self.every, self.period) if self.on_change else None

    @property
    def frequency(self) -> str:
        """The interval, as in "every 5 minutes", the crontab, or that it follows changes.

        In the active language.
        """
        if self.on_change and not self.every:
            late = self.every is None
            return str(_("on change, in time for its target") if late else _("on change, at once"))
        if self.every is None:
            return str(self.crontab)
        every = str(_EVERY[Period(self.period)] % {"count": self.every})
        return str(_("on change, at most %s") % every) if self.on_change else every

    @property
    def how_often(self) -> str:
        """`frequency` in English, whatever language is active."""
        with override(None):
            return self.frequency
