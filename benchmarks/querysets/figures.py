"""All that is measured of queryset views on one database, and the bars that it is held against."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from matviews import changes, engine

from ..models import CustomerSales, Spending
from . import growth, through_worker, waits
from .growth import Size
from .loading import load_flights, load_orders
from .names import ALONE, BUILD, CHANGED, LOOP, NATIVE, REFRESH, STATEMENT, UNCHANGED
from .through_worker import Share, SideBySide
from .waits import Wait
from .works import FLIGHTS, SALES, SPENDING, Subject, Work
from .works import works as measure_works

__all__ = ["Bar", "Figures", "bars", "measure"]

REUSE = (0, 10_000)  # Celery closes its database connection after each task, or as good as never
FEW = 3  # runs of what takes long
PASSES = {UNCHANGED: 0.6, CHANGED: 0.8}  # of what REFRESH CONCURRENTLY takes


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; only `works` on other databases than PostgreSQL.

    Attributes:
        rows: source rows of the works.
        runs: that medians are of.
        works: by each way.
        sizes: by the number of source rows.
        waits: of a writer, by what goes on meanwhile.
        memory: what a build adds to a worker at its peak, in MB, by the number of source rows.
        shares: of the time of a build through a worker.
        side_by_side: one view and two, with one worker and with two.
    """

    rows: int
    runs: int
    works: tuple[Work, ...]
    sizes: tuple[Size, ...] = ()
    waits: dict[str, Wait] = field(default_factory=dict)
    memory: dict[int, float] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    side_by_side: tuple[SideBySide, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is to be reached on PostgreSQL.

    Attributes:
        name: of what is measured.
        value: as measured.
        most: the bar.
        unit: of both, "" for a ratio.
    """

    name: str
    value: float
    most: float
    unit: str = ""

    @property
    def reached(self) -> bool:
        return self.value <= self.most


def measure(
    database: str, broker: str, rows: int, runs: int, say: Callable[[str], object]
) -> Figures:
    """Measure all with so many source rows, and how it grows from a tenth to five times as many.

    Args:
        database: as MATVIEWS_TEST_DB names it.
        broker: address of a Redis.
        rows: source rows.
        runs: that medians are taken of.
        say: called with what is measured next: all takes minutes.
    """
    changes.remove(engine.alias())  # a refresh is a full pass then
    say("loading flights")
    load_flights()
    if database != "postgres":
        load_orders(rows)
        return Figures(rows=rows, runs=runs, works=_works((SPENDING, FLIGHTS), runs, say))
    sizes, memory = [], {}
    for count in (rows // 10, 5 * rows, rows):
        say(f"{count:,} orders")
        sizes.append(growth.measure(SPENDING, count, min(runs, FEW)))
        if count >= rows:
            memory[count] = through_worker.memory(broker, Spending)
    works = _works((SPENDING, SALES, FLIGHTS), runs, say)
    say("a writer to the source")
    waiting = waits.waits(SPENDING, runs)
    say("workers")
    return Figures(
        rows=rows, runs=runs, works=works, waits=waiting,
        sizes=tuple(sorted(sizes, key=lambda size: size.rows)),
        memory=dict(sorted(memory.items())),
        shares=tuple(through_worker.share(broker, Spending, reuse, runs) for reuse in REUSE),
        side_by_side=tuple(
            through_worker.side_by_side(broker, (Spending, CustomerSales), min(runs, FEW))
        ),
    )  # fmt: skip


def _works(
    subjects: Iterable[Subject], runs: int, say: Callable[[str], object]
) -> tuple[Work, ...]:
    found: list[Work] = []
    for subject in subjects:
        say(subject.name)
        found += measure_works(subject, runs)
    return tuple(found)


def bars(figures: Figures) -> Iterator[Bar]:
    """The bars and what was reached; none on other databases than PostgreSQL."""
    if not figures.sizes:
        return
    for work in figures.works:
        yield from _bars_of(work)
    for size in figures.sizes[1:]:
        for longest in size.longest:
            name = (
                f"longest transaction, {size.rows:,} rows, over its target of {longest.target:g} s"
            )
            yield Bar(name=name, value=longest.ratio, most=2)
    alone, refresh = figures.waits[ALONE], figures.waits[REFRESH]
    yield Bar(name="a writer's p99 during refreshes", value=refresh.p99 / alone.p99, most=1.25)
    yield Bar(name="its longest wait", value=refresh.longest / alone.longest, most=1)
    for rows, megabytes in figures.memory.items():
        yield Bar(name=f"peak memory, {rows:,} rows", value=megabytes, most=10, unit=" MB")
    for share in figures.shares:
        kept = ", connection kept" if share.reuse else ""
        name = f"engine, bookkeeping and messages of a build{kept}"
        yield Bar(name=name, value=100 * share.overhead, most=5, unit=" %")


def _bars_of(work: Work) -> Iterator[Bar]:
    name = f"{work.view}: {work.name}"
    if work.name == BUILD:
        yield Bar(name=f"{name}, of one statement", value=work.ratio(STATEMENT), most=1.25)
        if LOOP in work.ways:
            yield Bar(name=f"{name}, of the ORM loop", value=work.ratio(LOOP), most=0.25)
    elif work.name in PASSES:
        peer = f"{name}, of REFRESH CONCURRENTLY"
        yield Bar(name=peer, value=work.ratio(NATIVE), most=PASSES[work.name])
    if written := work.written:
        exact = written.wal is not None
        yield Bar(
            name=f"{name}, written to the view",
            value=(written.wal or 0) if exact else written.rows,
            most=0,
            unit=" bytes of WAL" if exact else " rows",
        )
