"""The same through a real worker process and a real Redis. All times are milliseconds."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from matviews.models import PhaseRun
from matviews.phases import Phase
from tests.helpers import services
from tests.helpers.processes import Workers

from . import clock, hooks
from .measure import Times
from .models import NoOp
from .tasks import hop

PATIENCE = 120.0  # seconds that one run may take


@dataclass(frozen=True, kw_only=True)
class Hops:
    """Batches by messages, in one worker with the pool `solo`.

    Attributes:
        reuse: Celery's CELERY_DB_REUSE_MAX; with 0, its default, each task opens a connection.
        batch: from batch to batch.
        bare: from hop to hop of a bare task that commits one UPDATE and sends itself again.
    """

    reuse: int
    batch: Times
    bare: Times


@contextmanager
def broker() -> Iterator[str]:
    """The machine's Redis, or one that is started for this."""
    if services.absence("redis") is None:
        yield services.url("redis")
        return
    with services.started_redis() as address:
        yield address


def hops(address: str, reuse: int, runs: int, batches: int) -> Hops:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clock"
        ticks = clock.Clock(path)
        more = {clock.VARIABLE: str(path), hooks.VARIABLE: str(batches)}
        with own_workers(address, reuse, more) as workers:
            workers.start()
            engine_runs, bare_runs = [], []
            _engine_run(workers, ticks, batches)
            for _ in range(runs):
                engine_runs.append(_engine_run(workers, ticks, batches))
                bare_runs.append(_bare_run(workers, ticks, batches))
    return Hops(reuse=reuse, batch=Times.of(engine_runs), bare=Times.of(bare_runs))


def _engine_run(workers: Workers, ticks: clock.Clock, batches: int) -> list[float]:
    ticks.reset()
    refresh = NoOp.refresh(phases=[Phase.INSERT])
    # The database is asked only when all is over: that would take its time.
    workers.wait_for(lambda: len(ticks.ticks()) >= batches, seconds=PATIENCE)
    workers.wait_until_quiet()
    done = PhaseRun.objects.get(refresh=refresh).batches
    assert done == batches, f"{done} batches instead of {batches}"
    return ticks.milliseconds()


def _bare_run(workers: Workers, ticks: clock.Clock, batches: int) -> list[float]:
    ticks.reset()
    workers.send_by_name(hop.name, batches - 1)
    workers.wait_for(lambda: len(ticks.ticks()) >= batches, seconds=PATIENCE)
    return ticks.milliseconds()


@contextmanager
def own_workers(address: str, reuse: int, more: dict[str, str] | None = None) -> Iterator[Workers]:
    """Workers of this run's own, none of them started yet.

    Args:
        address: of the broker.
        reuse: Celery's CELERY_DB_REUSE_MAX.
        more: variables of their environment.
    """
    with tempfile.TemporaryDirectory() as folder, _own_queue(address) as queue:
        environment = {
            **services.worker_environment(address, queue, key_prefix=f"{queue}."),
            "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
            "MATVIEWS_BENCH_REUSE": str(reuse),
            **(more or {}),
        }
        with Workers(environment, Path(folder)) as workers:
            yield workers


@contextmanager
def _own_queue(address: str) -> Iterator[str]:
    """A queue, and prefix of keys, of this run's own; its keys are deleted afterwards."""
    queue = f"matviews-bench-{uuid.uuid4().hex[:12]}"
    try:
        yield queue
    finally:
        with redis.Redis.from_url(address) as client:
            if keys := list(client.scan_iter(match=f"{queue}*")):
                client.delete(*keys)
