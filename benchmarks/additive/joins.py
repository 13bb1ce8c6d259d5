"""What a refresh of an additive view with two lookups costs, beside one by keys."""

from collections.abc import Callable, Iterator

from django.db import connection, transaction
from django.db.models import F

from matviews import changes, engine

from ..measured import Measured, medians
from ..models import Client, Country, Purchase, Region, RegionByKeys
from ..querysets.loading import empty, numbers, tidy
from ..querysets.ways import View
from ..timers import Timer
from .reading import measured_reads

__all__ = ["measure"]

REGIONS, COUNTRIES, CLIENTS = 5, 25, 1_000
CHANGED = 1_000  # purchases


def measure(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> Iterator[Measured]:
    """Measure with so many purchases."""
    say(f"{rows:,} purchases with two lookups")
    _load(rows)
    changes.install(engine.alias())
    ways = {"additive": View(Region), "by keys": View(RegionByKeys)}
    for way in ways.values():
        way.build()
        way.tidy()
    yield _measured(f"{CHANGED:,} of {rows:,} purchases changed", ways, runs, timer, _buy)
    behind = rows // CLIENTS
    yield _measured(f"one client of {behind:,} purchases moved", ways, runs, timer, _move)
    for way in ways.values():
        assert engine.verify(way.model).equal
    yield from _read(runs, timer)


def _read(runs: int, timer: Timer) -> Iterator[Measured]:
    """What is read as of now while changes are pending, of purchases and then of a client too."""
    ways = {
        "as of now": Region.current, "its table": Region.objects.all(),
        "as of now, by keys": RegionByKeys.current, "source": Region.source(),
    }  # fmt: skip
    for number, (what, change) in enumerate({"purchases": _buy, "a client": _move}.items()):
        change(number)
        name = f"{REGIONS} groups with two lookups, {what} pending"
        yield measured_reads(name, runs, timer, ways)


def _load(rows: int) -> None:
    empty(Country, Client, Purchase)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO benchmarks_country (id, region) "
            f"SELECT n, n % {REGIONS} FROM {numbers(COUNTRIES)}"
        )
        cursor.execute(
            "INSERT INTO benchmarks_client (id, country_id) "
            f"SELECT n, 1 + n % {COUNTRIES} FROM {numbers(CLIENTS)}"
        )
        cursor.execute(
            "INSERT INTO benchmarks_purchase (id, client_id, amount) "
            f"SELECT n, 1 + n * 48271 % 2147483647 % {CLIENTS}, n % 997 FROM {numbers(rows)}"
        )
    tidy(Country, Client, Purchase)


def _buy(number: int) -> None:
    first = 1 + number * CHANGED
    bought = Purchase.objects.filter(pk__gte=first, pk__lt=first + CHANGED)
    bought.update(amount=F("amount") + 1)
    tidy(Purchase)


def _move(number: int) -> None:
    client = Client.objects.get(pk=1 + number % CLIENTS)
    client.country_id = 1 + client.country_id % COUNTRIES
    client.save()


def _measured(
    name: str, ways: dict[str, View], runs: int, timer: Timer, change: Callable[[int], None]
) -> Measured:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(runs + 2):
        change(number)
        order = [*ways.items()][:: -1 if number % 2 else 1]
        for way, view in order:
            taken = timer(view.renew)
            if number > 1:  # warm
                times[way].append(taken)
    return Measured(name=name, seconds=medians(times))
