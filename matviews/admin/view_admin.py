"""Views in the admin: their list, their pages, and the actions there."""

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
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from ..models import PhaseRun, Refresh, RefreshSchedule, ViewControl
from ..tasks import schedules
from .actions import OperatorActions
from .addresses import rows_url
from .forms import ControlForm
from .graph_page import graph_context
from .live import view_progress
from .neighbours_section import neighbours_context
from .schedule_inline import ScheduleInline, remarks
from .summary import summary
from .view_list import COLUMNS, StateFilter, ViewList, statuses, without_rows
from .view_page import page_context

__all__ = ["ViewControlAdmin"]


MAX_DIGITS = 18  # of a primary key


@admin.register(ViewControl)
class ViewControlAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Viewing needs Django's view permission, operating a view `operate_viewcontrol` too, and
    changing its settings or schedules Django's change permission.
    """

    form = ControlForm
    fieldsets = ((_("Settings"), {"fields": ControlForm.Meta.fields}),)
    inlines = (ScheduleInline,)
    list_display = COLUMNS
    list_filter = (StateFilter,)
    search_fields = ("label",)
    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER
    actions = ("refresh_now", "pause", "resume", "resume_suspended", "verify", "repair")

    class Media:
        css = {"all": ("matviews/admin.css", "matviews/pictures.css")}

    # Permissions

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody: `migrate` creates the rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only what the code no longer defines: `migrate` would create the others again."""
        return super().has_delete_permission(request, obj) and not (obj and obj.definition)

    def has_operate_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may refresh, pause, resume and stop views."""
        may_operate = request.user.has_perm("matviews.operate_viewcontrol")
        return may_operate and self.has_view_permission(request, obj)

    def has_resume_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may resume views that were suspended because they kept failing."""
        may_resume = request.user.has_perm("matviews.resume_viewcontrol")
        return may_resume and self.has_view_permission(request, obj)

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ViewList]:
        """Ours is ordered by state."""
        return ViewList

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Without "delete selected": deleting is possible one by one, if at all."""
        # Django passes the location since 6.1.
        location = {"action_location": action_location} if action_location else {}
        actions: dict[str, Any] = super().get_actions(request, **location)
        return {name: action for name, action in actions.items() if name != "delete_selected"}

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list, with problems that concern all views above it."""
        ours: dict[str, Any] = {"title": capfirst(ViewControl._meta.verbose_name_plural)}
        if request.method == "GET" and self.has_view_permission(request):
            ours |= {
                "without_rows": without_rows(request),
                "summary": summary(statuses(request).values()),
                "maintenance_problem": schedules.maintenance_problem(),
            }
        return super().changelist_view(request, {**ours, **(extra_context or {})})

    @admin.action(description=_("Refresh now"), permissions=["operate"])
    def refresh_now(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Request a refresh of all phases of the selected views."""
        OperatorActions(self, request).refresh(queryset)

    @admin.action(description=_("Pause"), permissions=["operate"])
    def pause(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Start no further batch of the selected views."""
        OperatorActions(self, request).pause(queryset)

    @admin.action(description=_("Resume"), permissions=["operate"])
    def resume(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Let the batches of the selected views start again."""
        OperatorActions(self, request).resume(queryset)

    @admin.action(description=_("Resume suspended views"), permissions=["resume"])
    def resume_suspended(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Forget the failures of the selected views that are suspended."""
        OperatorActions(self, request).resume_suspended(queryset)

    @admin.action(description=_("Verify"), permissions=["operate"])
    def verify(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Compare the selected views with their sources, in the background."""
        OperatorActions(self, request).verify(queryset)

    @admin.action(description=_("Repair"), permissions=["operate"])
    def repair(self, request: HttpRequest, queryset: QuerySet[ViewControl]) -> None:
        """Compare the selected views with their sources, and write the rows that differ."""
        OperatorActions(self, request).verify(queryset, repair=True)

    # The view page

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The form, below the state of the view."""
        control, user = context["original"], request.user
        may_operate = self.has_operate_permission(request, control)
        may_see_refreshes = user.has_perm("matviews.view_refresh")
        ours = {
            "title": control.label,
            "subtitle": None,
            "may_operate": may_operate,
            "may_resume": self.has_resume_permission(request, control),
            "may_see_refreshes": may_see_refreshes,
            "may_stop": may_operate and may_see_refreshes,
            "may_retry": may_operate and control.definition is not None,
            "rows_url": rows_url(control, self.admin_site, request),
            "neighbours": neighbours_context(control, self.admin_site.name),
            **page_context(control),
        }
        return super().render_change_form(request, {**context, **ours}, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save only what was changed: a worker or another person may have changed the rest."""
        obj.save(update_fields=form.changed_data)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the schedules, and warn if they may not be what was intended."""
        super().save_related(request, form, formsets, change)
        for remark in remarks(form.instance):
            self.message_user(request, remark, messages.WARNING)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Counts instead of a list, which would be long, and no check of permissions on them."""
        counts = {
            model._meta.verbose_name_plural: model.objects.filter(**{view: objs}).count()
            for model, view in (
                (RefreshSchedule, "view__in"),
                (Refresh, "view__in"),
                (PhaseRun, "refresh__view__in"),
            )
        }
        return [str(control) for control in objs], counts, set(), []

    # The URLs beside Django's own

    def get_urls(self) -> list[URLPattern]:
        """Ours come first, because Django's last pattern matches every path."""
        own = [
            path("<int:pk>/progress/", self._wrapped(self.progress_view), name=_name("progress")),
            path("<int:pk>/refresh/", self._wrapped(self.refresh_view), name=_name("refresh")),
            path("<int:pk>/retry/", self._wrapped(self.retry_view), name=_name("retry")),
            path("graph/", self._wrapped(self.graph_view), name=_name("graph")),
            path("<int:pk>/pause/", self._wrapped(self.pause_view), name=_name("pause")),
            path("<int:pk>/resume/", self._wrapped(self.resume_view), name=_name("resume")),
            path(
                "<int:pk>/retry-parked/",
                self._wrapped(self.retry_parked_view),
                name=_name("retry_parked"),
            ),
            path(
                "<int:pk>/resume-suspended/",
                self._wrapped(self.resume_suspended_view),
                name=_name("resume_suspended"),
            ),
            path("<int:pk>/verify/", self._wrapped(self.verify_view), name=_name("verify")),
            path("<int:pk>/repair/", self._wrapped(self.repair_view), name=_name("repair")),
        ]
        return own + super().get_urls()

    def _wrapped(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponseBase]:
        return self.admin_site.admin_view(view)

    def progress_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The progress of a view's open refresh, as JSON."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return JsonResponse(view_progress(get_object_or_404(ViewControl, pk=pk)))

    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Request a refresh of the ticked phases; from the list, of all."""
        phases = None if _from_list(request) else request.POST.getlist("phases")
        return self._act(request, pk, lambda actions, view: actions.refresh([view], phases))

    def retry_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Request a refresh that tries parked keys again, too."""
        return self._act(request, pk, lambda actions, view: actions.retry(view))

    def graph_view(self, request: HttpRequest) -> HttpResponse:
        """Which views read which tables and views, as a picture and as a table."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": _("Graph of the views"),
            "opts": self.opts,
            "media": self.media,
            **graph_context(request.GET.get("view", ""), self.admin_site.name),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/matviews/viewcontrol/graph.html", context)

    def pause_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Start no further batch of a view."""
        return self._act(request, pk, lambda actions, view: actions.pause([view]))

    def resume_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let the batches of a view start again."""
        return self._act(request, pk, lambda actions, view: actions.resume([view]))

    def resume_suspended_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Forget the failures of a suspended view."""
        allowed = self.has_resume_permission(request)
        return self._act(
            request, pk, lambda actions, view: actions.resume_suspended([view]), allowed=allowed
        )

    def retry_parked_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Try the ticked parked keys of a view again, or all."""
        keys = request.POST.getlist("key")
        ticked = [int(key) for key in keys if key.isdecimal() and len(key) <= MAX_DIGITS]
        ids = None if "all" in request.POST else ticked
        return self._act(request, pk, lambda actions, view: actions.retry_parked(view, ids))

    def verify_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Compare a view with its source, in the background."""
        return self._act(request, pk, lambda actions, view: actions.verify([view]))

    def repair_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Compare a view with its source, and write the rows that differ."""
        return self._act(request, pk, lambda actions, view: actions.verify([view], repair=True))

    def _act(
        self,
        request: HttpRequest,
        pk: int,
        action: Callable[[OperatorActions, ViewControl], None],
        *,
        allowed: bool | None = None,
    ) -> HttpResponse:
        if not (self.has_operate_permission(request) if allowed is None else allowed):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        action(OperatorActions(self, request), get_object_or_404(ViewControl, pk=pk))
        if _from_list(request):
            return HttpResponseRedirect(self._list_of(request))
        page = reverse(f"admin:{_name('change')}", args=[pk], current_app=self.admin_site.name)
        return HttpResponseRedirect(page)

    def _list_of(self, request: HttpRequest) -> str:
        """The list, filtered and sorted as it was when the button was clicked."""
        page = reverse(f"admin:{_name('changelist')}", current_app=self.admin_site.name)
        query = request.GET.urlencode()
        return f"{page}?{query}" if query else page


def _from_list(request: HttpRequest) -> bool:
    return request.POST.get("back") == "list"


def _name(action: str) -> str:
    return f"matviews_viewcontrol_{action}"
