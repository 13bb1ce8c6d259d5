"""The table of the choices, how good they were, and the figures as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..report import add, read
from .measure import FITTED, Cell
from .names import CHOSEN, COLD

__all__ = ["save", "show"]

GOOD = 1.3
#: A choice without history may begin with the wrong strategy, for as long as a full one takes.
CUT_OFF = 2.3


def show(cells: list[Cell], database: str, console: Console) -> None:
    """Print a table, then how good the choices were; `database` goes into its title."""
    ways = list(dict.fromkeys(way for cell in cells for way in cell.seconds))
    table = Table(title=f"{database}: strategies of a refresh, milliseconds", title_justify="left")
    for column in ("rows", "view", "change", *ways, *(f"{way}: ratio" for way in CHOSEN)):
        table.add_column(column, justify="left" if column in ("view", "change") else "right")
    for cell in cells:
        figures = (f"{1000 * cell.seconds[way]:.0f}" if way in cell.seconds else "" for way in ways)
        ratios = (f"{cell.ratio(way):.2f}" for way in CHOSEN)
        table.add_row(f"{cell.rows:,}", cell.view, cell.change, *figures, *ratios)
    console.print(table)
    for name, views in (("all views", None), ("views that only judge", FITTED)):
        some = [cell for cell in cells if views is None or cell.view not in views]
        for way in CHOSEN if some else ():
            console.print(f"{name}, {_quality(way, some)}")


def _quality(way: str, cells: list[Cell]) -> str:
    most = CUT_OFF if way == COLD else GOOD
    return (
        f"{way}: {_within([cell.ratio(way) for cell in cells], GOOD)} the best strategy; "
        f"{_within([cell.ratio_to_full(way) for cell in cells], most)} a full refresh"
    )


def _within(ratios: Iterable[float], most: float) -> str:
    ordered = sorted(ratios)
    good = sum(ratio <= most for ratio in ordered)
    return (
        f"within {most} times (and 20 ms) in {good} of {len(ordered)} cells, "
        f"at most {ordered[-1]:.2f} times,"
    )


def save(cells: list[Cell], database: str, path: Path) -> None:
    """Put the figures into a JSON file, in the place of older ones of the same rows and views."""
    new = {(cell.rows, cell.view) for cell in cells}
    before = read(path, database).get("strategy", [])
    kept = [cell for cell in before if (cell["rows"], cell["view"]) not in new]
    add(path, database, {"strategy": [*kept, *map(asdict, cells)]})
