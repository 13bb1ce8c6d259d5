"""What a run prints."""

from collections import Counter
from collections.abc import Iterable, Sequence

from .logs import tracebacks
from .plan import Step
from .recovery import Recoveries
from .world import World

__all__ = ["print_plan", "print_report"]


def print_plan(seed: int, steps: Iterable[Step]) -> None:
    """The plan, from which a run can be repeated as far as machines allow."""
    print(f"Plan of seed {seed}:")
    for step in steps:
        print(step)


def print_report(
    world: World, recoveries: Recoveries, done: Counter[str], skipped: Counter[str]
) -> None:
    """Faults, recoveries, late views, processes that ended by themselves, errors in logs."""
    print("\nFaults, and seconds from the end of each to the next batch and until all is on time:")
    figures = recoveries.figures()
    rows = [
        [kind, str(done[kind]), str(skipped[kind]), *figures.get(kind, ["-"] * 4)]
        for kind in sorted({*done, *skipped})
    ]
    _print_table(("fault", "count", "skipped", "batch", "max", "on time", "max"), rows)
    if recoveries.longest:
        print("\nThe longest time in which a view was never on time, in seconds:")
        longest = sorted(recoveries.longest.items())
        rows = [[label, f"{seconds:.0f}", what] for label, (seconds, what) in longest]
        _print_table(("view", "seconds", "what was wrong"), rows)
    if ends := Counter(
        (each.name, str(end)) for each in world.programs.values() for end in each.ends
    ):
        print("\nProcesses that ended by themselves and were started again, by exit status:")
        rows = [[*which, str(count)] for which, count in sorted(ends.items())]
        _print_table(("process", "status", "count"), rows)
    if found := tracebacks(each.log for each in world.programs.values() if each.log.exists()):
        print("\nTracebacks in the logs of workers, beats and followers:")
        rows = [[str(count), error, subject] for (subject, error), count in found.most_common()]
        _print_table(("count", "error", "logged as"), rows)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
