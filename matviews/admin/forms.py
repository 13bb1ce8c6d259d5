"""The forms on a view's page: its settings, and its schedules."""

from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import engine
from ..conf import get_settings
from ..limits import BATCH_SECONDS, BATCH_SIZE, FRESHNESS_TARGET, Range, queue_fault
from ..models import RefreshSchedule, ScheduleKind, ViewControl
from ..phases import Phase
from ..presentation import localized
from ..quiet_hours import QuietHours, zone_fault

__all__ = ["ControlForm", "ScheduleForm"]


class ControlForm(forms.ModelForm):  # type: ignore[type-arg]
    """The settings of a view. Pausing is not one of them: it is an action."""

    class Meta:
        model = ViewControl
        fields = (
            "enabled", "include_in_refresh_all", "freshness_target", "shard_count", "batch_size",
            "batch_target", "strategy", "queue", "quiet_from", "quiet_until", "quiet_zone",
        )  # fmt: skip
        help_texts = {
            "freshness_target": gettext_lazy(
                "How old the rows may be, in hours:minutes:seconds. Leave empty to use the default "
                "from the code."
            ),
            "shard_count": gettext_lazy(
                "How many shards of the keys are processed in parallel. Takes effect as soon as no "
                "refresh is open."
            ),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """With the defaults from the code as placeholders."""
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            # Changed means changed by this person, not by another since the form was loaded.
            field.show_hidden_initial = True
        options = self.instance.options
        in_code = {
            "batch_size": options.batch_size,
            "batch_target": options.batch_target or get_settings().BATCH_TARGET,
            "freshness_target": _in_words(options.targets),
            "queue": options.queue or get_settings().CELERY_QUEUE,
            **_quiet_hours(options.quiet_hours),
        }
        for name in in_code.keys() & self.fields.keys():
            self.fields[name].widget.attrs["placeholder"] = str(in_code[name] or "")

    def clean_shard_count(self) -> int:
        """At most one shard if the hooks do not know shards: each would do all the work."""
        count: int = self.cleaned_data["shard_count"]
        definition = self.instance.definition
        if count > 1 and definition and not definition.is_shard_aware:
            raise ValidationError(
                _("Its hooks do not declare the parameter shard, so it can have only one shard.")
            )
        return count

    def clean_batch_size(self) -> int | None:
        """A size that a batch can have."""
        size: int | None = self.cleaned_data["batch_size"]
        if size is not None and size not in BATCH_SIZE:
            fault = _("Enter a whole number of rows from %(low)s to %(high)s, or nothing.")
            raise ValidationError(fault % _ends(BATCH_SIZE))
        return size

    def clean_batch_target(self) -> float | None:
        """A time that a batch can take."""
        seconds: float | None = self.cleaned_data["batch_target"]
        if seconds is not None and seconds not in BATCH_SECONDS:
            fault = _("Enter a number of seconds from %(low)s to %(high)s, or nothing.")
            raise ValidationError(fault % _ends(BATCH_SECONDS))
        return seconds

    def clean_queue(self) -> str:
        """A name that every broker accepts."""
        queue: str = self.cleaned_data["queue"]
        if queue and queue_fault(queue):
            raise ValidationError(
                _(
                    "Enter the name of a queue: at most 255 bytes of printable characters, not "
                    "beginning with 'amq.', or nothing."
                )
            )
        return queue

    def clean_quiet_zone(self) -> str:
        """A time zone that this machine knows."""
        zone: str = self.cleaned_data["quiet_zone"]
        if zone and zone_fault(zone):
            raise ValidationError(
                _("Enter the name of a time zone, as in Europe/Berlin, or nothing.")
            )
        return zone

    def clean(self) -> dict[str, Any]:
        """Quiet hours have a beginning and an end."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        times = {"quiet_from", "quiet_until"} & cleaned.keys()
        given = {name for name in times if cleaned[name] is not None}
        for name in times - given if given else ():
            self.add_error(name, _("Enter both times, or none."))
        return cleaned

    def clean_freshness_target(self) -> timedelta | None:
        """A length of time."""
        target: timedelta | None = self.cleaned_data["freshness_target"]
        if target is not None and target not in FRESHNESS_TARGET:
            fault = _(
                "Enter a positive duration of at most %(days)s days, as in 00:10:00, or nothing."
            )
            raise ValidationError(fault % {"days": localized(f"{FRESHNESS_TARGET.high.days:,}")})
        return target


def _in_words(targets: dict[tuple[Phase, ...], timedelta]) -> str:
    """Targets as a placeholder: that of all phases, or each with its phases."""
    parts = [f"{', '.join(phases)} {target}".strip() for phases, target in targets.items()]
    return "; ".join(parts)


def _quiet_hours(hours: QuietHours | None) -> dict[str, str | None]:
    return {
        "quiet_from": f"{hours.start:%H:%M}" if hours else None,
        "quiet_until": f"{hours.end:%H:%M}" if hours else None,
        "quiet_zone": hours.zone if hours else timezone.get_default_timezone_name(),
    }


def _ends(limits: Range) -> dict[str, str]:
    return {"low": localized(f"{limits.low:,}"), "high": localized(f"{limits.high:,}")}


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """One schedule. All phases ticked means all that the view has, now and in future."""

    phases = forms.MultipleChoiceField(
        label=gettext_lazy("Phases"),
        choices=Phase.choices,
        widget=forms.CheckboxSelectMultiple,
        required=False,
        help_text=gettext_lazy("For refreshes only: a verification compares whole rows."),
    )

    # The phases of the view; the inline makes a subclass with them.
    offered: tuple[Phase, ...] = tuple(Phase)

    class Meta:
        model = RefreshSchedule
        fields = (
            "enabled", "kind", "phases", "sample", "on_change", "every", "period", "crontab",
            "jitter",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "kind" in self.fields:
            self.fields["kind"].required = False
        if "phases" not in self.fields:  # for users who may only view
            return
        # A phase that the view no longer has is still shown, to be unticked.
        stored = [phase for phase in Phase if phase in self.instance.phases]
        names = [phase for phase in Phase if phase in self.offered or phase in stored]
        choices = [(name.value, name.value) for name in names]
        self.fields["phases"].choices = choices  # type: ignore[attr-defined]
        self.initial["phases"] = self.instance.phases or [phase.value for phase in self.offered]

    def add_error(self, field: str | None, error: Any) -> None:
        """Keep the first fault of each field: the others follow from it."""
        if by_field := getattr(error, "error_dict", None):
            error = ValidationError(
                {name: faults[:1] for name, faults in by_field.items() if name not in self.errors}
            )
        super().add_error(field, error)

    def clean_on_change(self) -> bool:
        """Only a view whose changes are tracked can be refreshed on change."""
        on_change: bool = self.cleaned_data["on_change"]
        definition = self.instance.view.definition if self.instance.view_id else None
        if on_change and (reason := engine.on_change_obstacle(definition)):
            fault = _("Its changes are not tracked (%(reason)s): enter an interval instead.")
            raise ValidationError(fault % {"reason": reason})
        return on_change

    def clean_kind(self) -> str:
        """A refresh, unless something else was chosen."""
        return self.cleaned_data["kind"] or ScheduleKind.REFRESH

    def clean_phases(self) -> list[str]:
        """The ticked phases; [] if these are all, and for a verification, which compares rows."""
        ticked: list[str] = self.cleaned_data["phases"]
        if self.cleaned_data.get("kind") == ScheduleKind.VERIFY:
            return []
        if not ticked:
            raise ValidationError(_("Tick at least one phase."))
        return [] if set(ticked) == set(self.offered) else ticked
