"""What the views should hold, computed without them: one pass over all flights in plain Python."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any, NamedTuple

from django.db.models import Model

from .models import Aircraft, CarrierDay, Flight, MonthTotal, Plane, RouteSummary

__all__ = ["COLUMNS", "differences", "recompute"]

Rows = dict[tuple[Any, ...], tuple[Any, ...]]

# The key of each view, and the values that are compared.
COLUMNS: dict[type[Model], tuple[list[str], list[str]]] = {
    CarrierDay: (
        ["carrier", "day"],
        ["flights", "cancelled", "mean_departure_delay", "mean_arrival_delay", "on_time_share"],
    ),
    RouteSummary: (
        ["origin", "destination"],
        ["flights", "carriers", "distance", "mean_air_time", "first_flight", "last_flight"],
    ),
    MonthTotal: (["month"], ["flights", "cancelled", "miles", "mean_arrival_delay"]),
    Aircraft: (["tailnum"], ["model", "seats", "flights", "miles", "last_seen"]),
}


class _Flight(NamedTuple):
    carrier: str
    day: Any
    origin: str
    destination: str
    plane: int | None
    scheduled: Any
    distance: int
    cancelled: bool
    departure_delay: int | None
    arrival_delay: int | None
    air_time: int | None


def recompute() -> dict[type[Model], Rows]:
    """The rows of each view by their keys."""
    days, routes, planes = defaultdict(list), defaultdict(list), defaultdict(list)
    months = defaultdict(list)
    for row in Flight.objects.values_list(*_Flight._fields).iterator(chunk_size=10_000):
        flight = _Flight(*row)
        days[flight.carrier, flight.day].append(flight)
        routes[flight.origin, flight.destination].append(flight)
        planes[flight.plane].append(flight)
        months[flight.day.replace(day=1)].append(flight)
    return {
        Aircraft: {
            (plane.tailnum,): (plane.model, plane.seats, *_use_of_plane(planes[plane.pk]))
            for plane in Plane.objects.filter(retired=None)
        },
        CarrierDay: {key: _punctuality(flights) for key, flights in days.items()},
        RouteSummary: {key: _use_of_route(flights) for key, flights in routes.items()},
        MonthTotal: {(month,): _total(flights) for month, flights in months.items()},
    }


def _punctuality(flights: list[_Flight]) -> tuple[Any, ...]:
    on_time = [flight.arrival_delay is not None and flight.arrival_delay < 15 for flight in flights]
    return (
        len(flights),
        sum(flight.cancelled for flight in flights),
        _mean(flight.departure_delay for flight in flights),
        _mean(flight.arrival_delay for flight in flights),
        _mean(on_time),
    )


def _total(flights: list[_Flight]) -> tuple[Any, ...]:
    return (
        len(flights),
        sum(flight.cancelled for flight in flights),
        sum(flight.distance for flight in flights),
        _mean(flight.arrival_delay for flight in flights),
    )


def _use_of_route(flights: list[_Flight]) -> tuple[Any, ...]:
    times = [flight.scheduled for flight in flights]
    return (
        len(flights),
        len({flight.carrier for flight in flights}),
        max(flight.distance for flight in flights),
        _mean(flight.air_time for flight in flights),
        min(times),
        max(times),
    )


def _use_of_plane(flights: list[_Flight]) -> tuple[Any, ...]:
    flown = [flight for flight in flights if not flight.cancelled]
    last_seen = max((flight.scheduled for flight in flown), default=None)
    return len(flown), sum(flight.distance for flight in flown), last_seen


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def differences(view: type[Model], expected: Rows) -> list[str]:
    """What is missing in a view, too much or wrong, a line for each."""
    keys, values = COLUMNS[view]
    rows = list(view._default_manager.values_list(*keys, *values))
    actual = {row[: len(keys)]: row[len(keys) :] for row in rows}
    twice = len(rows) - len(actual)
    return [f"{twice} keys are there twice"] * bool(twice) + [
        f"{key}: {actual.get(key, 'no row')} instead of {expected.get(key, 'no row')}"
        for key in sorted(actual.keys() | expected.keys())
        if not _same(actual.get(key), expected.get(key))
    ]


def _same(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(map(_same_value, one, other))


def _same_value(one: Any, other: Any) -> bool:
    # MariaDB computes means to four decimals.
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 0.0001
    return bool(one == other)
