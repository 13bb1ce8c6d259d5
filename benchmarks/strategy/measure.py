"""The refresh of each view after each change: by keys, in full, as chosen, and PostgreSQL's own.

Every way sees changes of the same kind and size, in turns. What a forced refresh teaches the view
is taken back, so that the choice rests on the refreshes that were chosen.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from django.db import connection
from django.db.models import F
from django.db.models.functions import Mod
from rich.console import Console
from rich.table import Table

from matviews import changes, engine
from matviews.engine import derived, dirty_keys
from matviews.models import PhaseRun, ViewShard

from ..querysets.loading import NUMBERS, empty, tidy
from ..querysets.ways import Native, View
from ..report import add
from .models import ByKind, ByKindAndDay, ByMonth, ByMonthAndStatus, Sale

__all__ = ["Cell", "measure", "save", "show"]

MONTHS, KINDS = 60, 5
KEYS: dict[type[Any], tuple[str, ...]] = {
    ByKind: ("kind",),
    ByMonth: ("month",),
    ByMonthAndStatus: ("month", "status"),
    ByKindAndDay: ("kind", "number"),
}
CHOSEN, BY_KEYS, IN_FULL, NATIVE = "chosen", "by keys", "in full", "CONCURRENTLY"
DAYS = {
    "postgresql": "date '2020-01-01' + (n * 7919 % {days})::int",
    "mysql": "date '2020-01-01' + INTERVAL (n * 7919 % {days}) DAY",
    "sqlite": "date('2020-01-01', (n * 7919 % {days}) || ' days')",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A view after a change: seconds of a refresh by the name of the way, each a median."""

    view: str
    change: str
    seconds: dict[str, float]
    #: How many of the chosen refreshes were by keys.
    chosen_by_keys: int

    @property
    def ratio(self) -> float:
        """What the choice takes of the best of our ways, beyond 20 ms."""
        best = min(self.seconds[BY_KEYS], self.seconds[IN_FULL])
        return max(0.0, self.seconds[CHOSEN] - 0.02) / best


def load(rows: int) -> None:
    """Replace all sales by so many, which are spread over all months, kinds and statuses."""
    numbers = f"({NUMBERS[connection.vendor].format(rows)}) AS numbers"
    day = DAYS[connection.vendor].format(days=MONTHS * 30)
    status = "CASE n % 3 WHEN 0 THEN 'open' WHEN 1 THEN 'paid' ELSE 'sent' END"
    empty(Sale)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO benchmarks_sale (id, kind, status, day, amount) "
            f"SELECT n, n % {KINDS}, {status}, {day}, (n % 1000) / 10.0 FROM {numbers}"
        )
    tidy(Sale)


def every(share: int) -> Callable[[int], object]:
    """Change one row of so many, of others each time."""

    def change(number: int) -> None:
        rows = Sale.objects.alias(residue=Mod(F("pk"), share)).filter(residue=number % share)
        rows.update(amount=F("amount") + 1)

    return change


def one_row(number: int) -> None:
    """Change a row of the newest month."""
    newest = Sale.objects.order_by("-day", "pk")[number : number + 1].get()
    Sale.objects.filter(pk=newest.pk).update(amount=F("amount") + 1)


CHANGES: dict[str, Callable[[int], object]] = {
    "1 row": one_row,
    "0.1 %": every(1_000),
    "1 %": every(100),
    "10 %": every(10),
}


def measure(rows: int, runs: int, say: Callable[[str], object]) -> list[Cell]:
    """Measure all cells with so many sales."""
    say(f"{rows:,} sales")
    changes.remove(engine.alias())
    load(rows)
    changes.install(engine.alias())
    return [
        cell
        for model, key in KEYS.items()
        for cell in _cells(View(model), _native(model, key), runs, say)
    ]


def _native(model: type[Any], key: tuple[str, ...]) -> Native | None:
    if connection.vendor != "postgresql":
        return None
    native = Native(model, model.source, key)
    native.build()
    return native


def _cells(
    view: View, native: Native | None, runs: int, say: Callable[[str], object]
) -> Iterator[Cell]:
    view.empty()
    view.build()
    view.tidy()
    view.renew()
    for name, change in CHANGES.items():
        say(f"{view.model.__name__}, {name}")
        times: dict[str, list[float]] = {CHOSEN: [], BY_KEYS: [], IN_FULL: []}
        if native:
            times[NATIVE] = []
        by_keys = 0
        for number in range(runs):
            for way, taken in times.items():
                change(runs * len(times) + number)
                taken.append(_seconds(view, native, way))
                if way == CHOSEN:
                    run = PhaseRun.objects.filter(shard__view__label=view.model._meta.label)
                    by_keys += run.latest("pk").dirty_after is not None
                elif way == NATIVE:
                    view.renew()
        medians = {way: statistics.median(taken) for way, taken in times.items()}
        yield Cell(view=view.model.__name__, change=name, seconds=medians, chosen_by_keys=by_keys)


def _seconds(view: View, native: Native | None, way: str) -> float:
    forced: AbstractContextManager[object] = nullcontext()
    if way in (BY_KEYS, IN_FULL):
        forced = _forced(view, way)
    with forced:
        started = time.perf_counter()
        if way == NATIVE and native:
            native.renew()
        else:
            view.renew()
        return time.perf_counter() - started


@contextmanager
def _forced(view: View, way: str) -> Iterator[None]:
    shards = ViewShard.objects.filter(view__label=view.model._meta.label)
    [costs] = shards.values_list("costs", flat=True)
    most = 10**9 if way == BY_KEYS else -1
    with (
        mock.patch.object(dirty_keys, "max_worthwhile_keys", return_value=most),
        mock.patch.object(derived, "keys_budget", return_value=None),
    ):
        yield
    shards.update(costs=costs)


def show(cells: list[Cell], database: str, console: Console) -> None:
    """Print a table; `database` goes into its title."""
    ways = list(cells[0].seconds)
    table = Table(title=f"{database}: by keys or in full, milliseconds", title_justify="left")
    for column in ("view", "change", *ways, "by keys", "ratio"):
        table.add_column(column, justify="left" if column in ("view", "change") else "right")
    for cell in cells:
        figures = (f"{1000 * cell.seconds[way]:.1f}" for way in ways)
        table.add_row(
            cell.view, cell.change, *figures, str(cell.chosen_by_keys), f"{cell.ratio:.2f}"
        )
    console.print(table)


def save(cells: list[Cell], database: str, path: Path) -> None:
    """Put the figures into a JSON file, beside what else it has of the database."""
    add(path, database, {"strategy": [asdict(cell) for cell in cells]})
