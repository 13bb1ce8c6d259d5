"""Showing a refresh while it works: bars on a terminal, lines elsewhere, nothing for JSON."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from matviews.engine import BatchReport
from matviews.models import PhaseRun
from matviews.states import RunState

__all__ = ["Bars", "Lines", "Reporter", "Silence", "describe", "duration"]

SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """What the command tells of its work as it goes on."""

    def report(self, report: BatchReport) -> None:
        """A batch has ended."""

    def close(self) -> None:
        """Nothing more will come."""


class Silence:
    """Says nothing."""

    def report(self, report: BatchReport) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A line when a phase ends, and every ten seconds while it goes on."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def report(self, report: BatchReport) -> None:
        for run in _leaders(report):
            if not run.active:
                self._write(f"{report.label} {run.phase}: {describe(run)}")
            elif time.monotonic() >= self._next_line:
                self._write(f"{report.label} {run.phase}: {describe(run)}, going on")
                self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def close(self) -> None: ...


class Bars:
    """A bar for each phase of each view, and stripe where there is more than one."""

    def __init__(self, console: Console) -> None:
        self._bars: dict[tuple[str, str, int], TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._progress.start()

    def report(self, report: BatchReport) -> None:
        for run in _leaders(report):
            self._show(report.label, run)

    def close(self) -> None:
        for task in self._progress.tasks:
            self._progress.stop_task(task.id)
        self._progress.stop()

    def _show(self, label: str, run: PhaseRun) -> None:
        key = label, run.phase, run.stripe.number
        if key not in self._bars:
            stripe = f" stripe {run.stripe.number}" if run.stripe.number else ""
            self._bars[key] = self._progress.add_task(
                f"{label} {run.phase}{stripe}", total=None, text=""
            )
        total, completed = _extent(run)
        self._progress.update(
            self._bars[key], total=total, completed=completed, text=describe(run), refresh=True
        )


def _leaders(report: BatchReport) -> list[PhaseRun]:
    return [run for run in report.runs if run.merged_into_id is None]


def _extent(run: PhaseRun) -> tuple[int | None, int]:
    """Length of the bar and how far it is; no length where nothing honest can be said."""
    if not run.active:
        return max(run.rows, 1), max(run.rows, 1) if run.state == RunState.SUCCEEDED else run.rows
    known = run.estimate is not None and run.estimate >= run.rows
    return (run.estimate if known else None), run.rows


def describe(run: PhaseRun) -> str:
    """How far a phase run is, in words: rows, rate and, where an estimate holds, time left."""
    if not run.active:
        return _describe_ended(run)
    rate = f", {run.rate:,.0f} rows/s" if run.rate else ""
    if run.estimate is None:
        return f"{run.rows:,} rows{rate}"
    if run.rows > run.estimate:
        return f"{run.rows:,} rows{rate}, more than the {run.estimate:,} estimated"
    left = f", {duration((run.estimate - run.rows) / run.rate)} left" if run.rate else ""
    return f"{run.rows:,} of about {run.estimate:,} rows{rate}{left}"


def _describe_ended(run: PhaseRun) -> str:
    if run.state != RunState.SUCCEEDED:
        return f"{RunState(run.state).label}: {run.error}"
    if not run.batches:
        return "nothing to do"
    batches = "1 batch" if run.batches == 1 else f"{run.batches:,} batches"
    # A whole-phase hook may not have counted its rows, so no rows are not claimed to be none.
    rows = f"{run.rows:,} rows in " if run.rows else ""
    return f"{rows}{batches}, {duration(run.seconds)}"


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
