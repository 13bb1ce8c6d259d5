"""The refresh of each view after each change: by every strategy, as chosen, and PostgreSQL's own.

Every way sees changes of the same kind and size, in turns. What a view has learnt is part of the
way: a forced refresh teaches nothing, and a choice is made with what the build has shown (cold),
with what other changes have taught, or with what earlier changes of the same kind have.
"""

import statistics
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

from django.db import connection

from matviews import changes, engine
from matviews.models import PhaseRun, ViewControl, ViewShard
from matviews.queryset import plan_of
from matviews.registry import registry
from matviews.states import RefreshStrategy

from ..querysets.loading import tidy
from ..querysets.ways import Native, View
from ..timers import Timer, processor
from . import models
from .busy import processor_costs
from .changes import CHANGES, GROUPS, load
from .models import Sale
from .names import AFTER_OTHERS, AFTER_SAME, CHOSEN, NOISE

__all__ = ["FITTED", "Cell", "measure"]

NATIVE = "CONCURRENTLY"
OTHER_CHANGES = ("1 row", "1 %", "10 %")
OTHERS = 3  # refreshes of another change before a choice with what they have taught
WITH_STORES = (models.ByStore, models.ByRegion, models.ByRegionAndMonth)
#: The views that there were when the constants of the choice were set. The others only judge it.
FITTED = {"ByKind", "ByMonth", "ByMonthAndStatus", "ByKindAndDay"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A view after a change: seconds of a refresh by the name of the way, each a median."""

    rows: int
    view: str
    change: str
    seconds: dict[str, float]
    #: By way, the strategies that were chosen.
    chosen: dict[str, str]

    def ratio(self, way: str) -> float:
        """What a choice takes of the best of our strategies, beyond 20 ms."""
        return self._relative_to(RefreshStrategy.values, way)

    def ratio_to_full(self, way: str) -> float:
        """What a choice takes of the view's full refresh, beyond 20 ms."""
        return self._relative_to([RefreshStrategy.FULL, RefreshStrategy.FULL_STAGED], way)

    def _relative_to(self, ways: Collection[str], way: str) -> float:
        best = min(self.seconds[other] for other in ways if other in self.seconds)
        return max(0.0, self.seconds[way] - NOISE) / best


def measure(
    rows: int, runs: int, views: Collection[str], timer: Timer, say: Callable[[str], object]
) -> list[Cell]:
    """Measure the cells of views, by default of all, with so many sales."""
    say(f"{rows:,} sales")
    changes.remove(engine.alias())
    load(rows)
    changes.install(engine.alias())
    models_ = [model for model in GROUPS if not views or model.__name__ in views]
    with processor_costs() if timer is processor else nullcontext():
        return [cell for model in models_ for cell in _Shape(model, rows, runs, timer, say).cells()]


class _Shape:
    """The cells of one view."""

    def __init__(
        self, model: type[Any], rows: int, runs: int, timer: Timer, say: Callable[[str], object]
    ) -> None:
        self.view, self.rows, self.runs, self.timer, self.say = View(model), rows, runs, timer, say
        self.label = model._meta.label
        strategy = plan_of(registry.find(model), engine.alias()).strategy
        self.forced = [
            each
            for each in RefreshStrategy
            if (each is not RefreshStrategy.BY_KEYS or strategy.is_incremental)
            and (each is not RefreshStrategy.FULL_STAGED or not strategy.staged)
        ]
        self.native: Native | None = None
        self.numbers = count()
        self.built: Any = {}
        self.learnt: Any = {}

    def cells(self) -> Iterator[Cell]:
        self._build()
        for name in CHANGES:
            if name != "1 store" or self.view.model in WITH_STORES:
                self.say(f"{self.view.model.__name__}, {name}")
                yield self._cell(name)

    def _build(self) -> None:
        model = self.view.model
        self.view.empty()
        ViewShard.objects.filter(view__label=self.label).update(costs={}, checkpoints={})
        self.view.build()
        self.view.tidy()
        self.built = self._costs
        if connection.vendor == "postgresql":
            key = registry.find(model).options.key or (model._meta.pk.name,)
            self.native = Native(model, model.source, key)
            self.native.build()

    @property
    def _costs(self) -> Any:
        return ViewShard.objects.values_list("costs", flat=True).get(view__label=self.label)

    def _know(self, costs: Any) -> None:
        ViewShard.objects.filter(view__label=self.label).update(costs=costs)

    def _cell(self, name: str) -> Cell:
        taken: dict[str, list[float]] = {}
        chosen: dict[str, set[str]] = {}
        self.learnt = self.built
        for number in range(-1, self.runs):
            for way in CHOSEN:
                seconds = self._chosen(name, way, number)
                if number >= 0:
                    taken.setdefault(way, []).append(seconds)
                    chosen.setdefault(way, set()).add(self._last_strategy)
            if number >= 0:
                for way, seconds in self._others(name):
                    taken.setdefault(way, []).append(seconds)
        self._know(self.built)
        tidy(Sale)
        self.view.tidy()
        return Cell(
            rows=self.rows,
            view=self.view.model.__name__,
            change=name,
            seconds={way: statistics.median(each) for way, each in taken.items()},
            chosen={way: " or ".join(sorted(each)) for way, each in chosen.items()},
        )

    def _chosen(self, name: str, way: str, number: int) -> float:
        """Seconds of a refresh with what the way has taught."""
        self._know(self.learnt if way == AFTER_SAME else self.built)
        if way == AFTER_OTHERS:
            others = [other for other in OTHER_CHANGES if other != name]
            for _ in range(OTHERS):
                self._change(others[number % len(others)])
                self.view.renew()
        seconds = self._seconds(name, self.view.renew)
        if way == AFTER_SAME:
            self.learnt = self._costs
        return seconds

    def _others(self, name: str) -> Iterator[tuple[str, float]]:
        """Seconds of the ways without a choice."""
        for forced in self.forced:
            yield forced.value, self._forced(name, forced)
        if self.native:
            yield NATIVE, self._seconds(name, self.native.renew)
            self.view.renew()

    def _change(self, name: str) -> None:
        CHANGES[name](self.view.model, next(self.numbers))

    def _seconds(self, change: str, renew: Callable[[], object]) -> float:
        self._change(change)
        return self.timer(renew)

    def _forced(self, change: str, strategy: RefreshStrategy) -> float:
        control = ViewControl.objects.filter(label=self.label)
        control.update(strategy=strategy)
        seconds = self._seconds(change, self.view.renew)
        control.update(strategy="")
        return seconds

    @property
    def _last_strategy(self) -> str:
        runs = PhaseRun.objects.filter(shard__view__label=self.label)
        return str(runs.latest("pk").get_strategy_display())
