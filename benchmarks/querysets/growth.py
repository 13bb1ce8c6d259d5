"""How time and the longest batch grow with the source. All times are seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from matviews.models import ViewControl

from .loading import ORDERS_PER_CUSTOMER, load_orders
from .ways import Statement, View
from .works import Subject, Took

__all__ = ["Longest", "Size", "measure"]

TARGETS = (1.0, 0.2)  # the default, and one that many batches are needed for


@dataclass(frozen=True, kw_only=True)
class Longest:
    """The longest batches, each with its bookkeeping, of refreshes with one target.

    Attributes:
        target: what batches were steered toward.
        build, unchanged: the longest of a full build, and of a pass in which nothing has changed.
    """

    target: float
    build: float
    unchanged: float

    @property
    def ratio(self) -> float:
        """The longest over the target."""
        return max(self.build, self.unchanged) / self.target


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of the source.

    Attributes:
        rows, keys: how many.
        build, unchanged: a refresh with the default target.
        statement: one `INSERT ... SELECT`.
        longest: for each target.
    """

    rows: int
    keys: int
    build: Took
    unchanged: Took
    statement: Took
    longest: tuple[Longest, ...]


def measure(subject: Subject, rows: int, runs: int) -> Size:
    """Load so many source rows, and refresh the view again and again."""
    load_orders(rows)
    by_statement = Statement(subject.by_statement, subject.view.source, subject.key)
    view, statements = View(subject.view), []
    refreshes = [_Refreshes(view, target) for target in TARGETS]
    usual, *others = refreshes
    for _ in range(runs):
        by_statement.empty()
        statements.append(_seconds(by_statement.build))
        usual.run()
    for each in others:
        each.run()
    return Size(
        rows=rows, keys=rows // ORDERS_PER_CUSTOMER, build=Took.of(usual.builds),
        unchanged=Took.of(usual.passes), statement=Took.of(statements),
        longest=tuple(each.longest() for each in refreshes),
    )  # fmt: skip


class _Refreshes:
    def __init__(self, view: View, target: float) -> None:
        self._view, self._target = view, target
        self.builds: list[float] = []
        self.passes: list[float] = []
        self._longest_of_builds = self._longest_of_passes = 0.0

    def run(self) -> None:
        """Build, then look for changes where there are none."""
        control = ViewControl.objects.filter(label=self._view.model._meta.label)
        control.update(batch_target=self._target)
        self._view.empty()
        self.builds.append(_seconds(self._view.build))
        self._longest_of_builds = max(self._longest_of_builds, self._view.longest)
        self._view.tidy()
        self.passes.append(_seconds(self._view.renew))
        self._longest_of_passes = max(self._longest_of_passes, self._view.longest)
        control.update(batch_target=None)

    def longest(self) -> Longest:
        return Longest(
            target=self._target,
            build=self._longest_of_builds,
            unchanged=self._longest_of_passes,
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
