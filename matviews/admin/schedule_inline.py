"""The schedules of a view, edited on its page."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import combinations
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import RefreshSchedule, ViewControl
from ..tasks import schedules
from .forms import ScheduleForm
from .presentation import requested_text, schedule_lines

__all__ = ["ScheduleInline", "remarks"]

SHORT = timedelta(seconds=2)  # an interval below this is worth a remark


class ScheduleInline(admin.StackedInline):  # type: ignore[type-arg]
    """What is requested, how often, and when next or why not."""

    model = RefreshSchedule
    form = ScheduleForm
    extra = 0
    max_num = 50  # or Django would build as many forms as a POST asks for
    fields = (
        "enabled", "kind", "phases", "sample", "on_change", ("every", "period"), "crontab",
        "jitter", "planned",
    )  # fmt: skip
    fields_to_see = ("enabled", "kind", "which_phases", "frequency", "planned")
    readonly_fields = ("planned", "which_phases", "frequency")

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        """With a form that offers only the phases of the view."""
        offered = obj.options.phases if obj else ScheduleForm.offered
        form = type("ScheduleForm", (ScheduleForm,), {"offered": offered})
        return super().get_formset(request, obj, form=form, **kwargs)

    @admin.display(description=gettext_lazy("Next and last"))
    def planned(self, schedule: RefreshSchedule) -> SafeString | str:
        """When it is sent next and was sent last, or why it is not sent."""
        if schedule.pk is None:
            return _("Not planned until it is saved.")
        if not hasattr(self, "_timetable"):  # of the view's schedules: this shows no others
            self._timetable = schedules.timetable([schedule.view.label])
        own = [each for each in self._timetable if each.schedule.pk == schedule.pk]
        return schedule_lines(own)

    @admin.display(description=gettext_lazy("Phases"))
    def which_phases(self, schedule: RefreshSchedule) -> str:
        """The phases as text, for users who may only view."""
        return requested_text(schedule) or _("all")

    @admin.display(description=gettext_lazy("How often"))
    def frequency(self, schedule: RefreshSchedule) -> str:
        """The model's frequency, under a heading of its own."""
        return schedule.frequency

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """With checkboxes for the phases only for users who may change them."""
        return self.fields if self._may_change(request) else self.fields_to_see

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Users who may change a view may add, change and delete its schedules."""
        return self._may_change(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # the view's page has checked that

    def _may_change(self, request: HttpRequest) -> bool:
        return request.user.has_perm("matviews.change_viewcontrol")


def remarks(control: ViewControl) -> Iterator[str]:
    """Warnings about schedules of a view that are valid but perhaps not intended."""
    enabled = [each for each in control.schedules.all() if each.enabled and each.refreshes]
    for one, other in combinations(enabled, 2):
        # A timed schedule beside one on change is for what no change shows, such as dates.
        if one.on_change == other.on_change and (
            shared := _shared(one, other, control.options.phases)
        ):
            yield _(
                "Two schedules of %(view)s request %(phases)s: %(one)s and %(other)s. Requests "
                "that coincide are merged."
            ) % {
                "view": control.label,
                "phases": ", ".join(shared),
                "one": one.frequency,
                "other": other.frequency,
            }
    for schedule in enabled:
        if schedule.interval and schedule.interval < SHORT:
            yield _(
                "A schedule requests %(view)s %(frequency)s. Requests that arrive while a refresh "
                "is running are merged, so nothing piles up, but the history keeps each of them."
            ) % {"view": control.label, "frequency": schedule.frequency}


def _shared(one: RefreshSchedule, other: RefreshSchedule, offered: Sequence[str]) -> list[str]:
    return [
        str(phase)
        for phase in offered
        if phase in (one.phases or offered) and phase in (other.phases or offered)
    ]
