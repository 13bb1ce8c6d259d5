"""Plots with an axis of round numbers, with bars or lines, as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import median
from typing import Any, NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ..presentation import localized
from .phrases import count_rows, duration

__all__ = [
    "FAILED", "MIN_SLOTS", "ROWS", "SECONDS", "STOPPED", "SUCCEEDED", "WIDTH", "Mark", "Plot",
    "Quantity",
]  # fmt: skip

# In units of the picture: about a pixel each if three pictures are side by side.
WIDTH, LEFT, RIGHT = 300, 50, 298
HEIGHT, ABOVE, BELOW = 72, 32, 18  # of the plot, its heading, and the labels below it
MIN_SLOTS = 12  # or the bars of a short history would be too wide

SUCCEEDED, STOPPED, FAILED = "succeeded", "stopped", "failed"
# The marks of bars, drawn around a point, and the signs for them and for a line in the legend.
SHAPES = {SUCCEEDED: "", STOPPED: "m-2.5-2.5h5v5h-5z", FAILED: "m-3-3 6 6m0-6-6 6"}
SIGNS = {STOPPED: "\u25a1", FAILED: "\u00d7", "reference": "- - -"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """What an axis measures."""

    #: The size and name of each unit, the largest first.
    units: tuple[tuple[float, str], ...]
    #: The smallest value worth an axis.
    least: float
    #: Larger values are drawn as this one.
    largest: float
    #: A phrase for the median and the largest value.
    summarized: Any

    def number(self, value: Any) -> float:
        """The value, between 0 and `largest`."""
        return min(value, self.largest) if value > 0 else 0.0

    def words(self, value: float) -> str:
        """The value with its unit written out."""
        return count_rows(value) if self is ROWS else duration(value)

    def short(self, value: float) -> str:
        """The value with three digits."""
        size, name = self.unit(value)
        number = value / size
        return localized(f"{number:.3g}" if number < 1000 else f"{number:,.0f}") + name

    def unit(self, most: float) -> tuple[float, str]:
        """The size and name of the unit for values up to `most`."""
        return next((each for each in self.units if most >= each[0]), self.units[-1])

    def summary(self, values: Sequence[float]) -> str:
        """The median and the largest of some values."""
        ends = {"median": self.words(median(values)), "most": self.words(max(values))}
        return str(self.summarized % ends)


SECONDS = Quantity(
    units=((86_400, " d"), (3600, " h"), (60, " min"), (1, " s"), (0.001, " ms")),
    least=0.001,
    largest=1e10,
    summarized=_("median %(median)s, longest %(most)s"),
)
ROWS = Quantity(
    units=((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")),
    least=1,
    largest=1e19,
    summarized=_("median %(median)s, most %(most)s"),
)


class Mark(NamedTuple):
    """A value to draw, and its tooltip."""

    value: float
    tooltip: str
    outcome: str = SUCCEEDED


class Plot:
    """A plot with its axis, below a heading.

    Args:
        quantity: what the axis measures.
        values: all that will be drawn.
        offset: where its heading begins.
    """

    def __init__(self, quantity: Quantity, values: Iterable[float], *, offset: float = 0) -> None:
        most = max(quantity.least, *values)
        self._unit, self._name = quantity.unit(most)
        self._step = max(_round_up(most / self._unit / 3), quantity.least / self._unit)
        self._steps = ceil(round(most / self._unit / self._step, 9))
        self._offset = offset
        self._top = offset + ABOVE
        self._floor = self._top + HEIGHT
        self.bottom = self._floor + BELOW

    def frame(self, name: str, note: str = "", **legend: str) -> SafeString:
        """The heading, and gridlines with numbers; `legend` explains the shapes that occur."""
        ticks = [(self._y(tick * self._step * self._unit), tick) for tick in range(self._steps + 1)]
        return format_html(
            '<text y="{0}"><tspan class="heading">{1}</tspan> <tspan dx="4">{2}</tspan></text>'
            '<text x="{3}" y="{0}" text-anchor="end">{4}</text>{5}',
            self._offset + 12,
            name,
            note,
            RIGHT,
            format_html_join(
                "\u00a0\u00a0 ",
                '<tspan class="sign {}">{}</tspan> {}',
                ((shape, SIGNS[shape], meaning) for shape, meaning in legend.items()),
            ),
            format_html_join(
                "",
                '<path d="M{} {}H{}" class="{}"/><text x="{}" y="{}" text-anchor="end">{}</text>',
                (
                    (LEFT, _c(y), RIGHT, "grid" if tick else "floor", LEFT - 6, _c(y + 3.5), label)
                    for y, tick in ticks
                    for label in [self._label(tick * self._step) if tick else "0"]
                ),
            ),
        )

    def _label(self, value: float) -> str:
        return localized(f"{value:,.10g}") + self._name

    def bars(self, marks: Sequence[Mark]) -> SafeString:
        """A bar for each value, the last at the right end. Runs that did not succeed are marked."""
        slots = max(len(marks), MIN_SLOTS)
        pitch = (RIGHT - LEFT) / slots
        drawn = []
        for place, (value, tooltip, outcome) in enumerate(marks, start=slots - len(marks)):
            middle = LEFT + pitch * (place + 0.5)
            top = min(self._y(value), self._floor - 1)  # visible even if it is 0
            bar = (_c(middle - pitch * 0.35), _c(top), _c(pitch * 0.7), _c(self._floor - top))
            hit = (_c(middle - pitch / 2), _c(self._top), _c(pitch), HEIGHT)
            shape = f"M{_c(middle)} {_c(top - 6)}{SHAPES[outcome]}" if SHAPES[outcome] else ""
            drawn.append((outcome, *hit, *bar, shape, tooltip))
        return format_html_join(
            "",
            '<g class="{}"><rect x="{}" y="{}" width="{}" height="{}" class="hit"/>'
            '<rect x="{}" y="{}" width="{}" height="{}" class="bar"/>'
            '<path d="{}" class="shape"/><title>{}</title></g>',
            drawn,
        )

    def line(
        self,
        numbers: Sequence[int],
        marks: Sequence[Mark],
        references: Sequence[float | None],
    ) -> SafeString:
        """The values as a line, each at its number; the references as a dashed line."""
        per_number = (RIGHT - LEFT) / (numbers[-1] - numbers[0] or 1)
        xs = [LEFT + per_number * (number - numbers[0]) for number in numbers]
        compared = [
            (x, value) for x, value in zip(xs, references, strict=True) if value is not None
        ]
        if len(compared) == 1:  # a line needs two ends
            compared.append((RIGHT, compared[0][1]))
        values = [(x, mark.value) for x, mark in zip(xs, marks, strict=True)]
        return format_html(
            '<polyline points="{}" class="shape reference"/><polyline points="{}" class="line"/>{}',
            self._points(compared),
            self._points(values),
            format_html_join(
                "",
                '<circle cx="{}" cy="{}" r="1.8" class="dot"><title>{}</title></circle>',
                (
                    (_c(x), _c(self._y(mark.value)), mark.tooltip)
                    for x, mark in zip(xs, marks, strict=True)
                ),
            ),
        )

    def _points(self, places: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{_c(x)},{_c(self._y(value))}" for x, value in places)

    def ends(self, left: str, right: str) -> SafeString:
        """The labels below the first and the last place; "" for none."""
        return format_html(
            '<text x="{0}" y="{2}">{3}</text><text x="{1}" y="{2}" text-anchor="end">{4}</text>',
            LEFT,
            RIGHT,
            self._floor + 14,
            left,
            right,
        )

    def _y(self, value: float) -> float:
        return self._floor - HEIGHT * value / (self._unit * self._step * self._steps)


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(value))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= value * (1 - 1e-9))


def _c(coordinate: float) -> str:
    return f"{coordinate:.1f}".removesuffix(".0")
