"""Change the sources by hand, and look at the views."""

from typing import Any

from django.contrib import admin
from django.db.models import Model
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
    MonthTotal,
    Plane,
    RouteSummary,
)


@admin.register(Airline, Airport)
class NamedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("code", "name")
    search_fields = ("=code", "name")


@admin.register(Plane)
class PlaneAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Planes are retired, not deleted, see `models/revised.py`."""

    list_display = ("tailnum", "manufacturer", "model", "seats", "retired")
    search_fields = ("tailnum",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(Flight)
class FlightAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = (
        "number", "carrier", "day", "origin", "destination", "plane", "arrival_delay", "cancelled",
    )  # fmt: skip
    list_select_related = ("carrier", "origin", "destination", "plane")
    list_filter = ("cancelled", "carrier")
    date_hierarchy = "day"
    search_fields = ("=number", "=plane__tailnum")
    search_help_text = "The number of a flight, or the tail number of its plane."
    raw_id_fields = ("plane",)
    readonly_fields = ("rows_in_views",)
    fieldsets = (
        (None, {
            "fields": (
                ("carrier", "number"), ("day", "scheduled"), ("origin", "destination"), "plane",
                "distance",
            ),
        }),
        ("How it went", {
            "fields": ("cancelled", ("departure_delay", "arrival_delay"), "air_time"),
        }),
        ("In the views", {
            "description": (
                "Change the flight, save, and see these rows follow with the next refresh."
            ),
            "fields": ("rows_in_views",),
        }),
    )  # fmt: skip
    save_on_top = True
    show_full_result_count = False

    @admin.display(description="Rows")
    def rows_in_views(self, flight: Flight) -> SafeString:
        rows: tuple[Model, ...] = (
            *CarrierDay.objects.filter(carrier=flight.carrier_id, day=flight.day),
            *RouteSummary.objects.filter(
                origin=flight.origin_id, destination=flight.destination_id
            ),
            *MonthTotal.objects.filter(month=flight.day.replace(day=1)),
            *Aircraft.objects.filter(plane=flight.plane_id),
        )
        line = '<a href="{}">{} {}</a>: {}'
        return format_html_join(mark_safe("<br>"), line, map(_row_in_view, rows))


FIGURES: dict[type[Model], tuple[str, ...]] = {
    CarrierDay: ("flights", "cancelled", "mean_arrival_delay"),
    RouteSummary: ("flights", "carriers", "mean_air_time"),
    MonthTotal: ("flights", "miles", "mean_arrival_delay"),
    Aircraft: ("flights", "miles"),
}


def _row_in_view(row: Model) -> tuple[str, str, str, str]:
    """Address, kind, name and figures of a row of a view."""
    meta = row._meta
    figures = (
        f"{meta.get_field(name).verbose_name} {_shown(getattr(row, name))}"  # type: ignore[union-attr]
        for name in FIGURES[type(row)]
    )
    address = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return address, str(meta.verbose_name), str(row), ", ".join(figures)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


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


@admin.register(MonthTotal)
class MonthTotalAdmin(ViewAdmin):
    list_display = ("month", "flights", "cancelled", "miles", "mean_arrival_delay")


@admin.register(Aircraft)
class AircraftAdmin(ViewAdmin):
    list_display = ("tailnum", "model", "seats", "flights", "miles", "last_seen")
    search_fields = ("tailnum",)
