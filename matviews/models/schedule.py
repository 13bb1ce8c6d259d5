"""Schedules, as operators edit them."""

from collections.abc import Iterator
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

__all__ = ["MAX_JITTER", "Period", "RefreshSchedule", "ScheduleManager"]


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

MAX_JITTER = 1800  # seconds; Redis delivers a delayed message again after an hour


class ScheduleManager(WriteDatabaseManager["RefreshSchedule"]):
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
        validators=[MaxValueValidator(MAX_JITTER)],
        help_text=_(
            "Seconds over which the starts of views on one schedule are spread. If empty: one "
            "second per ten schedules, at most a minute; a crontab starts on time."
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
        if self.every is None and self.crontab_id is None:
            yield "every", _("Enter an interval or choose a crontab.")
        elif self.every is not None and self.crontab_id is not None:
            yield "crontab", _("Leave either the interval or the crontab empty.")
        elif self.every is not None and self.every < 1:
            yield "every", _("An interval must be at least 1.")
        elif self.every and period and self.every > REFRESH_INTERVAL.high // period:
            longest = {"days": localized(f"{REFRESH_INTERVAL.high.days:,}")}
            yield "every", _("An interval must be at most %(days)s days.") % longest
        elif self.every and period and (self.jitter or 0) > self.every * period.total_seconds():
            yield "jitter", _("The jitter must not exceed the interval, or messages would pile up.")
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
            return _("There is no phase %(unknown)s; the phases are %(phases)s.") % names
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
