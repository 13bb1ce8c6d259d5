"""Showing a refresh while it runs, as lines; on a terminal, `bars` draws it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from matviews.engine import BatchReport, RunProgress, progress_of
from matviews.models import Refresh
from matviews.presentation import format_duration, pluralize

from .progress import Meter, title

__all__ = ["Lines", "Meters", "ProgressDisplay", "Reporter", "Silence", "batch_line"]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.1


class Reporter(Protocol):
    """Shows the work of the command while it runs."""

    def show(self, label: str, phases: Sequence[RunProgress]) -> None:
        """Show how far a view is."""

    def batch(self, report: BatchReport) -> None:
        """Show a batch that has ended."""

    def note(self, text: str) -> None:
        """Tell a person something at once. May be called in a signal handler."""

    def close(self) -> None:
        """End the display of a view, which is done or left."""


class Silence:
    """Shows nothing but notes."""

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn

    def note(self, text: str) -> None:
        self._warn(text)

    def show(self, label: str, phases: Sequence[RunProgress]) -> None: ...

    def batch(self, report: BatchReport) -> None: ...

    def close(self) -> None: ...


class Meters:
    """One meter per phase and shard of a view."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self.phases: Sequence[RunProgress] = ()

    def note(self, phases: Sequence[RunProgress]) -> None:
        """Record how far the view is now."""
        for progress in phases:
            self._meters.setdefault(title(progress), Meter()).note(progress)
        self.phases = phases

    def __iter__(self) -> Iterator[tuple[RunProgress, Meter]]:
        return ((progress, self._meters[title(progress)]) for progress in self.phases)


def batch_line(report: BatchReport) -> str:
    """A batch in one line, with its error if it is tried again: final errors come at the end."""
    allowed = f" of at most {report.limit:,}" if report.limit else ""
    again = any(run.active for run in report.runs)
    error = f": {report.error}" if report.error and again else ", failed" * bool(report.error)
    return (
        f"{report.label} {report.message.phase}: batch of "
        f"{pluralize(report.rows, 'row')}{allowed}, {format_duration(report.seconds)}{error}"
    )


class Lines:
    """A line when a phase ends or begins to wait for a worker, and every ten seconds in between."""

    def __init__(
        self,
        write: Callable[[str], object],
        warn: Callable[[str], object],
        *,
        batches: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._warn, self._clock, self._batches = write, warn, clock, batches
        self._next_line = 0.0
        self.close()

    def show(self, label: str, phases: Sequence[RunProgress]) -> None:
        self._meters.note(phases)
        due = self._clock() >= self._next_line
        for progress, meter in self._meters:
            if self._is_news(progress, meter) or (due and progress.current):
                self._write(f"{label} {title(progress)}: {meter.text}")
                self._next_line = self._clock() + SECONDS_BETWEEN_LINES

    def _is_news(self, progress: RunProgress, meter: Meter) -> bool:
        """Whether a phase has just ended or begun to wait for a worker."""
        ended = not progress.run.active and not progress.ahead
        state = "ended" if ended else meter.waits_for
        news = bool(state) and self._news.get(title(progress)) != state
        self._news[title(progress)] = state or self._news.get(title(progress), "")
        return news

    def batch(self, report: BatchReport) -> None:
        if self._batches and not report.outcome.refused:
            self._write(batch_line(report))

    def note(self, text: str) -> None:
        self._warn(text)

    def close(self) -> None:
        self._meters = Meters()
        self._news: dict[str, str] = {}
        self._next_line = self._clock() + SECONDS_BETWEEN_LINES


class ProgressDisplay:
    """Has a reporter show the progress of a refresh at intervals, in whichever process it runs.

    Args:
        refresh: the refresh.
        reporter: what shows it.
        elsewhere: whether only other processes run its batches.
    """

    def __init__(self, refresh: Refresh, reporter: Reporter, *, elsewhere: bool = False) -> None:
        self._refresh, self._reporter, self._elsewhere = refresh, reporter, elsewhere
        self._next_update = 0.0

    def report(self, report: BatchReport) -> None:
        """Show a batch that has ended, and how far the refresh is."""
        self._reporter.batch(report)
        self.update()

    def update(self, *, now: bool = False) -> None:
        """Show how far the refresh is, unless that was just done or `now` insists."""
        if now or time.monotonic() >= self._next_update:
            phases = progress_of(self._refresh)
            if self._elsewhere:
                phases = [replace(each, unclaimed=each.claim is None) for each in phases]
            self._reporter.show(self._refresh.view.label, phases)
            self._next_update = time.monotonic() + SECONDS_BETWEEN_UPDATES
