"""Change the sources by hand, and look at the views."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString, mark_safe

from .models import (
    Aircraft,
    Airline,
    Airport,
    CarrierDay,
    Flight,
    OperatingDay,
    Plane,
    Route,
    RouteSummary,
)


@admin.register(Airline, Airport)
class NamedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("code", "name")
    search_fields = ("=code", "name")


class GroupAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Groups of flights are never deleted, see `models/revised.py`."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Plane)
class PlaneAdmin(GroupAdmin):
    list_display = ("tailnum", "manufacturer", "model", "seats", "retired")
    search_fields = ("tailnum",)


@admin.register(Route)
class RouteAdmin(GroupAdmin):
    list_display = ("origin", "destination")
    list_filter = (("origin", admin.RelatedOnlyFieldListFilter),)
    search_fields = ("=destination__code",)


@admin.register(OperatingDay)
class OperatingDayAdmin(GroupAdmin):
    """Its carrier and its day never change."""

    list_display = ("carrier", "day")
    list_filter = ("carrier",)
    date_hierarchy = "day"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Flight)
class FlightAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("number", "operating_day", "route", "plane", "arrival_delay", "cancelled")
    list_select_related = ("operating_day", "route", "plane")
    list_filter = ("cancelled", "operating_day__carrier")
    search_fields = ("=number", "=plane__tailnum")
    search_help_text = "The number of a flight, or the tail number of its plane."
    raw_id_fields = ("operating_day", "route", "plane")
    readonly_fields = ("rows_in_views",)
    fieldsets = (
        (None, {"fields": (("number", "scheduled"), "operating_day", "route", "plane", "distance")}),
        ("How it went", {
            "fields": ("cancelled", ("departure_delay", "arrival_delay"), "air_time"),
        }),
        ("In the views", {
            "description": "Change the flight, save, and see these rows follow with the next refresh.",
            "fields": ("rows_in_views",),
        }),
    )  # fmt: skip
    save_on_top = True
    show_full_result_count = False

    @admin.display(description="Rows")
    def rows_in_views(self, flight: Flight) -> SafeString:
        groups = {
            CarrierDay: flight.operating_day, RouteSummary: flight.route, Aircraft: flight.plane,
        }  # fmt: skip
        rows = (_row_in_view(view, group) for view, group in groups.items() if group)
        return format_html_join(mark_safe("<br>"), '<a href="{}">{} {}</a>: {}', rows)


def _row_in_view(view: Any, group: Any) -> tuple[str, str, str, str]:
    """Address, kind, name and freshness of the row of a group of flights."""
    kind = f"{view._meta.app_label}_{view._meta.model_name}"
    row = view._base_manager.filter(pk=group.pk).first()
    if row is None:
        return reverse(f"admin:{kind}_changelist"), view._meta.verbose_name, str(group), "no row"
    missed = group.revision - row.source_revision
    freshness = f"changes to come: {missed}" if missed else "up to date"
    return (
        reverse(f"admin:{kind}_change", args=[row.pk]),
        view._meta.verbose_name,
        str(row),
        freshness,
    )


class ViewAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To look at: the rows are written by the refresh."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(CarrierDay)
class CarrierDayAdmin(ViewAdmin):
    list_display = ("day", "carrier", "flights", "cancelled", "mean_arrival_delay", "on_time_share")
    list_filter = ("carrier",)
    date_hierarchy = "day"


@admin.register(RouteSummary)
class RouteSummaryAdmin(ViewAdmin):
    list_display = ("origin", "destination", "flights", "carriers", "distance", "mean_air_time")
    list_filter = (("origin", admin.RelatedOnlyFieldListFilter),)


@admin.register(Aircraft)
class AircraftAdmin(ViewAdmin):
    list_display = ("tailnum", "model", "seats", "flights", "miles", "last_seen")
    search_fields = ("tailnum",)
