"""What a view learns of costs on a busy machine: CPU time in place of the time that passes.

Otherwise the choice would follow what other work leaves of the machine: a refresh by keys that
takes as long as a full one would be cut off whenever the last full one had more of the machine.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connection

from matviews.engine.batches import derived, step
from matviews.engine.transactions import statement_budget

from ..processor import Processor

__all__ = ["processor_costs"]

RECENT = 20  # batches that show how much longer work takes than its CPU time
TELLING = 0.01  # seconds of CPU time; of less, that is noise


class _Clock:
    """In place of the module `time` where batches are timed."""

    def __init__(self) -> None:
        self._processor, self._session = Processor(), connection.connection
        self._last = (0.0, time.monotonic())
        self._ratios = deque([1.0], maxlen=RECENT)

    def monotonic(self) -> float:
        """Seconds of CPU time, of this process and of its session, since some moment."""
        if self._session is not connection.connection:
            self._processor, self._session = Processor(), connection.connection
        taken = (self._processor.own + self._processor.server) / 1e3
        (before, at), self._last = self._last, (taken, time.monotonic())
        if taken - before > TELLING:
            self._ratios.append((self._last[1] - at) / (taken - before))
        return taken

    @property
    def slowness(self) -> float:
        """How many times as long as its CPU time work has taken at most of late."""
        return max(self._ratios)


@contextmanager
def processor_costs() -> Iterator[None]:
    """Views learn CPU time, and limits of statements are as much longer as other work requires."""
    clock = _Clock()

    def longer(seconds: float, allowed: float) -> AbstractContextManager[None]:
        return statement_budget(min(seconds * clock.slowness, allowed), allowed)

    patched: Any = patch.object
    with patched(step, "time", clock), patched(derived, "statement_budget", longer):
        yield
