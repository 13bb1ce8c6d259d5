"""What was measured in several ways, and how it is shown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .report import add

__all__ = ["Measured", "medians", "save", "show"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One thing, measured in several ways: the median of each.

    Attributes:
        name: of the thing.
        seconds: by the name of the way, the first one being ours.
        statements: how many a run takes, by the name of the way; empty if they were not counted.
    """

    name: str
    seconds: dict[str, float]
    statements: dict[str, int] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """What ours takes of each other."""
        ours, *others = self.seconds
        return {name: self.seconds[ours] / self.seconds[name] for name in others}


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of the times of each way."""
    return {name: statistics.median(runs) for name, runs in times.items()}


def show(found: Sequence[Measured], title: str, console: Console) -> None:
    """Print a table of milliseconds."""
    table = Table(title=f"{title}, milliseconds", title_justify="left")
    for column in ("", "", "median", "ratio", "statements"):
        table.add_column(column, justify="right" if column else "left")
    for each in found:
        table.add_section()
        ratios = each.ratios()
        for number, (way, seconds) in enumerate(each.seconds.items()):
            name = "" if number else each.name
            ratio = f"{ratios[way]:.4f}" if way in ratios else ""
            count = each.statements.get(way, "")
            table.add_row(name, way, f"{1000 * seconds:.1f}", ratio, str(count))
    console.print(table)


def save(found: Sequence[Measured], part: str, database: str, path: Path) -> None:
    """Put the figures of a part into a JSON file, beside what else it has of the database."""
    add(path, database, {part: [asdict(each) for each in found]})
