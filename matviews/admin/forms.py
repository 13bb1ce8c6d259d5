"""The forms of the view page: what an operator sets about a view, and its schedules."""

from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from ..conf import get_settings
from ..limits import BATCH_SECONDS, BATCH_SIZE, FRESHNESS_TARGET
from ..models import RefreshSchedule, ViewControl
from ..phases import Phase

__all__ = ["ControlForm", "ScheduleForm"]


class ControlForm(forms.ModelForm):  # type: ignore[type-arg]
    """What an operator may set about a view. Pausing is not among it: that is an action."""

    class Meta:
        model = ViewControl
        fields = (
            "enabled", "include_in_refresh_all", "freshness_target", "shard_count", "batch_size",
            "batch_target",
        )  # fmt: skip
        help_texts = {
            "freshness_target": "How old the last success may be, in hours:minutes:seconds. "
            "Empty: as the code says.",
            "shard_count": "Shares of the keys that are worked on side by side. Takes effect as soon "
            "as no refresh is open.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """With what holds where a field is left empty."""
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            # So that what counts as changed is what the person has changed, not another since.
            field.show_hidden_initial = True
        options = self.instance.options
        in_code = {
            "batch_size": options.batch_size,
            "batch_target": options.batch_target or get_settings().BATCH_TARGET,
            "freshness_target": options.freshness_target,
        }
        for name in in_code.keys() & self.fields.keys():
            self.fields[name].widget.attrs["placeholder"] = str(in_code[name] or "")

    def clean_shard_count(self) -> int:
        """One, for a view whose hooks would each do all the work."""
        count: int = self.cleaned_data["shard_count"]
        definition = self.instance.definition
        if count > 1 and definition and not definition.is_shard_aware:
            raise ValidationError("Its hooks do not declare shard, so it can have only one.")
        return count

    def clean_batch_size(self) -> int | None:
        """A size that a batch can have."""
        size: int | None = self.cleaned_data["batch_size"]
        if size is not None and (fault := BATCH_SIZE.fault(size)):
            raise ValidationError(f"Give {fault}, or nothing.")
        return size

    def clean_batch_target(self) -> float | None:
        """A time that a batch can take."""
        seconds: float | None = self.cleaned_data["batch_target"]
        if seconds is not None and (fault := BATCH_SECONDS.fault(seconds)):
            raise ValidationError(f"Give {fault}, or nothing.")
        return seconds

    def clean_freshness_target(self) -> timedelta | None:
        """A length of time."""
        target: timedelta | None = self.cleaned_data["freshness_target"]
        if target is not None and (fault := FRESHNESS_TARGET.fault(target, noun="duration")):
            raise ValidationError(f"Give {fault}, as in 00:10:00, or nothing.")
        return target


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """One schedule. All phases ticked stands for all that the view has, now and later."""

    phases = forms.MultipleChoiceField(
        choices=Phase.choices,
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Tick at least one phase."},
    )

    # Those of the view; a subclass for each is made by the inline.
    offered: tuple[Phase, ...] = tuple(Phase)

    class Meta:
        model = RefreshSchedule
        fields = ("enabled", "phases", "every", "period", "crontab", "jitter")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "phases" not in self.fields:  # for whoever may only look
            return
        # One that the view has no more stays to be seen, and to be unticked.
        stored = [phase for phase in Phase if phase in self.instance.phases]
        names = [phase for phase in Phase if phase in self.offered or phase in stored]
        self.fields["phases"].choices = [(name.value, name.label.lower()) for name in names]  # type: ignore[attr-defined]
        self.initial["phases"] = self.instance.phases or [phase.value for phase in self.offered]

    def add_error(self, field: str | None, error: Any) -> None:
        """One fault of each field; what else the model says of it follows from that."""
        if by_field := getattr(error, "error_dict", None):
            error = ValidationError(
                {name: told[:1] for name, told in by_field.items() if name not in self.errors}
            )
        super().add_error(field, error)

    def clean_phases(self) -> list[str]:
        """The phases ticked, [] if these are all."""
        ticked: list[str] = self.cleaned_data["phases"]
        return [] if set(ticked) == set(self.offered) else ticked
