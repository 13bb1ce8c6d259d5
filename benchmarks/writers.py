"""What writes to a source table cost, with and without triggers on it."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from matviews import engine

from .measured import Measured, medians
from .querysets.loading import tidy
from .timers import Timer

__all__ = ["measure_writes"]


def measure_writes(
    table: type[Any],
    jobs: Mapping[str, Callable[[int], object]],
    triggers: Mapping[str, Callable[[str], object]],
    runs: int,
    timer: Timer,
) -> Iterator[Measured]:
    """Measure jobs that write, after one run of each that is not counted.

    Args:
        table: the model of the source table.
        jobs: what writes, by its name; it is given the number of the run.
        triggers: what installs or removes triggers in a database, by the name of what is then
            measured, ours first.
        runs: runs that medians are taken of.
        timer: what measures.
    """
    times = {job: {name: list[float]() for name in triggers} for job in jobs}
    for number in range(runs + 1):
        for name in [*triggers][:: 1 if number % 2 else -1]:
            triggers[name](engine.alias())
            for job, work in jobs.items():
                tidy(table)
                taken = timer(partial(work, number))
                if number:
                    times[job][name].append(taken)
            engine.move_log()
            engine.trim_value_logs()
    for job, found in times.items():
        yield Measured(name=job, seconds=medians(found))
