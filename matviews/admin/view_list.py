"""The list of views: its columns, its filter, and its order, in which what needs a person is first."""

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

from .. import engine
from ..engine import ViewStatus
from ..presentation import format_duration
from ..states import ViewState
from ..tasks import schedules
from .badges import badge
from .presentation import last_successes, row_count, schedule_lines, state_text

__all__ = ["COLUMNS", "StateFilter", "ViewList", "without_rows"]

DASH = "-"
_CACHED = "_matviews_statuses"


@admin.display(description="View")
def name(control: Any) -> SafeString:
    """The label, and what the class calls itself."""
    definition = control.definition
    verbose = definition.model._meta.verbose_name if definition else ""
    return format_html('{} <span class="matviews-quiet">{}</span>', control.label, verbose)


@admin.display(description="State")
def state(control: Any) -> SafeString:
    """The state as a badge, how far a refresh is, and what went wrong."""
    status = control.status
    context = {"status": status, "badge": badge(status.state, state_text(status))}
    return render_to_string("matviews/view_state.html", context)


@admin.display(description="Rows")
def rows(control: Any) -> str:
    """How many rows the view has."""
    return row_count(control.status.rows)


@admin.display(description="Last success")
def last_success(control: Any) -> SafeString:
    """When each phase last succeeded."""
    return last_successes(control.status.successes)


@admin.display(description="Age")
def age(control: Any) -> SafeString | str:
    """How long ago the oldest of these is, how long it may be, and since when a change waits."""
    status = control.status
    if status.age is None:
        return DASH
    more = [f"target {format_duration(status.target)}"] if status.target else []
    if status.change_lag is not None:
        more.append(f"change lag {format_duration(status.change_lag)}")
    return format_html(
        '{} <span class="matviews-quiet">{}</span>', format_duration(status.age), "; ".join(more)
    )


@admin.display(description="Schedule")
def schedule(control: Any) -> SafeString | str:
    """How often the view is asked for, and when next."""
    return schedule_lines(control.planned) or DASH


COLUMNS = (name, state, rows, last_success, age, schedule)


class StateFilter(admin.SimpleListFilter):
    """The views in one state; only states that some view is in are offered."""

    title = "state"
    parameter_name = "state"
    template = "matviews/view_state_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states there are, with how many views are in each."""
        counts = Counter(status.state for status in _statuses(request).values())
        return [
            (state.value, f"{state.value} ({counts[state]})")
            for state in ViewState
            if counts[state]
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The views in the state chosen."""
        if not self.value():
            return queryset
        statuses = _statuses(request).values()
        return queryset.filter(
            label__in=[status.label for status in statuses if status.state == self.value()]
        )


class ViewList(ChangeList):
    """Puts the views in order by their state, which no column holds, and attaches it to each.

    Each row has `status` and `planned`.
    """

    def get_results(self, request: HttpRequest) -> None:
        """As Django's, but over a list in our order."""
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
    """The controls that have a status: one made a moment ago has none yet."""
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
    """Labels of the views that have no row to be listed by, because `migrate` has not run."""
    statuses = _statuses(request).values()
    return [status.label for status in statuses if not status.successes]


def _statuses(request: HttpRequest) -> dict[str, ViewStatus]:
    """The status of every view, by label; asked for once in a request."""
    if not hasattr(request, _CACHED):
        setattr(request, _CACHED, {each.label: each for each in engine.view_statuses()})
    found: dict[str, ViewStatus] = getattr(request, _CACHED)
    return found
