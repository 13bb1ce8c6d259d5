"""What reading a view as of now costs, beside its table and its source."""

from collections.abc import Callable, Iterator
from typing import Any

from django.utils import timezone

from matviews import changes, engine

from ..measured import Measured, medians
from ..models import Month, Order, Spending, Visit
from ..querysets.loading import load_orders, tidy
from ..querysets.ways import View
from ..timers import Timer

__all__ = ["MONTHS", "measure", "measured_reads"]

MONTHS = 60
PENDING_ROWS, PENDING_KEYS = 1_000, 100


def measure(rows: int, runs: int, timer: Timer, say: Callable[[str], object]) -> Iterator[Measured]:
    """Measure an additive view of the visits that are there, and a view by keys of so many orders.

    Changes are pending while the views are read as a whole.
    """
    say("reads as of now")
    View(Month).renew()
    first = 1 + Visit.objects.count()
    Visit.objects.bulk_create(
        Visit(pk=pk, month=1 + pk % MONTHS, pages=3) for pk in range(first, first + PENDING_ROWS)
    )
    yield measured_reads(
        f"{MONTHS} groups, {PENDING_ROWS:,} rows pending", runs, timer,
        {"as of now": Month.current, "its table": Month.objects.all(), "source": Month.source()},
    )  # fmt: skip
    View(Month).renew()
    load_orders(rows)
    changes.install(engine.alias())
    view = View(Spending)
    view.build()
    tidy(Spending)
    keys = list(range(1, 1 + PENDING_KEYS))
    Order.objects.bulk_create(
        Order(pk=rows + key, customer_id=key, amount=1, created=timezone.now()) for key in keys
    )
    yield measured_reads(
        f"{rows // 10:,} keys, {PENDING_KEYS} pending", runs, timer,
        {
            "as of now": Spending.current, "its table": Spending.objects.all(),
            "these keys alone": Spending.source().filter(pk__in=keys), "source": Spending.source(),
        },
    )  # fmt: skip
    yield measured_reads(
        f"one of {rows // 10:,} keys, {PENDING_KEYS} pending", runs, timer,
        {
            "as of now": Spending.current.filter(pk=7),
            "its table": Spending.objects.filter(pk=7),
            "source": Spending.source().filter(pk=7),
        },
    )  # fmt: skip


def measured_reads(name: str, runs: int, timer: Timer, ways: dict[str, Any]) -> Measured:
    """Read each of some querysets as a whole, in turn."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(runs + 2):
        for way, rows in ways.items():
            taken = timer(lambda rows=rows: list(rows.all()))  # type: ignore[misc]
            if number > 1:  # warm
                times[way].append(taken)
    return Measured(name=name, seconds=medians(times))
