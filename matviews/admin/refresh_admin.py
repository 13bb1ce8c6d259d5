"""Refreshes in the admin: what was requested, what happened, and a button that stops one."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import OuterRef, QuerySet, Subquery, Sum
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
)
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from ..models import PhaseRun, Refresh
from .actions import OperatorActions
from .badges import badge
from .live import refresh_progress
from .phrases import count_batches, duration, number, requesters
from .presentation import labelled, time_ago
from .record_admin import RecordAdmin
from .refresh_page import refresh_context, took
from .wave_section import wave_context

__all__ = ["RefreshAdmin"]

MAX_COUNTED = 10_000  # refreshes that can be paged through; a long history has millions


class NewestPages(Paginator):  # type: ignore[type-arg]
    """Caps the count: nobody pages through a history of millions."""

    @cached_property
    def count(self) -> int:
        """The number of refreshes, at most `MAX_COUNTED`."""
        refreshes: Any = self.object_list
        counted: int = refreshes.order_by().values("pk")[:MAX_COUNTED].count()
        return counted


@admin.register(Refresh)
class RefreshAdmin(RecordAdmin):
    """Viewing needs Django's view permission; stopping one needs `operate_viewcontrol` too."""

    list_display = ("primary_key", "view_and_phases", "condition", "requested", "took", "rows")
    list_filter = ("state", "origin", "requested_at", "view")
    list_select_related = ("view",)
    list_per_page = 50
    search_fields = ("view__label",)
    search_help_text = gettext_lazy("A view's label, or a part of it.")
    ordering = ("-pk",)
    sortable_by = ()
    paginator = NewestPages
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions = None
    fields = ("view",)

    class Media:
        css = {"all": ("matviews/admin.css", "matviews/pictures.css")}

    # Permissions

    def has_stop_permission(self, request: HttpRequest) -> bool:
        """Whether the user may stop refreshes."""
        may_operate = request.user.has_perm("matviews.operate_viewcontrol")
        return may_operate and self.has_view_permission(request)

    # The list

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Titled "Refreshes" instead of "Select refresh to view"."""
        return super().changelist_view(request, {"title": _("Refreshes"), **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Annotated with sums over the phase runs."""
        runs = PhaseRun.objects.filter(refresh=OuterRef("pk")).order_by().values("refresh")
        sums: dict[str, Any] = {
            "rows_written": Subquery(runs.values(total=Sum("rows"))),
            "batches_done": Subquery(runs.values(total=Sum("batches"))),
            "seconds_worked": Subquery(runs.values(total=Sum("seconds"))),
        }
        refreshes: QuerySet[Any] = super().get_queryset(request).annotate(**sums)
        return refreshes

    @admin.display(description=gettext_lazy("Refresh"))
    def primary_key(self, refresh: Any) -> str:
        """The primary key without separators, as in the page's address."""
        return str(refresh.pk)

    @admin.display(description=pgettext_lazy("materialized view", "View"))
    def view_and_phases(self, refresh: Any) -> SafeString:
        """The phases below the view."""
        return format_html(
            '{}<br><span class="matviews-quiet">{}</span>',
            refresh.view,
            ", ".join(refresh.phases),
        )

    @admin.display(description=gettext_lazy("State"))
    def condition(self, refresh: Any) -> SafeString:
        """Not named `state`: the column would show the field."""
        return badge(refresh.state)

    @admin.display(description=gettext_lazy("Requested"))
    def requested(self, refresh: Any) -> SafeString:
        """By what, by whom, and when."""
        when = time_ago(refresh.requested_at)
        by_and_when = format_html(
            '{}<br><span class="matviews-quiet">{}</span>', requesters(refresh), when
        )
        return labelled(_("Requested"), by_and_when)

    @admin.display(description=gettext_lazy("Took"))
    def took(self, refresh: Any) -> SafeString:
        """From the request to the end, and how long its batches worked."""
        time = format_html(
            '<span class="matviews-nowrap">{}</span><br><span class="matviews-quiet">{}</span>',
            took(refresh),
            _("worked %(time)s") % {"time": duration(refresh.seconds_worked or 0.0)},
        )
        return labelled(_("Took"), time)

    @admin.display(description=gettext_lazy("Rows written"))
    def rows(self, refresh: Any) -> SafeString:
        """Rows and batches; or, if it was merged, which refresh did the work."""
        if refresh.merged_into_id:
            leader = format_html(_("merged into refresh {}"), refresh.merged_into_id)
            return labelled(_("Rows written"), leader)
        in_batches = _("in %(batches)s") % {"batches": count_batches(refresh.batches_done or 0)}
        written = format_html(
            '{}<br><span class="matviews-quiet">{}</span>',
            number(refresh.rows_written or 0),
            in_batches,
        )
        return labelled(_("Rows written"), written)

    # The page of one

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """What the refresh did, instead of a form."""
        refresh = context["original"]
        ours = {
            "title": _("Refresh %(refresh)s") % {"refresh": refresh.pk},
            "subtitle": str(refresh.view),
            "may_stop": self.has_stop_permission(request),
            "may_view_view": request.user.has_perm("matviews.view_viewcontrol"),
            "wave": wave_context(refresh, self.admin_site.name),
            **refresh_context(refresh),
        }
        return super().render_change_form(request, {**context, **ours}, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        """Ours come first, because Django's last pattern matches every path."""
        wrapped = self.admin_site.admin_view
        own = [
            path(
                "<int:pk>/progress/", wrapped(self.progress_view), name="matviews_refresh_progress"
            ),
            path("<int:pk>/stop/", wrapped(self.stop_view), name="matviews_refresh_stop"),
        ]
        return own + super().get_urls()

    def progress_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The progress of a refresh, as JSON."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        refresh = get_object_or_404(Refresh.objects.select_related("view"), pk=pk)
        return JsonResponse(refresh_progress(refresh))

    def stop_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Stop a refresh between two batches, and return to the page with the button."""
        if not self.has_stop_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        refresh = get_object_or_404(Refresh.objects.select_related("view"), pk=pk)
        OperatorActions(self, request).stop(refresh)
        of_view = request.POST.get("back") == "view"
        page = "admin:matviews_viewcontrol_change" if of_view else "admin:matviews_refresh_change"
        key = refresh.view_id if of_view else refresh.pk
        return HttpResponseRedirect(reverse(page, args=[key], current_app=self.admin_site.name))
