"""A writer to the source: `python -m benchmarks.querysets.writer PATH` until it is ended.

It changes one order after the other, each in a transaction of its own, and writes a line for each:
when it began and how long it took, in nanoseconds.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import ROOT

__all__ = ["Writes", "writing"]

PAUSE = 0.002  # seconds between two changes
PATIENCE = 20.0  # seconds that it may take to start


class Writes:
    """What a writer has written down."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def between(self, start: int, end: int) -> list[float]:
        """Milliseconds of each change that began in this time, of nanoseconds of the clock."""
        lines = self._path.read_text().splitlines()[:-1]  # the last may not be whole
        changes = (map(int, line.split()) for line in lines)
        return [took / 1e6 for began, took in changes if start <= began < end]


@contextmanager
def writing(path: Path) -> Iterator[Writes]:
    """A writer that is at work inside, in a process of its own."""
    from django.db import connection

    environment = {**os.environ, "MATVIEWS_TEST_DB_NAME": str(connection.settings_dict["NAME"])}
    path.touch()
    writer = subprocess.Popen([sys.executable, "-m", __name__, path], cwd=ROOT, env=environment)
    try:
        _wait_for(path, writer)
        yield Writes(path)
    finally:
        writer.terminate()
        writer.wait()


def _wait_for(path: Path, writer: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.stat().st_size:
        if writer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("The writer did not start; run it by hand to see why.")
        time.sleep(0.05)


def _write(path: Path) -> None:
    import django

    django.setup()
    from django.db.models import F

    from ..models import Order

    rows = Order.objects.count()
    with path.open("a", buffering=1) as file:
        while True:
            row = Order.objects.filter(pk=random.randint(1, rows))
            started = time.monotonic_ns()
            row.update(amount=F("amount") + 1)
            file.write(f"{started} {time.monotonic_ns() - started}\n")
            time.sleep(PAUSE)


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
