"""The list of views: its columns, its filter, and its order, the most urgent state first."""

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from .. import engine
from ..engine import ViewStatus
from ..models import ViewControl
from ..redact import in_one_line
from ..states import ViewState
from ..tasks import schedules
from .addresses import page_of, rows_url
from .badges import badge
from .phrases import duration
from .presentation import (
    failing_text,
    labelled,
    next_lines,
    pausing_text,
    row_count,
    state_text,
    upstream_text,
    waiting_text,
)
from .strips import age_bar, last_refreshes, strip

__all__ = ["COLUMNS", "StateFilter", "ViewList", "statuses", "without_rows"]

DASH = "-"
MAX_ERROR = 500  # characters
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
    context = {
        "status": status,
        "badge": badge(status.state, state_text(status)),
        "failing": failing_text(status),
        "waiting": waiting_text(status),
        "pausing": pausing_text(status),
        "upstream": upstream_text(status),
    }
    return render_to_string("matviews/view_state.html", context)


@admin.display(description=gettext_lazy("Age"))
def age(control: Any) -> SafeString:
    """How old the rows are against how old they may be, as a bar and in words."""
    status = control.status
    if status.staleness is None:
        return labelled(_("Age"), DASH)
    if not status.target:
        return labelled(_("Age"), duration(status.staleness))
    words = _("%(age)s of %(target)s") % {
        "age": duration(status.staleness),
        "target": duration(status.target),
    }
    return labelled(_("Age"), format_html("{} {}", age_bar(status.staleness, status.target), words))


@admin.display(description=gettext_lazy("Last refreshes"))
def recent(control: Any) -> SafeString:
    """How the last refreshes ended."""
    shown = strip(control.recent, control.label)
    if control.recent and control.may_see_refreshes:
        url = reverse("admin:matviews_refresh_changelist", current_app=control.site)
        shown = format_html('<a href="{}?view__id__exact={}">{}</a>', url, str(control.pk), shown)
    return labelled(_("Last refreshes"), shown)


@admin.display(description=gettext_lazy("Next"))
def schedule(control: Any) -> SafeString:
    """When a refresh is requested next, and how often."""
    return labelled(_("Next"), next_lines(control.planned) or DASH)


@admin.display(description=gettext_lazy("Rows"))
def rows(control: Any) -> SafeString:
    """The number of rows, linked to them, and the views that it reads or that read it."""
    count = row_count(control.status.rows)
    if control.rows_url:
        name = _("Rows of %(view)s: %(count)s") % {"view": control.label, "count": count}
        count = format_html('<a href="{}" aria-label="{}">{}</a>', control.rows_url, name, count)
    lines = [
        (_("reads"), control.reads),
        (_("read by"), control.readers),
    ]
    return format_html(
        "{}{}",
        labelled(_("Rows"), count),
        format_html_join(
            "",
            '<span class="matviews-quiet">{} {}</span>',
            (
                (word, format_html_join(", ", '<a href="{}">{}</a>', links))
                for word, links in lines
                if links
            ),
        ),
    )


@admin.display(description=gettext_lazy("Error"), empty_value="")
def error(control: Any) -> SafeString | str:
    """The last error, in one line; the view's page has all of it."""
    text = in_one_line(control.status.error)
    if not text:
        return ""
    return format_html('<span class="matviews-last-error" title="{0}">{0}</span>', text[:MAX_ERROR])


@admin.display(description=gettext_lazy("Action"), empty_value="")
def operate(control: Any) -> SafeString | str:
    """A button that refreshes the view, or retries what has failed."""
    if not control.may_operate or not control.enabled or control.definition is None:
        return ""
    retry = control.status.failures or control.status.parked
    text, action = (_("Retry"), "retry") if retry else (_("Refresh"), "refresh")
    # The list is already a form, and forms cannot be nested.
    return format_html(
        '<button class="button matviews-row-button" formaction="{}{}" name="back" value="list" '
        'aria-label="{} {}">{}</button>',
        reverse(
            f"admin:matviews_viewcontrol_{action}", args=[control.pk], current_app=control.site
        ),
        control.query,
        text,
        control.label,
        text,
    )


COLUMNS = (name, state, age, recent, schedule, rows, operate, error)
# What a click on the heading of a column sorts by.
SORTED_BY: dict[str, Callable[[Any], Any]] = {
    "name": lambda control: control.label,
    "state": lambda control: control.status.state.urgency,
    "age": lambda control: (
        control.status.staleness / (control.status.target or timedelta(days=365))
        if control.status.staleness is not None
        else -1
    ),
    "rows": lambda control: control.status.rows.rows if control.status.rows else -1,
}
for column in COLUMNS:
    if column.__name__ in SORTED_BY:
        column.admin_order_field = column.__name__  # type: ignore[attr-defined]


class StateFilter(admin.SimpleListFilter):
    """Filters by state; offers only states that occur."""

    title = gettext_lazy("state")
    parameter_name = "state"
    template = "matviews/view_state_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states that occur, with the number of views in each."""
        counts = Counter(status.state for status in statuses(request).values())
        return [
            (state.value, f"{state.label} ({counts[state]})")
            for state in ViewState
            if counts[state]
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The views in the chosen state."""
        if not self.value():
            return queryset
        chosen = [each.label for each in statuses(request).values() if each.state == self.value()]
        return queryset.filter(label__in=chosen)


class ViewList(ChangeList):
    """Orders the views by state, which is not a column; each row gets `status` and `planned`."""

    def get_results(self, request: HttpRequest) -> None:
        """Sorts in Python, then pages as Django does."""
        known = statuses(request)
        found: Any = self._sorted(_with_status(self.queryset, known))
        self.paginator = self.model_admin.get_paginator(request, found, self.list_per_page)
        self.result_count = len(found)
        self.full_result_count = len(known) - len(without_rows(request))
        self.show_full_result_count = self.show_admin_actions = True
        self.can_show_all = self.result_count <= self.list_max_show_all
        self.multi_page = self.result_count > self.list_per_page
        self.result_list = found
        if self.multi_page and not (self.show_all and self.can_show_all):
            try:
                self.result_list = self.paginator.page(self.page_num).object_list
            except InvalidPage as error:
                raise IncorrectLookupParameters from error
        self._attach(request, self.result_list)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """What the database sorts by; `get_results` sorts by the columns."""
        return ["label"]

    def _sorted(self, controls: list[Any]) -> list[Any]:
        """By the columns that were clicked, else the most urgent state first."""
        found = sorted(controls, key=lambda each: (each.status.state.urgency, each.label))
        chosen = self.get_ordering_field_columns() if ORDER_VAR in self.params else {}
        for index, direction in reversed(chosen.items()):
            column = self.list_display[index] if index < len(self.list_display) else None
            if key := SORTED_BY.get(getattr(column, "__name__", "")):
                found.sort(key=key, reverse=direction == "desc")
        return found

    def _attach(self, request: HttpRequest, controls: list[Any]) -> None:
        """Give each row what its columns show, in a fixed number of statements."""
        planned = defaultdict(list)
        for each in schedules.timetable([control.label for control in controls]):
            planned[each.schedule.view_id].append(each)
        recent = last_refreshes([control.pk for control in controls])
        model_admin: Any = self.model_admin
        graph, site = engine.view_graph(), model_admin.admin_site
        readers = graph.views_reading
        query = f"?{request.GET.urlencode()}" if request.GET else ""
        pages = {label: page_of(pk, site.name) for label, pk in _keys().items()}
        for control in controls:
            control.planned, control.recent = planned[control.pk], recent[control.pk]
            control.site, control.query = site.name, query
            control.may_operate = model_admin.has_operate_permission(request)
            control.may_see_refreshes = request.user.has_perm("matviews.view_refresh")
            control.reads, control.readers = (
                [(pages[label], label) for label in found.get(control.label, ()) if label in pages]
                for found in (graph.views_read, readers)
            )
            control.rows_url = rows_url(control, site, request)


def _keys() -> dict[str, int]:
    return dict(ViewControl.objects.values_list("label", "pk"))


def _with_status(controls: Any, known: dict[str, ViewStatus]) -> list[Any]:
    """The controls that have a status; one created a moment ago has none yet."""
    found = [control for control in controls if control.label in known]
    for control in found:
        control.status = known[control.label]
    return found


def without_rows(request: HttpRequest) -> list[str]:
    """Labels of the views that are not listed, because `migrate` has not created their rows."""
    return [each.label for each in statuses(request).values() if not each.successes]


def statuses(request: HttpRequest) -> dict[str, ViewStatus]:
    """The status of every view, by label; read once per request."""
    if not hasattr(request, _CACHED):
        setattr(request, _CACHED, {each.label: each for each in engine.view_statuses()})
    found: dict[str, ViewStatus] = getattr(request, _CACHED)
    return found
