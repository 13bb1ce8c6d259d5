"""Showing a refresh on a terminal while it runs, as bars."""

import sys
from collections.abc import Sequence
from threading import Lock

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from matviews.engine import BatchReport, RunProgress
from matviews.states import RunState

from .progress import Meter, title
from .reporting import Meters, batch_line

__all__ = ["Bars", "bar"]

TEXT_WIDTH = 54  # columns of "12,345 of about 336,776 rows, 12,345 rows/s, 27 s left"
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 8, 28  # columns
Shown = list[tuple[RunProgress, Meter]]


class Bars:
    """One bar per phase and shard of a view; those of finished views stay above."""

    def __init__(self, console: Console, *, batches: bool = False) -> None:
        self._console, self._batches = console, batches
        unicode = not console.options.ascii_only
        self._spinner = Spinner("dots" if unicode else "line", style="cyan")
        self._good = Text("✓" if unicode else "+", style="green")
        self._bad = Text("✗" if unicode else "x", style="red")
        self._live: Live | None = None
        self._meters = Meters()
        self._label = self._note = ""
        self._lock = Lock()  # rich draws the picture in a thread of its own

    def show(self, label: str, phases: Sequence[RunProgress]) -> None:
        with self._lock:
            self._meters.note(phases)
        self._label = label
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._picture,
                redirect_stderr=sys.stderr.isatty(),  # a stderr that goes elsewhere stays there
            )
            self._live.start(refresh=True)

    def batch(self, report: BatchReport) -> None:
        if self._batches and not report.outcome.refused:
            self._console.print(batch_line(report), markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._note = text  # shown by the next picture; a signal handler must not print

    def close(self) -> None:
        if live := self._live:
            self._live = None  # lets the last picture show all lines, and scroll
            live.stop()
        self._meters = Meters()

    def _picture(self) -> RenderableType:
        with self._lock:
            shown = list(self._meters)
            if self._live is None and all(_idle(progress) for progress, _meter in shown):
                return Text.assemble(self._good, " ", (self._label, "bold"), ": nothing to do")
            grid = self._grid(shown)
        footer = []
        if hidden := len(shown) - grid.row_count:
            footer.append(Text(f"  and {hidden} more", style="dim"))
        if self._note:
            footer.append(Text(self._note, style="yellow"))
        return Group(Text(self._label, style="bold", overflow="fold"), grid, *footer)

    def _grid(self, shown: Shown) -> Table:
        grid = Table.grid(padding=(0, 1))
        for _column in range(3):
            grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        titles = max((len(title(progress)) for progress, _meter in shown), default=0)
        room = self._console.width - titles - TEXT_WIDTH - 5
        width = max(MIN_BAR_WIDTH, min(MAX_BAR_WIDTH, room))
        for progress, meter in self._that_fit(shown):
            drawn = bar(progress, meter, width)
            grid.add_row(self._mark(progress), title(progress), drawn, Text(meter.text))
        return grid

    def _that_fit(self, shown: Shown) -> Shown:
        """All phases; if the terminal is too low, the current ones first."""
        room = self._console.height - 4
        if self._live is None or len(shown) <= room:
            return shown
        turns = [each for each in shown if each[0].current]
        others = [each for each in shown if not each[0].current]
        chosen = [*turns, *others][: max(room, 1)]
        return [each for each in shown if each in chosen]

    def _mark(self, progress: RunProgress) -> RenderableType:
        if progress.current:
            return self._spinner
        if progress.run.active:
            return " "
        return self._good if progress.run.state == RunState.SUCCEEDED else self._bad


def _idle(progress: RunProgress) -> bool:
    return progress.run.state == RunState.SUCCEEDED and not progress.run.batches


def bar(progress: RunProgress, meter: Meter, width: int) -> ProgressBar:
    """The bar of one phase: full at its end, empty before its turn, moving without an estimate."""
    if not progress.run.active:
        good = progress.run.state == RunState.SUCCEEDED
        style = "bar.finished" if good else "red"
        return ProgressBar(total=1, completed=1, width=width, finished_style=style)
    if not progress.current:
        return ProgressBar(total=1, completed=0, width=width)
    share = meter.progress.share
    return ProgressBar(total=1, completed=share or 0, width=width, pulse=share is None)
