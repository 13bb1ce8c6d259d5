"""The figures that `make bench` has saved, as tables for the documentation.

python -m benchmarks.strategy.tables figures.json postgres 100000
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .names import CHOSEN, FORCED, VIEWS, worst_ratio

__all__ = ["table"]

HEADINGS = {"by_keys": "by keys", "full": "in full", "full_staged": "staged"}


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table in Markdown, in milliseconds."""
    known = {way for cell in cells for way in cell["seconds"]}
    ways = [way for way in (*CHOSEN, *FORCED, "CONCURRENTLY") if way in known]
    heads = (HEADINGS.get(way, f"`{way}`" if way.isupper() else way) for way in ways)
    yield f"| view | change | {' | '.join(heads)} | ratio |"
    yield "|---" * (len(ways) + 3) + "|"
    shown = ""
    for cell in sorted(cells, key=lambda cell: [*VIEWS].index(cell["view"])):
        seconds = cell["seconds"]
        figures = (f"{1000 * seconds[way]:.0f}" if way in seconds else "" for way in ways)
        name = VIEWS[cell["view"]] if cell["view"] != shown else ""
        shown = cell["view"]
        ratio = f"{worst_ratio(seconds):.2f}"
        yield f"| {' | '.join((name, cell['change'], *figures, ratio))} |"


def main(source: Path, database: str, rows: str) -> None:
    """Print the table of a database with so many rows."""
    cells = json.loads(source.read_text())[database]["strategy"]
    print(*table([cell for cell in cells if cell["rows"] == int(rows)]), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
