from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from .models import Aircraft, CarrierDay, Flight, OperatingDay, Plane, Route, RouteSummary


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
    list_filter = ("origin",)
    search_fields = ("=destination__code",)


@admin.register(OperatingDay)
class OperatingDayAdmin(GroupAdmin):
    list_display = ("carrier", "day")
    list_filter = ("carrier",)
    date_hierarchy = "day"


@admin.register(Flight)
class FlightAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("number", "scheduled", "route", "plane", "arrival_delay", "cancelled")
    list_select_related = ("route", "plane")
    list_filter = ("cancelled",)
    search_fields = ("=number", "=plane__tailnum")
    raw_id_fields = ("operating_day", "route", "plane")
    show_full_result_count = False


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
    list_filter = ("origin",)


@admin.register(Aircraft)
class AircraftAdmin(ViewAdmin):
    list_display = ("tailnum", "model", "seats", "flights", "miles", "last_seen")
    search_fields = ("tailnum",)
