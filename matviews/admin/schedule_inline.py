"""The schedules of a view, edited on its page."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import combinations
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from ..models import RefreshSchedule, ViewControl
from ..tasks import schedules
from .forms import ScheduleForm
from .presentation import schedule_lines

__all__ = ["ScheduleInline", "remarks"]

SHORT = timedelta(seconds=2)  # an interval below it is worth a remark


class ScheduleInline(admin.StackedInline):  # type: ignore[type-arg]
    """How often which phases are asked for, and whether and when that happens next."""

    model = RefreshSchedule
    form = ScheduleForm
    extra = 0
    max_num = 50  # more than anybody needs; Django would build as many forms as a POST asks for
    verbose_name = "schedule"
    fields = ("enabled", "phases", ("every", "period"), "crontab", "jitter", "planned")
    fields_to_see = ("enabled", "which_phases", "how_often", "planned")
    readonly_fields = ("planned", "which_phases", "how_often")

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        """With the phases that the view has, and what is planned for it."""
        offered = obj.options.phases if obj else ScheduleForm.offered
        form = type("ScheduleForm", (ScheduleForm,), {"offered": offered})
        return super().get_formset(request, obj, form=form, **kwargs)

    @admin.display(description="Next and last")
    def planned(self, schedule: RefreshSchedule) -> SafeString | str:
        """When it is sent next, was sent last, or why not."""
        if schedule.pk is None:
            return "It is planned once it is saved."
        if not hasattr(self, "_timetable"):  # of the view's schedules: this shows no others
            self._timetable = schedules.timetable([schedule.view.label])
        own = [each for each in self._timetable if each.schedule.pk == schedule.pk]
        return schedule_lines(own, named=False)

    @admin.display(description="Phases")
    def which_phases(self, schedule: RefreshSchedule) -> str:
        """The phases in words, for whoever may only look."""
        return ", ".join(schedule.phases) or "all"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """The phases as boxes to tick only for whoever may."""
        return self.fields if self._may_change(request) else self.fields_to_see

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may change a view may change its schedules, and so for the two below."""
        return self._may_change(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # the page has been allowed

    def _may_change(self, request: HttpRequest) -> bool:
        return request.user.has_perm("matviews.change_viewcontrol")


def remarks(control: ViewControl) -> Iterator[str]:
    """What is allowed in a view's schedules but worth a sentence."""
    enabled = [schedule for schedule in control.schedules.all() if schedule.enabled]
    for one, other in combinations(enabled, 2):
        if shared := _shared(one, other, control.options.phases):
            yield (
                f"Two schedules of {control.label} ask for {', '.join(shared)}: {one.how_often} "
                f"and {other.how_often}. Requests that meet are merged into one."
            )
    for schedule in enabled:
        if schedule.interval and schedule.interval < SHORT:
            yield (
                f"A schedule asks for {control.label} {schedule.how_often}. Requests that come "
                f"while one is at work are merged, so nothing piles up; but each is kept in the "
                f"history."
            )


def _shared(one: RefreshSchedule, other: RefreshSchedule, offered: Sequence[str]) -> list[str]:
    return [
        str(phase)
        for phase in offered
        if phase in (one.phases or offered) and phase in (other.phases or offered)
    ]
