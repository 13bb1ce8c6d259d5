"""What work takes: elapsed time, or CPU time where other work shares the machine."""

import time
from collections.abc import Callable

from django.db import connection

from .processor import Processor

__all__ = ["Timer", "elapsed", "processor"]

Timer = Callable[[Callable[[], object]], float]


def elapsed(work: Callable[[], object]) -> float:
    """Seconds that pass."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor(work: Callable[[], object]) -> float:
    """Seconds of CPU time of this process and of its session in a server on this machine.

    Only on Linux. PostgreSQL starts no parallel workers meanwhile, which would not be seen. Waiting
    counts as nothing, not even for a disk.
    """
    connection.ensure_connection()
    connection.close_at = None  # after an error, the same session goes on
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET max_parallel_workers_per_gather = 0")
    taken = Processor()
    work()
    return (taken.own + taken.server) / 1e3
