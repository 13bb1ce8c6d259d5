"""Alarms in the admin: those that are active first, then those that have ended."""

from typing import Any

from django.contrib import admin
from django.db.models import BigIntegerField, F, OuterRef, QuerySet, Subquery, Value
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ..models import Alarm, ViewControl
from ..redact import in_one_line
from ..states import ViewState
from .addresses import page_of
from .badges import badge
from .presentation import labelled, time_ago
from .record_admin import RecordAdmin

__all__ = ["AlarmAdmin"]

MAX_VIEWS = 10  # late views that are named for an alarm
MAX_ERROR = 500  # characters
_LABELS = dict(ViewState.choices)


@admin.register(Alarm)
class AlarmAdmin(RecordAdmin):
    """Viewing needs Django's view permission; nobody can do more."""

    list_display = ("problem", "condition", "lasting", "notified", "cause", "late_views")
    list_display_links = None
    list_per_page = 50
    search_fields = ("view", "kind")
    search_help_text = gettext_lazy("A view's label, or a part of it.")
    ordering = (F("is_open").desc(nulls_last=True), "-since")
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions = None

    class Media:
        css = {"all": ("matviews/admin.css",)}

    def get_urls(self) -> list[URLPattern]:
        """Only the list, which has all of an alarm."""
        return [each for each in super().get_urls() if each.name == "matviews_alarm_changelist"]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Titled "Alarms" instead of "Select alarm to view"."""
        title = capfirst(Alarm._meta.verbose_name_plural)
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Those that were raised, each with the key of its view, if the user may see views."""
        controls = ViewControl.objects.filter(label=OuterRef("view")).values("pk")
        may_see = request.user.has_perm("matviews.view_viewcontrol")
        raised: QuerySet[Any] = super().get_queryset(request).filter(raised_at__isnull=False)
        annotated: QuerySet[Any] = raised.annotate(
            view_pk=Subquery(controls) if may_see else Value(None, BigIntegerField()),
            site=Value(self.admin_site.name),
        )
        return annotated

    @admin.display(description=gettext_lazy("Problem"))
    def problem(self, alarm: Any) -> SafeString:
        """What is wrong, with which view."""
        label = alarm.view or "matviews"
        if alarm.view_pk:
            label = format_html('<a href="{}">{}</a>', page_of(alarm.view_pk, alarm.site), label)
        return _with_detail(label, _LABELS.get(alarm.kind, alarm.kind))

    @admin.display(description=gettext_lazy("State"))
    def condition(self, alarm: Any) -> SafeString:
        """Whether it has ended."""
        return badge("ended" if alarm.ended_at else "active")

    @admin.display(description=gettext_lazy("Since"))
    def lasting(self, alarm: Any) -> SafeString:
        """When the problem was first seen, and when the alarm ended."""
        ended = format_html(_("ended {}"), time_ago(alarm.ended_at)) if alarm.ended_at else ""
        return labelled(_("Since"), _with_detail(time_ago(alarm.since), ended))

    @admin.display(description=gettext_lazy("Notified"))
    def notified(self, alarm: Any) -> SafeString:
        """When people were last notified, and what could not be delivered."""
        channels = alarm.undelivered.replace(",", ", ")
        missed = _("not delivered: %(channels)s") % {"channels": channels} if channels else ""
        return labelled(_("Notified"), _with_detail(time_ago(alarm.notified_at), missed))

    @admin.display(description=gettext_lazy("Cause"))
    def cause(self, alarm: Any) -> SafeString:
        """The problem in a sentence, and the error of the view."""
        return _with_detail(alarm.text, in_one_line(alarm.error)[:MAX_ERROR])

    @admin.display(description=gettext_lazy("Late because of it"), empty_value="")
    def late_views(self, alarm: Any) -> SafeString | str:
        """The views that have no alarm of their own, because this one is the cause."""
        names, more = ", ".join(alarm.views[:MAX_VIEWS]), len(alarm.views) - MAX_VIEWS
        if not names:
            return ""
        if more > 0:
            others = ngettext("and %(count)s more", "and %(count)s more", more)
            names += f" {others % {'count': more}}"
        return labelled(_("Late because of it"), names)


def _with_detail(shown: str, detail: str) -> SafeString:
    """A line, and a less important one below it."""
    if not detail:
        return format_html("{}", shown)
    return format_html('{}<br><span class="matviews-quiet">{}</span>', shown, detail)
