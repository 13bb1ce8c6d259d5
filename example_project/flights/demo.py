"""The demo: load real flights, build four views, change flights, refresh, verify, compare.

It prints through one rich console.
"""

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import count

from django.core.management import call_command
from django.db.models import F, Model, QuerySet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from matviews.models import PhaseRun
from matviews.phases import Phase

from .loading import FLIGHTS, load_flights
from .models import Aircraft, CarrierDay, Flight, MonthTotal, Plane, RouteSummary
from .recompute import differences, recompute

__all__ = ["run"]

VIEWS: tuple[type[Model], ...] = (Aircraft, CarrierDay, MonthTotal, RouteSummary)
STORM = date(2013, 12, 30)
NEW_YEAR = date(2014, 1, 1)


def run(console: Console, command: Callable[..., object]) -> bool:
    """Run the demo in the default database, which must be empty.

    Args:
        console: where the demo prints.
        command: `update_materialized_views` with its options, which shows what it does.

    Returns:
        Whether the views equal their recomputation.
    """
    started = time.monotonic()
    step = _Steps(console)

    step("Create the tables", "in an empty SQLite file, example_project/demo.sqlite3")
    call_command("migrate", verbosity=0)

    step("Load the flights of 2013 from New York", "the source of the views")
    _load(console)

    step("Build four views", "manage.py update_materialized_views, in this process")
    _show_what_it_wrote(console, command)
    console.print("\n  Ordinary tables, which any query can read:")
    _show_some_rows(console)

    step("Change flights and planes", "through the ORM, as an application would")
    _show_changes(console)

    step("Refresh", "the same command; it writes what has changed")
    _show_what_it_wrote(console, command)

    step("Refresh again", "nothing has changed, so nothing is written")
    command()

    step("Verify", "the same command with --verify: each view compared with its source()")
    command(verify=True)

    step("Compare", "each view with a recomputation of all its rows in plain Python")
    equal = _compare(console)
    console.print(f"\nDone in {time.monotonic() - started:.0f} seconds.", highlight=False)
    return equal


class _Steps:
    """Prints the title of each step and, in a line, what it does."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._numbers = count(1)

    def __call__(self, title: str, meaning: str) -> None:
        heading = f"[bold cyan]{next(self._numbers)}  {title}[/]"
        self._console.print(f"\n{heading}: {meaning}", highlight=False)


def _load(console: Console) -> None:
    columns = (TextColumn("  flights"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("flights", total=FLIGHTS)
        load_flights(lambda loaded: progress.update(task, completed=loaded))


def _show_what_it_wrote(console: Console, refresh: Callable[[], object]) -> None:
    last = PhaseRun.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    refresh()
    runs = PhaseRun.objects.filter(pk__gt=last)
    table = _table("view", "rows", "inserted", "updated", "deleted", "batches", "seconds", width=20)
    for view in VIEWS:
        own = runs.filter(refresh__view__label=view._meta.label)
        written = {run.phase: run.rows for run in own}
        table.add_row(
            view._meta.label,
            f"{view._default_manager.count():,}",
            *(f"{written[phase]:,}" for phase in Phase),
            str(sum(run.batches for run in own)),
            f"{sum(run.seconds for run in own):.2f}",
        )
    console.print()
    console.print(table)


def _show_changes(console: Console) -> None:
    table = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
    table.add_column(width=42)
    table.add_column(justify="right")
    for what, change in CHANGES.items():
        table.add_row(what, f"{change():,}")
    console.print(table)


def _show_some_rows(console: Console) -> None:
    worst = CarrierDay.objects.filter(flights__gte=50).order_by("on_time_share")
    table = _table("the least punctual days", "flights", "cancelled", "delay", "on time")
    for day in worst.select_related("carrier")[:3]:
        table.add_row(
            f"{day.day} {day.carrier.name}",
            f"{day.flights:,}",
            f"{day.cancelled:,}",
            "-" if day.mean_arrival_delay is None else f"{day.mean_arrival_delay:.0f} min",
            f"{day.on_time_share:.0%}",
        )
    console.print(table)
    table = _table("the busiest routes", "flights", "carriers", "miles", "air time")
    for route in RouteSummary.objects.order_by("-flights")[:3]:
        table.add_row(
            str(route),
            f"{route.flights:,}",
            str(route.carriers),
            f"{route.distance:,}",
            "-" if route.mean_air_time is None else f"{route.mean_air_time:.0f} min",
        )
    console.print(table)
    table = _table("the busiest months", "flights", "cancelled", "miles", "delay")
    for month in MonthTotal.objects.order_by("-flights")[:3]:
        table.add_row(
            str(month),
            f"{month.flights:,}",
            f"{month.cancelled:,}",
            f"{month.miles:,}",
            "-" if month.mean_arrival_delay is None else f"{round(month.mean_arrival_delay)} min",
        )
    console.print(table)
    table = _table("the hardest working planes", "seats", "flights", "miles", "last seen")
    for plane in Aircraft.objects.order_by("-miles")[:3]:
        table.add_row(
            f"{plane.tailnum} {plane.model}",
            str(plane.seats or "-"),
            f"{plane.flights:,}",
            f"{plane.miles:,}",
            f"{plane.last_seen:%Y-%m-%d}" if plane.last_seen else "-",
        )
    console.print(table)


def _compare(console: Console) -> bool:
    table = _table("view", "rows", "recomputed", "differences")
    wrong = []
    for view, expected in recompute().items():
        found = differences(view, expected)
        wrong += [f"{view._meta.label} {line}" for line in found]
        table.add_row(
            view._meta.label,
            f"{view._default_manager.count():,}",
            f"{len(expected):,}",
            f"[red]{len(found):,}[/]" if found else "[green]none[/]",
        )
    console.print(table)
    for line in wrong[:10]:
        console.print(f"  {line}", style="red", markup=False)
    return not wrong


def _table(*names: str, width: int = 32) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column(names[0], width=width, no_wrap=True)
    for name in names[1:]:
        table.add_column(name, justify="right")
    return table


def _new_years_day() -> int:
    """The flights of the last day of 2013 once more, a day later."""
    flights = list(Flight.objects.filter(day=NEW_YEAR - timedelta(days=1)))
    for flight in flights:
        flight.pk = None
        flight.day = NEW_YEAR
        flight.scheduled += timedelta(days=1)
    return len(Flight.objects.bulk_create(flights))


def _new_route() -> int:
    Flight.objects.create(
        carrier_id="AS",
        origin_id="JFK",
        destination_id="FAI",
        plane=Plane.objects.get(tailnum="N508AS"),
        number=1,
        day=NEW_YEAR,
        scheduled=datetime(2014, 1, 1, 15, tzinfo=UTC),
        distance=3270,
    )
    return 1


def _storm() -> QuerySet[Flight]:
    return Flight.objects.filter(day=STORM, origin="JFK", cancelled=False)


def _delay() -> int:
    return _storm().update(
        departure_delay=F("departure_delay") + 90, arrival_delay=F("arrival_delay") + 90
    )


def _cancel() -> int:
    evening = datetime.combine(STORM, datetime.min.time(), UTC) + timedelta(hours=22)
    return (
        _storm()
        .filter(scheduled__gte=evening)
        .update(cancelled=True, departure_delay=None, arrival_delay=None, air_time=None)
    )


def _withdraw() -> int:
    return Flight.objects.filter(carrier="OO").delete()[0]


def _retire() -> int:
    old = Plane.objects.filter(manufacturer__startswith="MCDONNELL DOUGLAS", retired=None)
    return old.update(retired=NEW_YEAR + timedelta(days=1))


CHANGES: dict[str, Callable[[], int]] = {
    "New flights on New Year's Day 2014": _new_years_day,
    "New route from New York to Fairbanks": _new_route,
    "Flights delayed by a storm at JFK": _delay,
    "Flights cancelled there in the evening": _cancel,
    "Flights of SkyWest withdrawn": _withdraw,
    "Planes by McDonnell Douglas retired": _retire,
}
