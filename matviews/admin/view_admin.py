"""The views in the admin: their list, their pages, and what is done there."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
)
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse

from ..models import PhaseRun, Refresh, ViewControl
from ..tasks import schedules
from .forms import ControlForm
from .live import view_progress
from .schedule_inline import ScheduleInline, remarks
from .steering import Steering
from .view_list import COLUMNS, StateFilter, ViewList, without_rows
from .view_page import page_context

__all__ = ["ViewControlAdmin"]


@admin.register(ViewControl)
class ViewControlAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Looking at views needs Django's view permission, steering them `refresh_viewcontrol` too,
    and setting something about them or their schedules the change permission.
    """

    form = ControlForm
    fieldsets = (("Settings", {"fields": ControlForm.Meta.fields}),)
    inlines = (ScheduleInline,)
    list_display = COLUMNS
    list_filter = (StateFilter,)
    search_fields = ("label",)
    sortable_by = ()
    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER
    actions = ("refresh_now", "pause", "resume")

    class Media:
        css = {"all": ("matviews/admin.css", "matviews/pictures.css")}

    # Permissions

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody: `migrate` makes the rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only for what the code no longer defines: `migrate` would make the others again."""
        return super().has_delete_permission(request, obj) and not (obj and obj.definition)

    def has_refresh_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may steer views: refresh, pause, resume, stop."""
        may_steer = request.user.has_perm("matviews.refresh_viewcontrol")
        return may_steer and self.has_view_permission(request, obj)

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ViewList]:
        """Ours, in the order of the states."""
        return ViewList

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Without deleting: that goes one by one, where it goes at all."""
        # Django passes the location since 6.1.
        location = {"action_location": action_location} if action_location else {}
        actions: dict[str, Any] = super().get_actions(request, **location)
        return {name: action for name, action in actions.items() if name != "delete_selected"}

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list, with what is wrong with all of the views on top."""
        ours: dict[str, Any] = {"title": "Views"}
        if request.method == "GET" and self.has_view_permission(request):
            ours |= {
                "without_rows": without_rows(request),
                "maintenance_problem": schedules.maintenance_problem(),
            }
        return super().changelist_view(request, {**ours, **(extra_context or {})})

    @admin.action(description="Refresh now", permissions=["refresh"])
    def refresh_now(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Ask for a refresh of all phases of the selected views."""
        Steering(self, request).refresh(queryset)

    @admin.action(description="Pause", permissions=["refresh"])
    def pause(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Hold the work of the selected views."""
        Steering(self, request).pause(queryset)

    @admin.action(description="Resume", permissions=["refresh"])
    def resume(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Let the work of the selected views go on."""
        Steering(self, request).resume(queryset)

    # The view page

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The form, with how the view stands above it."""
        control, user = context["original"], request.user
        may_refresh = self.has_refresh_permission(request, control)
        may_see_refreshes = user.has_perm("matviews.view_refresh")
        ours = {
            "title": control.label,
            "subtitle": None,
            "may_refresh": may_refresh,
            "may_see_refreshes": may_see_refreshes,
            "may_stop": may_refresh and may_see_refreshes,
            **page_context(control),
        }
        return super().render_change_form(request, {**context, **ours}, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Only what was changed: the rest may have changed since, by a worker or another person."""
        obj.save(update_fields=form.changed_data)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the schedules, and say what is allowed in them but worth a sentence."""
        super().save_related(request, form, formsets, change)
        for remark in remarks(form.instance):
            self.message_user(request, remark, messages.WARNING)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Its bookkeeping goes with a view, whoever may look at that; counted, as it is long."""
        counts = {
            "schedules": sum(control.schedules.count() for control in objs),
            "refreshes": Refresh.objects.filter(view__in=objs).count(),
            "phase runs": PhaseRun.objects.filter(refresh__view__in=objs).count(),
        }
        return [str(control) for control in objs], counts, set(), []

    # The addresses beside Django's own

    def get_urls(self) -> list[URLPattern]:
        """Ours first, because Django's last one takes every path."""
        own = [
            path("<int:pk>/progress/", self._wrapped(self.progress_view), name=_name("progress")),
            path("<int:pk>/refresh/", self._wrapped(self.refresh_view), name=_name("refresh")),
            path("<int:pk>/pause/", self._wrapped(self.pause_view), name=_name("pause")),
            path("<int:pk>/resume/", self._wrapped(self.resume_view), name=_name("resume")),
        ]
        return own + super().get_urls()

    def _wrapped(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponseBase]:
        return self.admin_site.admin_view(view)

    def progress_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """How far the work on a view is, as JSON."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return JsonResponse(view_progress(get_object_or_404(ViewControl, pk=pk)))

    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask for a refresh of the phases ticked."""
        phases = request.POST.getlist("phases")
        return self._steer(request, pk, lambda steer, view: steer.refresh([view], phases))

    def pause_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Hold the work of a view."""
        return self._steer(request, pk, lambda steer, view: steer.pause([view]))

    def resume_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let the work of a view go on."""
        return self._steer(request, pk, lambda steer, view: steer.resume([view]))

    def _steer(
        self, request: HttpRequest, pk: int, action: Callable[[Steering, ViewControl], None]
    ) -> HttpResponse:
        if not self.has_refresh_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        action(Steering(self, request), get_object_or_404(ViewControl, pk=pk))
        page = reverse(f"admin:{_name('change')}", args=[pk], current_app=self.admin_site.name)
        return HttpResponseRedirect(page)


def _name(action: str) -> str:
    return f"matviews_viewcontrol_{action}"
