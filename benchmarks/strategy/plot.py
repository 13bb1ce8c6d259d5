"""The picture of the choices, drawn from figures that `make bench` has saved.

python -m benchmarks.strategy.plot figures.json docs/benchmark-strategy.svg
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .names import CHANGES, VIEWS, worst_ratio

__all__ = ["draw"]

DATABASE = "postgres"

LEFT, TOP, WIDTH, HEIGHT, GAP = 200, 48, 56, 22, 3  # of the first square; of each
#: The largest ratio of each kind of square.
KINDS = {"good": 1.3, "fair": 3.0, "bad": float("inf")}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.heading{font-weight:600}"
    ".on{fill:#fff}.good{fill:#2f6f4f}.fair{fill:#9a6700}.bad{fill:#cf222e}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


def draw(cells: list[dict[str, Any]]) -> str:
    """A square for each view and change, one table for each number of rows."""
    drawn, top, width = [], 0, LEFT + (WIDTH + GAP) * len(CHANGES)
    for rows in sorted({cell["rows"] for cell in cells}):
        some = [cell for cell in cells if cell["rows"] == rows]
        shown = [view for view in VIEWS if any(cell["view"] == view for cell in some)]
        drawn += [(each,) for each in (_heading(top, rows), *_squares(top, shown, some))]
        top += TOP + (HEIGHT + GAP) * len(shown) + HEIGHT
    return format_html(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img">'
        "<title>Chosen strategies relative to the best one on PostgreSQL</title>"
        "<style>{}</style>{}</svg>\n",
        width,
        top - HEIGHT,
        STYLE,
        format_html_join("", "{}", drawn),
    )


def _heading(top: int, rows: int) -> SafeString:
    places = ((LEFT + (WIDTH + GAP) * at + WIDTH // 2, name) for at, name in enumerate(CHANGES))
    return format_html(
        '<text x="0" y="{0}" class="heading">{1} sales</text>{2}',
        top + 16,
        f"{rows:,}",
        format_html_join(
            "",
            '<text x="{}" y="{}" text-anchor="middle">{}</text>',
            ((x, top + TOP - 8, name) for x, name in places),
        ),
    )


def _squares(top: int, views: list[str], cells: list[dict[str, Any]]) -> Iterator[SafeString]:
    for line, view in enumerate(views):
        y = top + TOP + (HEIGHT + GAP) * line
        yield format_html('<text x="0" y="{}">{}</text>', y + 15, VIEWS[view])
        for cell in cells:
            if cell["view"] == view:
                x = LEFT + (WIDTH + GAP) * CHANGES.index(cell["change"])
                yield _square(x, y, worst_ratio(cell["seconds"]))


def _square(x: int, y: int, ratio: float) -> SafeString:
    kind = next(kind for kind, most in KINDS.items() if ratio <= most)
    return format_html(
        '<rect class="{0}" x="{1}" y="{2}" width="{3}" height="{4}" rx="3"/>'
        '<text class="on" x="{5}" y="{6}" text-anchor="middle">{7}</text>',
        kind,
        x,
        y,
        WIDTH,
        HEIGHT,
        x + WIDTH // 2,
        y + 15,
        f"{ratio:.2f}",
    )


def main(source: Path, target: Path) -> None:
    """Draw what a JSON file has of PostgreSQL into an SVG file."""
    target.write_text(draw(json.loads(source.read_text())[DATABASE]["strategy"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
