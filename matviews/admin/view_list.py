"""The list of views: its columns, its filter, and its order, the most urgent state first."""

from collections import Counter, defaultdict
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from .. import engine
from ..engine import ViewStatus
from ..states import ViewState
from ..tasks import schedules
from .badges import badge
from .phrases import duration
from .presentation import labelled, last_successes, row_count, schedule_lines, state_text

__all__ = ["COLUMNS", "StateFilter", "ViewList", "without_rows"]

DASH = "-"
_CACHED = "_matviews_statuses"


@admin.display(description=pgettext_lazy("materialized view", "View"))
def name(control: Any) -> SafeString:
    """The label and the model's verbose name."""
    definition = control.definition
    verbose = definition.model._meta.verbose_name if definition else ""
    return format_html('{} <span class="matviews-quiet">{}</span>', control.label, verbose)


@admin.display(description=gettext_lazy("State"))
def state(control: Any) -> SafeString:
    """The state as a badge, with progress and errors."""
    status = control.status
    context = {"status": status, "badge": badge(status.state, state_text(status))}
    return render_to_string("matviews/view_state.html", context)


@admin.display(description=gettext_lazy("Rows"))
def rows(control: Any) -> SafeString:
    """The number of rows in the view's table."""
    return labelled(_("Rows"), row_count(control.status.rows))


@admin.display(description=gettext_lazy("Last success"))
def last_success(control: Any) -> SafeString:
    """When each phase last succeeded."""
    return labelled(_("Last success"), last_successes(control.status.successes))


@admin.display(description=gettext_lazy("Age"))
def age(control: Any) -> SafeString:
    """The age of the oldest success, the target, and the age of the oldest pending change."""
    status = control.status
    if status.age is None:
        return labelled(_("Age"), DASH)
    more = [_("target %(time)s") % {"time": duration(status.target)}] if status.target else []
    if status.change_lag is not None:
        more.append(_("change lag %(time)s") % {"time": duration(status.change_lag)})
    details = format_html('<span class="matviews-quiet">{}</span>', "; ".join(more))
    return labelled(_("Age"), format_html("{} {}", duration(status.age), details))


@admin.display(description=gettext_lazy("Schedule"))
def schedule(control: Any) -> SafeString:
    """How often a refresh is requested, and when next."""
    return labelled(_("Schedule"), schedule_lines(control.planned) or DASH)


COLUMNS = (name, state, rows, last_success, age, schedule)


class StateFilter(admin.SimpleListFilter):
    """Filters by state; offers only states that occur."""

    title = gettext_lazy("state")
    parameter_name = "state"
    template = "matviews/view_state_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states that occur, with the number of views in each."""
        counts = Counter(status.state for status in _statuses(request).values())
        return [
            (state.value, f"{state.label} ({counts[state]})")
            for state in ViewState
            if counts[state]
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The views in the chosen state."""
        if not self.value():
            return queryset
        statuses = _statuses(request).values()
        return queryset.filter(
            label__in=[status.label for status in statuses if status.state == self.value()]
        )


class ViewList(ChangeList):
    """Orders the views by state, which is not a column; each row gets `status` and `planned`."""

    def get_results(self, request: HttpRequest) -> None:
        """Sorts in Python, then pages as Django does."""
        statuses = _statuses(request)
        found: Any = sorted(
            _with_status(self.queryset, statuses),
            key=lambda control: (control.status.state.urgency, control.label),
        )
        self.paginator = self.model_admin.get_paginator(request, found, self.list_per_page)
        self.result_count = len(found)
        self.full_result_count = len(statuses) - len(without_rows(request))
        self.show_full_result_count = self.show_admin_actions = True
        self.can_show_all = self.result_count <= self.list_max_show_all
        self.multi_page = self.result_count > self.list_per_page
        self.result_list = found
        if self.multi_page and not (self.show_all and self.can_show_all):
            try:
                self.result_list = self.paginator.page(self.page_num).object_list
            except InvalidPage as error:
                raise IncorrectLookupParameters from error
        _attach(self.result_list)


def _with_status(controls: Any, statuses: dict[str, ViewStatus]) -> list[Any]:
    """The controls that have a status; one created a moment ago has none yet."""
    found = [control for control in controls if control.label in statuses]
    for control in found:
        control.status = statuses[control.label]
    return found


def _attach(controls: list[Any]) -> None:
    planned = defaultdict(list)
    for each in schedules.timetable([control.label for control in controls]):
        planned[each.schedule.view_id].append(each)
    for control in controls:
        control.planned = planned[control.pk]


def without_rows(request: HttpRequest) -> list[str]:
    """Labels of the views that are not listed, because `migrate` has not created their rows."""
    statuses = _statuses(request).values()
    return [status.label for status in statuses if not status.successes]


def _statuses(request: HttpRequest) -> dict[str, ViewStatus]:
    """The status of every view, by label; read once per request."""
    if not hasattr(request, _CACHED):
        setattr(request, _CACHED, {each.label: each for each in engine.view_statuses()})
    found: dict[str, ViewStatus] = getattr(request, _CACHED)
    return found
