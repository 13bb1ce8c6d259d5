"""When something happened in a worker process: one line per tick in a file."""

import os
import time
from itertools import pairwise
from pathlib import Path

VARIABLE = "MATVIEWS_BENCH_CLOCK"


def tick() -> None:
    """Write down the time, if a file is named for it. It is one small write, of some 20 us."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(f"{time.monotonic_ns()}\n")


class Clock:
    """The ticks of the worker processes, as another process reads them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def reset(self) -> None:
        """Forget what was ticked so far."""
        self._path.write_text("")

    def ticks(self) -> list[int]:
        """Nanoseconds of each tick."""
        return [int(line) for line in self._path.read_text().splitlines()]

    def milliseconds(self) -> list[float]:
        """From each tick to the next."""
        return [(after - before) / 1e6 for before, after in pairwise(self.ticks())]
