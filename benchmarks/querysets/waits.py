"""How long a writer to the source waits while the view is kept up to date. Milliseconds."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from .names import ALONE, LOOP
from .ways import View, Way
from .works import Subject
from .writer import writing

__all__ = ["Wait", "waits"]

SECONDS = 5.0  # of each condition in each round


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A writer under one condition.

    Attributes:
        changes: how many it made in all rounds.
        p50, p99: medians of the rounds' percentiles.
        longest: of all.
    """

    changes: int
    p50: float
    p99: float
    longest: float


def waits(subject: Subject, runs: int) -> dict[str, Wait]:
    """By what goes on meanwhile: nothing, refreshes, or the work of a peer."""
    ways: list[Way] = [View(subject.view), *subject.peers()]
    conditions: dict[str, Callable[[float], None]] = {ALONE: time.sleep}
    conditions |= {way.name: _Busy(way) for way in ways if way.name != LOOP}
    found: dict[str, list[list[float]]] = {name: [] for name in conditions}
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder) / "writes") as writes:
        for _ in range(runs):
            for name, condition in conditions.items():
                start = time.monotonic_ns()
                condition(SECONDS)
                found[name].append(writes.between(start, time.monotonic_ns()))
    return {name: _wait(rounds) for name, rounds in found.items()}


class _Busy:
    """Builds and renews in turn, again and again, for some seconds."""

    def __init__(self, way: Way) -> None:
        self._way = way
        way.empty()

    def __call__(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for job in cycle((self._way.build, self._way.renew, self._way.empty)):
            job()
            if time.monotonic() > deadline:
                break
        self._way.empty()


def _wait(rounds: list[list[float]]) -> Wait:
    return Wait(
        changes=sum(map(len, rounds)),
        p50=statistics.median(map(statistics.median, rounds)),
        p99=statistics.median(statistics.quantiles(each, n=100)[-1] for each in rounds),
        longest=max(map(max, rounds)),
    )
