"""Full builds through real worker processes and a real Redis."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db.models import Sum

from matviews.models import PhaseRun, Refresh
from tests.helpers.processes import Workers

from .. import spent
from ..through_redis import own_workers
from .loading import empty

__all__ = ["Share", "SideBySide", "memory", "share", "side_by_side"]

PATIENCE = 300.0  # seconds that a build may take
OWN = '"benchmarks_'  # how the names of the views and of their sources begin in a statement


@dataclass(frozen=True, kw_only=True)
class Share:
    """A full build through one worker: where the time goes. Medians, in seconds.

    Attributes:
        reuse: Celery's CELERY_DB_REUSE_MAX; with 0, its default, each task opens a connection.
        batches: messages that did work.
        wall: from the request to the end.
        hooks: in the view's hooks, with what they compute in Python.
        statements: in the statements on the view and its source.
    """

    reuse: int
    batches: int
    wall: float
    hooks: float
    statements: float

    @property
    def overhead(self) -> float:
        """The share of the time that the statements on the view and its source did not take."""
        return 1 - self.statements / self.wall


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Full builds asked for at once. Seconds until all are done, medians.

    Attributes:
        workers: how many, each with one process.
        one: one view.
        two: two views.
    """

    workers: int
    one: float
    two: float


def share(address: str, view: type[Any], reuse: int, runs: int) -> Share:
    """Build a view through one worker."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spent"
        with own_workers(address, reuse, {spent.VARIABLE: str(path)}) as workers:
            workers.start()
            _build(workers, view)
            for _ in range(runs):
                path.write_text("")
                wall = _build(workers, view)
                own = PhaseRun.objects.filter(refresh=Refresh.objects.latest("pk"))
                found.append(
                    {
                        "wall": wall,
                        "statements": spent.seconds(path, OWN),
                        **own.aggregate(hooks=Sum("seconds"), batches=Sum("batches")),
                    }
                )
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return Share(reuse=reuse, **{**middle, "batches": round(middle["batches"])})


def memory(address: str, view: type[Any]) -> float:
    """What a full build adds to the resident memory of an idle worker at its peak, in MB."""
    with own_workers(address, reuse=0) as workers:
        (worker,) = workers.start()
        idle = _resident(worker.pid, "VmRSS")
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # forget the peak so far
        _build(workers, view)
        return (_resident(worker.pid, "VmHWM") - idle) / 1024


def side_by_side(address: str, views: tuple[type[Any], type[Any]], runs: int) -> list[SideBySide]:
    """Build one view and two, with one worker and with two."""
    result = []
    for count in (1, 2):
        with own_workers(address, reuse=0) as workers:
            workers.start(count)
            _build(workers, *views)
            one = [_build(workers, views[0]) for _ in range(runs)]
            two = [_build(workers, *views) for _ in range(runs)]
        result.append(
            SideBySide(workers=count, one=statistics.median(one), two=statistics.median(two))
        )
    return result


def _build(workers: Workers, *views: type[Any]) -> float:
    """Build views from nothing; seconds from the first request to the last end."""
    Refresh.objects.all().delete()
    empty(*views)
    refreshes = [view.refresh() for view in views]
    workers.wait_until_quiet(seconds=PATIENCE)
    ended = [Refresh.objects.get(pk=refresh.pk) for refresh in refreshes]
    assert all(refresh.state == "succeeded" for refresh in ended), [r.error for r in ended]
    start = min(refresh.requested_at for refresh in ended)
    end = max(refresh.finished_at for refresh in ended if refresh.finished_at)
    return (end - start).total_seconds()


def _resident(pid: int, name: str) -> int:
    """A line of a process's memory, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {name}")
