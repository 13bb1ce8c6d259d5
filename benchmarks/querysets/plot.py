"""The picture of the documentation, drawn from figures that `make bench` has saved.

python -m benchmarks.querysets.plot figures.json docs/benchmark-queryset-views.svg
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .names import REFRESH, STATEMENT, called

__all__ = ["draw"]

DATABASE, VIEW = "postgres", "Spending"

WIDTH, LEFT, RIGHT = 740, 350, 660  # of the picture; where bars begin, where the longest ends
HEADING, LINE, BAR, GAP = 26, 20, 13, 16  # heights
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.heading{font-weight:600}"
    ".own{fill:#2f6f4f}.peer{fill:#b6bec8}"
    "@media(prefers-color-scheme:dark)"
    "{text{fill:#e6edf3}.own{fill:#56b886}.peer{fill:#57606a}}"
)


@dataclass(frozen=True)
class Line:
    """A bar with its name before it, and its value as text behind it."""

    name: str
    value: float
    text: str
    own: bool


def draw(figures: dict[str, Any]) -> str:
    """The picture, of the figures of queryset views as JSON holds them."""
    groups = [
        *_works(figures),
        ("Full build as the source grows, per source row", _growth(figures)),
    ]
    drawn, top = [], 0
    for title, lines in groups:
        drawn.append((_group(top, title, lines),))
        top += HEADING + LINE * len(lines) + GAP
    return format_html(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img">'
        "<title>Queryset views beside their peers on PostgreSQL</title>"
        "<style>{}</style>{}</svg>\n",
        WIDTH,
        top - GAP,
        STYLE,
        format_html_join("", "{}", drawn),
    )


def _works(figures: dict[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    for work in figures["works"]:
        if work["view"] == VIEW:
            title = f"{work['name'].capitalize()}, {figures['rows']:,} source rows"
            medians = {name: way["median"] for name, way in work["ways"].items()}
            yield (
                title,
                [
                    Line(called(name, work["name"]), seconds, f"{seconds:.2f} s", name == REFRESH)
                    for name, seconds in sorted(medians.items(), key=lambda item: item[1])
                ],
            )


def _growth(figures: dict[str, Any]) -> list[Line]:
    lines = []
    for size in figures["sizes"]:
        for name, key in ((REFRESH, "build"), (STATEMENT, "statement")):
            each = size[key]["median"] / size["rows"] * 1e6
            label = f"{size['rows']:,} rows, {name}"
            lines.append(Line(label, each, f"{each:.2f} \u00b5s", name == REFRESH))
    return lines


def _group(top: int, title: str, lines: list[Line]) -> SafeString:
    """A heading with its bars below it, of which the longest ends at the right."""
    most = max(line.value for line in lines)
    rows = []
    for number, line in enumerate(lines):
        y = top + HEADING + LINE * number
        end = LEFT + round((RIGHT - LEFT) * line.value / most)
        kind = "own" if line.own else "peer"
        rows.append(
            (LEFT - 10, y + BAR - 2, line.name, kind, LEFT, y, end - LEFT, BAR, end + 8, line.text)
        )
    return format_html(
        '<text x="0" y="{}" class="heading">{}</text>{}',
        top + HEADING - 9,
        title,
        format_html_join(
            "",
            '<text x="{0}" y="{1}" text-anchor="end">{2}</text>'
            '<rect class="{3}" x="{4}" y="{5}" width="{6}" height="{7}" rx="2"/>'
            '<text x="{8}" y="{1}">{9}</text>',
            rows,
        ),
    )


def main(source: Path, target: Path) -> None:
    """Draw what a JSON file has of PostgreSQL into an SVG file."""
    figures = json.loads(source.read_text())[DATABASE]["querysets"]
    target.write_text(draw(figures))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
