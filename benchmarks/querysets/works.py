"""A full build, a pass in which nothing has changed, and one in which a tenth of the keys has.

All times are seconds. The ways take turns, and a different one begins in each round, so that noise
hits all alike.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from django.db import connection
from django.db.models import Count, Model, Sum

from .. import models
from .loading import change_flights, change_orders
from .names import BUILD, CHANGED, REFRESH, UNCHANGED
from .wal import Written, written
from .ways import Loop, Native, Statement, View, Way

__all__ = ["FLIGHTS", "SALES", "SPENDING", "Subject", "Took", "Work", "works"]


@dataclass(frozen=True, kw_only=True)
class Took:
    """Several runs of the same thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, runs: Sequence[float]) -> Self:
        return cls(median=statistics.median(runs), low=min(runs), high=max(runs))


@dataclass(frozen=True, kw_only=True)
class Work:
    """One work on one view.

    Attributes:
        view: name of the view.
        name: of the work.
        ways: how long each way took.
        batches: of a refresh, the median.
        longest: the longest batch of all refreshes, with its bookkeeping.
        rows: written by a refresh, the median.
        written: what the view's table was made to write in the last refresh; only on PostgreSQL,
            where nothing has changed.
    """

    view: str
    name: str
    ways: dict[str, Took]
    batches: int
    longest: float
    rows: int
    written: Written | None = None

    def ratio(self, peer: str) -> float:
        """What the refresh took over what a peer took."""
        return self.ways[REFRESH].median / self.ways[peer].median


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A view, the tables of its peers, and how its source changes.

    Attributes:
        by_statement, by_loop: what a peer writes; without the latter the loop, which takes long,
            is left out.
        key: names of the fields that identify a row.
        sums: names of the fields by whose sums tables are compared.
        change: changes the source of a tenth of the keys, of others with another number.
    """

    view: type[Any]
    by_statement: type[Model]
    by_loop: type[Model] | None = None
    key: tuple[str, ...]
    change: Callable[[int], None]
    sums: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.view.__name__

    def peers(self) -> list[Way]:
        """What the refresh is compared with on this database."""
        source = self.view.source
        peers: list[Way] = [Statement(self.by_statement, source, self.key)]
        if self.by_loop:
            peers.append(Loop(self.by_loop, source, self.key))
        if connection.vendor == "postgresql":
            peers.append(Native(self.view, source, self.key))
        return peers

    def digest(self, model: type[Model]) -> dict[str, Any]:
        """What tells the rows of a table from others, near enough."""
        sums = {f"sum_{name}": Sum(name) for name in self.sums}
        return model._base_manager.aggregate(count=Count("pk"), **sums)


SPENDING = Subject(
    view=models.Spending, by_statement=models.SpendingByStatement, by_loop=models.SpendingByLoop,
    key=("customer",), sums=("orders", "total"), change=change_orders,
)  # fmt: skip
SALES = Subject(
    view=models.CustomerSales, by_statement=models.CustomerSalesByStatement,
    key=("customer",), sums=("orders", "total"), change=change_orders,
)  # fmt: skip
FLIGHTS = Subject(
    view=models.FlightDay, by_statement=models.FlightDayByStatement,
    by_loop=models.FlightDayByLoop, key=("carrier", "day"), sums=("flights", "miles"),
    change=change_flights,
)  # fmt: skip


def works(subject: Subject, runs: int) -> list[Work]:
    """The three works on one view, by all ways."""
    rounds = _Rounds(subject, runs)
    return [rounds.build(), rounds.unchanged(), rounds.changed()]


class _Rounds:
    def __init__(self, subject: Subject, runs: int) -> None:
        self._subject, self._runs = subject, runs
        self._view = View(subject.view)
        self._ways: list[Way] = [self._view, *subject.peers()]

    def build(self) -> Work:
        return self._work(BUILD, self._empty, lambda way: way.build)

    def unchanged(self) -> Work:
        work = self._work(UNCHANGED, self._tidy, lambda way: way.renew)
        if connection.vendor != "postgresql":
            return work
        with written(self._view.model) as result:
            self._view.renew()
        return replace(work, written=result)

    def changed(self) -> Work:
        return self._work(CHANGED, self._change, lambda way: way.renew)

    def _empty(self, _round: int) -> None:
        for way in self._ways:
            way.empty()

    def _tidy(self, _round: int) -> None:
        for way in self._ways:
            way.tidy()

    def _change(self, number: int) -> None:
        self._subject.change(number)
        self._tidy(number)

    def _work(
        self, name: str, prepare: Callable[[int], None], job: Callable[[Way], Callable[[], object]]
    ) -> Work:
        """Time a job of each way, in rounds that each begin with `prepare`."""
        times: dict[str, list[float]] = {way.name: [] for way in self._ways}
        batches, rows, longest = [], [], []
        for number in range(self._runs):
            prepare(number)
            first = number % len(self._ways)
            for way in self._ways[first:] + self._ways[:first]:
                started = time.perf_counter()
                job(way)()
                times[way.name].append(time.perf_counter() - started)
            batches.append(len(self._view.reports))
            rows.append(sum(report.rows for report in self._view.reports))
            longest.append(self._view.longest)
            self._compare()
        return Work(
            view=self._subject.name, name=name,
            ways={way: Took.of(runs) for way, runs in times.items()},
            batches=round(statistics.median(batches)), rows=round(statistics.median(rows)),
            longest=max(longest),
        )  # fmt: skip

    def _compare(self) -> None:
        """A way that does not do the work must not be compared with those that do."""
        tables = (self._subject.view, self._subject.by_statement, self._subject.by_loop)
        first, *others = (self._subject.digest(table) for table in tables if table)
        assert all(other == first for other in others), f"{self._subject.name}: {first}, {others}"
