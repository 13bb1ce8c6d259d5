"""The list of views: their rows with how they stand, what needs a person first."""

from collections import Counter, defaultdict
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import HttpRequest

from ..engine import ViewStatus
from ..states import ViewState
from ..tasks import schedules
from .definitions import definition_of
from .statuses import statuses_of

__all__ = ["StateFilter", "ViewList", "without_rows"]


class StateFilter(admin.SimpleListFilter):
    """The views in one state; only states that some view is in are offered."""

    title = "state"
    parameter_name = "state"
    template = "matviews/state_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states there are, with how many views are in each."""
        counts = Counter(status.state for status in statuses_of(request).values())
        return [
            (state.value, f"{state.value} ({counts[state]})")
            for state in ViewState
            if counts[state]
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The views in the state chosen."""
        if not self.value():
            return queryset
        statuses = statuses_of(request).values()
        return queryset.filter(
            label__in=[status.label for status in statuses if status.state == self.value()]
        )


class ViewList(ChangeList):
    """Puts the views in order by their state, which no column holds, and attaches it to each.

    Each row has `status`, `definition` (None if the code no longer has it) and `planned`.
    """

    def get_results(self, request: HttpRequest) -> None:
        """As Django's, but over a list in our order."""
        statuses = statuses_of(request)
        found: Any = sorted(
            _with_status(self.queryset, statuses),
            key=lambda control: (control.status.state.urgency, control.label),
        )
        self.paginator = self.model_admin.get_paginator(request, found, self.list_per_page)
        self.result_count = len(found)
        self.full_result_count = len(statuses)
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
        control.definition = definition_of(control.label)
        control.planned = planned[control.pk]


def without_rows(request: HttpRequest) -> list[str]:
    """Labels of the views that have no row to be listed by, because `migrate` has not run."""
    statuses = statuses_of(request).values()
    return [status.label for status in statuses if status.state == ViewState.NO_ROWS]
