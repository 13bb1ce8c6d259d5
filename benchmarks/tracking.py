"""What a refresh of a tracked view costs when little or nothing changed, and what triggers cost.

Times are seconds, elapsed ones or those of processors. The ways take turns, as with the other
queryset views.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from django.db import connection
from django.db.models import F
from django.db.models.constants import OnConflict
from django.db.models.functions import Mod

from matviews import changes, engine
from matviews.models import PhaseRun, Refresh

from .measured import Measured, medians
from .models import NoOp, Order, Spending, SpendingByStatement
from .querysets.loading import load_orders, tidy
from .querysets.ways import Native, Statement, View, Way
from .statements import statements
from .through_redis import own_workers
from .timers import Timer
from .writers import measure_writes

__all__ = ["measure", "until_seen"]

KEY = ("customer",)
BULKS, ROWS = (50, 10), 500  # one order of so many in a bulk; rows that are written one by one
FEW = 100  # customers, of ten orders each
PARTITIONS = 24
POLL = 0.001  # seconds between two looks at the view
WARM_UPS = 5  # refreshes of another view
PATIENCE = 60.0  # seconds until a row that does not come is given up


class ByHand(Statement):
    """The keys that have changed are in a table that somebody else keeps; one upsert for these."""

    name = "dirty keys by hand"

    def renew(self) -> None:
        quote = connection.ops.quote_name
        dirty = Spending.source().extra(
            where=["benchmarks_customer.id IN (SELECT id FROM benchmarks_dirty)"]
        )
        select, parameters = dirty.query.sql_with_params()
        columns = ", ".join(quote(field.column) for field in self._fields.values())
        update = connection.ops.on_conflict_suffix_sql(
            (), OnConflict.UPDATE, [f.column for f in self._rest], [f.column for f in self._key]
        )
        table = quote(self._model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({columns}) {select} {update}", parameters)
            cursor.execute("DELETE FROM benchmarks_dirty")


def measure(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> list[Measured]:
    """Measure all with so many orders, of a tenth as many customers."""
    say(f"{rows:,} orders")
    changes.remove(engine.alias())
    load_orders(rows)
    found = list(_writes(runs, timer, say))
    changes.install(engine.alias())
    found += [*_refreshes(rows // 10, runs, timer, say), _grown(rows, runs, timer, say)]
    if connection.vendor == "postgresql":
        found.append(_partitioned(rows, runs, timer, say))
    return found


def _grown(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> Measured:
    """The orders of as many customers are changed, among all rows and among a tenth of them.

    Leaves all rows behind.
    """
    times: dict[int, list[float]] = {rows: [], rows // 10: []}
    view = View(Spending)
    for count in reversed(times):
        say(f"{10 * FEW:,} of {count:,} orders changed")
        load_orders(count)
        view.empty()
        view.build()
        view.tidy()
        times[count] += _few_changed(view, runs, timer)
    seconds = medians({f"of {count:,}": taken for count, taken in times.items()})
    return Measured(name=f"{10 * FEW:,} orders changed", seconds=seconds)


def _few_changed(view: View, runs: int, timer: Timer) -> list[float]:
    """The seconds of refreshes by keys, each after a few orders have changed."""
    taken = []
    for number in range(runs):
        tidy(Order)
        _change_orders(FEW, number)
        taken.append(_seconds(view, timer))
        assert not PhaseRun.objects.filter(refresh=Refresh.objects.latest("pk"), dirty_after=None)
    return taken


def _partitioned(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> Measured:
    """The same orders are changed in a partitioned table, and in one that is not."""
    times: dict[str, list[float]] = {f"in {PARTITIONS} partitions": [], "in one table": []}
    view = View(Spending)
    for name in reversed(times):
        say(f"{10 * FEW:,} orders changed {name}")
        changes.remove(engine.alias())
        if name != "in one table":
            _partition(rows)
        load_orders(rows)
        changes.install(engine.alias())
        view.empty()
        view.build()
        view.tidy()
        times[name] += _few_changed(view, runs, timer)
    assert engine.verify(Spending).equal
    changes.remove(engine.alias())
    _execute(
        "DROP TABLE benchmarks_order",
        "ALTER TABLE benchmarks_whole RENAME TO benchmarks_order",
    )
    load_orders(rows)
    changes.install(engine.alias())
    view.renew()
    return Measured(name=f"{10 * FEW:,} orders changed, partitioned", seconds=medians(times))


def _partition(rows: int) -> None:
    """Put an empty table in place of the orders, in partitions by their time."""
    bounds = [
        f"timestamptz '2020-01-01 00:00:00+00' + {rows * number // PARTITIONS} * interval '1 s'"
        for number in range(1, PARTITIONS)
    ]
    ends = ["MINVALUE", *bounds, "MAXVALUE"]
    _execute(
        "ALTER TABLE benchmarks_order RENAME TO benchmarks_whole",
        "CREATE TABLE benchmarks_order (LIKE benchmarks_whole) PARTITION BY RANGE (created)",
        "CREATE INDEX ON benchmarks_order (customer_id)",
        "CREATE INDEX ON benchmarks_order (id)",
        *(
            f"CREATE TABLE benchmarks_order_{number} PARTITION OF benchmarks_order "
            f"FOR VALUES FROM ({low}) TO ({high})"
            for number, (low, high) in enumerate(pairwise(ends))
        ),
    )


def _execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _refreshes(
    keys: int, runs: int, timer: Timer, say: Callable[[str], object]
) -> Iterator[Measured]:
    view = View(Spending)
    by_hand = ByHand(SpendingByStatement, Spending.source, KEY)
    ways: list[Way] = [view, by_hand]
    if connection.vendor == "postgresql":
        ways.append(Native(Spending, Spending.source, KEY))
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE benchmarks_dirty (id bigint PRIMARY KEY)")
    for way in ways:
        way.empty()
        way.build()
        way.tidy()
    for name, changed in (
        ("nothing changed", 0),
        ("one key changed", 1),
        ("0.1 % of the keys changed", keys // 1000),
        ("10 % of the keys changed", keys // 10),
    ):
        say(name)
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        counts: dict[str, int] = {}
        for number in range(runs):
            _change(changed, number)
            first = number % len(ways)
            for way in ways[first:] + ways[:first]:
                times[way.name].append(_seconds(way, timer))
        _change(changed, runs)
        for way in ways:
            with statements() as found:
                way.renew()
            counts[way.name] = len(found)
        yield Measured(name=name, seconds=medians(times), statements=counts)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE benchmarks_dirty")
    assert engine.verify(Spending).equal


def _seconds(way: Way, timer: Timer) -> float:
    """What a refresh takes in a warm process: one that has waited for a peer is slower at first."""
    warm_up = View(NoOp)
    for _ in range(WARM_UPS):
        warm_up.renew()
    return timer(way.renew)


def until_seen(address: str, reuse: int, count: int) -> Measured:
    """From the commit of one change to the view's row, through a worker; it is requested at once.

    Args:
        address: of the broker.
        reuse: Celery's CELERY_DB_REUSE_MAX; with 0, its default, each task opens a connection.
        count: of changes, one after the other.
    """
    times = []
    with own_workers(address, reuse) as workers:
        workers.start()
        _seconds_until_seen(1)  # the worker's first tasks import and connect
        workers.wait_until_quiet()
        for customer in range(2, 2 + count):
            times.append(_seconds_until_seen(customer))
            workers.wait_until_quiet()
    name = "from the commit of a change to the view's row"
    if reuse:
        name += ", connection kept"
    return Measured(name=name, seconds=medians({"refresh": times}))


def _seconds_until_seen(customer: int) -> float:
    before = Spending.objects.get(customer=customer).total
    Order.objects.filter(customer=customer).update(amount=F("amount") + 1)
    started = time.perf_counter()
    Spending.refresh()
    while Spending.objects.get(customer=customer).total == before:
        if time.perf_counter() - started > PATIENCE:
            raise RuntimeError(f"The row of customer {customer} has not come in {PATIENCE} s.")
        time.sleep(POLL)
    return time.perf_counter() - started


def _change(keys: int, number: int) -> None:
    """Change the orders of some customers, of others each time."""
    low = _change_orders(keys, number)
    with connection.cursor() as cursor:
        for key in range(low, low + keys):
            cursor.execute("INSERT INTO benchmarks_dirty (id) VALUES (%s)", [key])
    tidy(Order)


def _change_orders(keys: int, number: int) -> int:
    """Change the orders of customers that follow each other; the first of them."""
    low = 1 + number * keys
    Order.objects.filter(customer__gte=low, customer__lt=low + keys).update(amount=F("amount") + 1)
    return low


def _writes(runs: int, timer: Timer, say: Callable[[str], object]) -> Iterator[Measured]:
    say("writes with and without triggers")
    jobs: dict[str, Callable[[int], object]] = {f"{ROWS} rows one by one": _one_by_one}
    for share in BULKS:
        jobs[f"{100 // share} % of the rows in one statement"] = partial(_in_bulk, share)
    triggers: dict[str, Callable[[str], object]] = {
        "with triggers": changes.install,
        "without": changes.remove,
    }
    return measure_writes(Order, jobs, triggers, runs, timer)


def _one_by_one(number: int) -> None:
    for key in range(1, ROWS + 1):
        Order.objects.filter(pk=number * ROWS + key).update(amount=F("amount") + 1)


def _in_bulk(share: int, number: int) -> None:
    rows = Order.objects.alias(residue=Mod(F("pk"), share)).filter(residue=number % share)
    rows.update(amount=F("amount") + 1)
