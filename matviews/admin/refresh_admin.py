"""The refreshes in the admin: what was asked for, what came of it, and a button that stops one."""

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

from ..models import PhaseRun, Refresh
from ..presentation import pluralize
from .badges import badge
from .live import refresh_progress
from .presentation import time_ago
from .refresh_page import refresh_context, took
from .steering import Steering

__all__ = ["RefreshAdmin"]

MOST_COUNTED = 10_000  # refreshes that can be turned to page by page; a long history has millions


class NewestPages(Paginator):  # type: ignore[type-arg]
    """Counts no further than anybody turns pages."""

    @cached_property
    def count(self) -> int:
        """How many there are, or can be turned to."""
        refreshes: Any = self.object_list
        counted: int = refreshes.order_by().values("pk")[:MOST_COUNTED].count()
        return counted


@admin.register(Refresh)
class RefreshAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Looking needs Django's view permission, stopping one `refresh_viewcontrol` too."""

    list_display = ("number", "wanted", "condition", "asked", "took", "rows")
    list_filter = ("state", "origin", "requested_at", "view")
    list_select_related = ("view",)
    list_per_page = 50
    search_fields = ("view__label",)
    search_help_text = "A view's label, or a part of it."
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

    def has_add_permission(self, *_args: Any) -> bool:
        """Nobody: a refresh is asked for, not typed in."""
        return False

    def has_change_permission(self, *_args: Any, **_kwargs: Any) -> bool:
        """Nobody: it is a record."""
        return False

    def has_delete_permission(self, *_args: Any, **_kwargs: Any) -> bool:
        """Nobody: it goes with its view, or when it is old."""
        return False

    def has_stop_permission(self, request: HttpRequest) -> bool:
        """Whether the user may stop refreshes."""
        may_steer = request.user.has_perm("matviews.refresh_viewcontrol")
        return may_steer and self.has_view_permission(request)

    # The list

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list: there is nothing to select for."""
        return super().changelist_view(request, {"title": "Refreshes", **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """With the sums over the phase runs."""
        runs = PhaseRun.objects.filter(refresh=OuterRef("pk")).order_by().values("refresh")
        sums: dict[str, Any] = {
            "rows_written": Subquery(runs.values(total=Sum("rows"))),
            "batches_done": Subquery(runs.values(total=Sum("batches"))),
        }
        refreshes: QuerySet[Any] = super().get_queryset(request).annotate(**sums)
        return refreshes

    @admin.display(description="Refresh")
    def number(self, refresh: Any) -> str:
        """Its number."""
        return str(refresh.pk)

    @admin.display(description="View")
    def wanted(self, refresh: Any) -> SafeString:
        """Of which view, and which phases."""
        return format_html(
            '{}<br><span class="matviews-quiet">{}</span>',
            refresh.view,
            ", ".join(refresh.phases),
        )

    @admin.display(description="State")
    def condition(self, refresh: Any) -> SafeString:
        """The state as a badge."""
        return badge(refresh.state)

    @admin.display(description="Asked")
    def asked(self, refresh: Any) -> SafeString:
        """What asked, who, and when."""
        when = time_ago(refresh.requested_at)
        return format_html('{}<br><span class="matviews-quiet">{}</span>', refresh.asked_by, when)

    @admin.display(description="Took")
    def took(self, refresh: Any) -> SafeString:
        """How long it worked."""
        return format_html('<span class="matviews-nowrap">{}</span>', took(refresh))

    @admin.display(description="Rows")
    def rows(self, refresh: Any) -> SafeString:
        """How many it wrote, in how many batches, or which one did its work."""
        if refresh.merged_into_id:
            return format_html("as refresh {}", refresh.merged_into_id)
        return format_html(
            '{}<br><span class="matviews-quiet">in {}</span>',
            f"{refresh.rows_written or 0:,}",
            pluralize(refresh.batches_done or 0, "batch"),
        )

    # The page of one

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Not a form, but what the refresh did."""
        refresh = context["original"]
        ours = {
            "title": f"Refresh {refresh.pk}",
            "subtitle": str(refresh.view),
            "may_stop": self.has_stop_permission(request),
            "may_view_view": request.user.has_perm("matviews.view_viewcontrol"),
            **refresh_context(refresh),
        }
        return super().render_change_form(request, {**context, **ours}, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        """Ours first, because Django's last one takes every path."""
        wrapped = self.admin_site.admin_view
        own = [
            path(
                "<int:pk>/progress/", wrapped(self.progress_view), name="matviews_refresh_progress"
            ),
            path("<int:pk>/stop/", wrapped(self.stop_view), name="matviews_refresh_stop"),
        ]
        return own + super().get_urls()

    def progress_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """How far a refresh is, as JSON."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        refresh = get_object_or_404(Refresh.objects.select_related("view"), pk=pk)
        return JsonResponse(refresh_progress(refresh))

    def stop_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Stop a refresh between two batches, and go back to the page of the button."""
        if not self.has_stop_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        refresh = get_object_or_404(Refresh.objects.select_related("view"), pk=pk)
        Steering(self, request).stop(refresh)
        of_view = request.POST.get("back") == "view"
        page = "admin:matviews_viewcontrol_change" if of_view else "admin:matviews_refresh_change"
        key = refresh.view_id if of_view else refresh.pk
        return HttpResponseRedirect(reverse(page, args=[key], current_app=self.admin_site.name))
