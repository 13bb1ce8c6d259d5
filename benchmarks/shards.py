"""How much sooner two workers build a view in two shards than one builds it in one.

The workers are threads of this process with connections of their own: nearly all of the work is the
server's.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from django.db import connection

from matviews import engine
from matviews.models import Refresh, ViewControl, ViewShard

from .models import CustomerSales, Order
from .processor import Processor
from .querysets.loading import ORDERS_PER_CUSTOMER, load_orders, tidy

__all__ = ["Built", "two_workers"]

PATIENCE, PAUSE = 600.0, 0.001  # seconds


class Built(NamedTuple):
    """Milliseconds of a build, or their median."""

    #: From its begin to its end.
    elapsed: float
    #: Processor time of the worker that needed most, with its session on the server.
    busiest: float
    #: The same of all workers together.
    processor: float


def two_workers(
    rows: int, runs: int, say: Callable[[str], object]
) -> Iterator[tuple[str, Built, Built]]:
    """What was built, and what it took one worker and two.

    Args:
        rows: orders.
        runs: builds that each time is the median of.
        say: says what begins.
    """
    say(f"a view of {rows:,} orders, by one worker and by two")
    load_orders(rows)
    yield ("even keys", *_compared(runs))
    _skew(rows)
    yield ("skewed keys", *_compared(runs))
    _want(1)


def _skew(rows: int) -> None:
    """Give half of the orders to a hundredth of the customers, the first ones."""
    few = max(1, rows // ORDERS_PER_CUSTOMER // 100)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE benchmarks_order SET customer_id = 1 + (id / 2) %% %s WHERE id %% 2 = 0"
            if connection.vendor != "mysql"
            else "UPDATE benchmarks_order SET customer_id = 1 + (id DIV 2) %% %s WHERE id %% 2 = 0",
            [few],
        )
    tidy(Order)


def _compared(runs: int) -> tuple[Built, Built]:
    builds: dict[int, list[Built]] = {1: [], 2: []}
    for _ in range(runs):
        for shards, found in builds.items():
            found.append(_build(shards))
    one, two = (
        Built(*map(statistics.median, zip(*found, strict=True))) for found in builds.values()
    )
    return one, two


def _want(shards: int) -> None:
    ViewControl.objects.filter(label=CustomerSales._meta.label).update(shard_count=shards)
    engine.sync_shards()


def _build(shards: int) -> Built:
    """A first build, by as many workers as the view has shards."""
    Refresh.objects.filter(view__label=CustomerSales._meta.label).delete()  # nothing is known of it
    began, processor = time.perf_counter(), Processor()
    _want(shards)  # it splits the keys
    split, splitting = 1e3 * (time.perf_counter() - began), processor.own + processor.server
    CustomerSales.objects.all()._raw_delete(connection.alias)
    tidy(CustomerSales)
    engine.mark_dirty(CustomerSales)
    refresh = engine.request(CustomerSales)
    keys = list(ViewShard.objects.filter(view=refresh.view_id).values_list("pk", flat=True))
    assert len(keys) == shards, f"{len(keys)} shards instead of {shards}"
    took = list[float]()
    workers = [threading.Thread(target=_work, args=(key, refresh.pk, took)) for key in keys]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = 1e3 * (time.perf_counter() - began)
    refresh.refresh_from_db()
    assert refresh.state == "succeeded", refresh.error
    return Built(split + elapsed, splitting + max(took), splitting + sum(took))


def _work(shard: int, refresh: int, took: list[float]) -> None:
    """Run the batches of a shard until a refresh has ended there; append its processor time."""
    until, report = time.perf_counter() + PATIENCE, None
    server, own = Processor(), time.thread_time()
    try:
        while time.perf_counter() < until:
            if message := engine.close_finished(shard, report).message:
                report = engine.run_batch(message)
                continue
            runs = Refresh.objects.get(pk=refresh).runs.filter(shard=shard)
            if runs.exists() and not any(run.active for run in runs):
                took.append(server.server + 1e3 * (time.thread_time() - own))
                return
            time.sleep(PAUSE)
    finally:
        connection.close()
