import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matviews.engine.batches.pacing import (
    FAST_STEPS,
    GROWTH,
    HISTORY_LENGTH,
    Pace,
    halved,
    halvings,
)
from matviews.registry import registry
from tests.helpers.view_classes import INSERT_ONLY, make_view, only_run, ready, run

FLOOR, CEILING = 10, 100_000
Cost = Callable[[int], float]


def steadily(per_row: float, once: float = 0.0) -> Cost:
    return lambda size: once + size * per_row


@dataclass
class Simulation:
    """Full batches whose cost is known but for some noise."""

    size: int = 1_000
    target: float = 1.0
    noise: float = 0.3
    seed: int = 1
    sizes: list[int] = field(default_factory=list)
    flats: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pace = Pace(self.size)
        self.random = random.Random(self.seed)

    def run(self, cost: Cost, batches: int = 60) -> "Simulation":
        for _ in range(batches):
            size = self.pace.size
            self.sizes.append(size)
            seconds = cost(size) * self.random.uniform(1 - self.noise, 1 + self.noise)
            self.pace = after(self.pace, rows=size, seconds=seconds, target=self.target)
            self.flats.append(self.pace.flat)
        return self

    def settled(self, batches: int = 20) -> float:
        return sum(self.sizes[-batches:]) / batches


def after(
    pace: Pace,
    *,
    rows: int,
    seconds: float,
    target: float = 1.0,
    floor: int = FLOOR,
    ceiling: int = CEILING,
) -> Pace:
    return pace.after(
        rows=rows, limit=pace.size, seconds=seconds, target=target, floor=floor, ceiling=ceiling
    )


seeds = pytest.mark.parametrize("seed", range(10))


@seeds
@pytest.mark.parametrize(
    ("start", "per_row", "wanted"),
    [
        (1_000, 0.0001, 10_000),
        (10, 0.0001, 10_000),
        (1_000, 0.01, 100),
        (50_000, 0.01, 100),
        (50_000, 0.0001, 10_000),
    ],
)
def test_the_size_settles_where_a_noisy_batch_takes_the_target(
    start: int, per_row: float, wanted: int, seed: int
) -> None:
    simulation = Simulation(size=start, seed=seed).run(steadily(per_row))

    assert simulation.settled() == pytest.approx(wanted, rel=0.25)
    assert not any(simulation.flats)


@seeds
def test_a_fixed_cost_beside_the_rows_is_allowed_for(seed: int) -> None:
    simulation = Simulation(seed=seed).run(steadily(0.0001, once=0.3))

    assert simulation.settled() == pytest.approx(7_000, rel=0.25)


@seeds
def test_another_target_gives_another_size(seed: int) -> None:
    simulation = Simulation(seed=seed, target=5.0).run(steadily(0.001))

    assert simulation.settled() == pytest.approx(5_000, rel=0.25)


def test_a_size_that_fits_is_left_alone() -> None:
    simulation = Simulation(noise=0.0).run(steadily(0.00095))

    assert set(simulation.sizes) == {1_000}


def test_growth_is_fast_at_first_and_then_at_most_a_fifth() -> None:
    simulation = Simulation(noise=0.0, size=FLOOR).run(steadily(0.0000001), batches=30)

    ratios = [after / before for before, after in pairwise(simulation.sizes)]
    assert ratios[:FAST_STEPS] == [4.0] * FAST_STEPS
    assert max(ratios[FAST_STEPS:]) <= GROWTH + 1 / 640


def test_the_ceiling_is_reached_and_held() -> None:
    simulation = Simulation(noise=0.0).run(steadily(0.0000001))

    assert simulation.sizes[-1] == CEILING
    assert max(simulation.sizes) == CEILING


def test_the_floor_is_reached_and_held() -> None:
    simulation = Simulation(noise=0.0).run(steadily(1.0))

    assert simulation.sizes[-1] == FLOOR
    assert min(simulation.sizes) == FLOOR


def test_the_smallest_sizes_can_grow() -> None:
    pace = Pace(1, history=((1, 0.5),) * FAST_STEPS)

    for _ in range(5):
        pace = after(pace, rows=pace.size, seconds=0.01 * pace.size, floor=1)

    assert pace.size > 4


@pytest.mark.parametrize("rows", [0, 1, 499])
def test_a_nearly_empty_batch_changes_nothing(rows: int) -> None:
    pace = Pace(1_000, history=((1_000, 4.0), (250, 4.0)), flat=True)

    assert after(pace, rows=rows, seconds=0.01) == pace


def test_a_nearly_empty_batch_over_the_target_does_count() -> None:
    pace = after(Pace(1_000), rows=3, seconds=4.0)

    assert pace.size == 500


@seeds
@pytest.mark.parametrize("start", [1_000, 20_000])
def test_cost_that_does_not_fall_with_the_size_is_noticed_and_not_chased(
    start: int, seed: int
) -> None:
    simulation = Simulation(size=start, seed=seed).run(lambda _size: 5.0, batches=500)

    assert simulation.flats[-1]
    assert simulation.settled(batches=400) >= start / 2
    assert min(simulation.sizes) > FLOOR


@seeds
def test_a_fixed_cost_over_the_target_is_not_chased_to_the_floor(seed: int) -> None:
    simulation = Simulation(size=20_000, seed=seed).run(steadily(0.001, once=3.0), batches=500)

    assert simulation.flats[-1]
    assert simulation.settled(batches=400) > 10 * FLOOR


@seeds
@pytest.mark.parametrize("start", [1_000, 20_000])
def test_cost_that_falls_later_is_followed(start: int, seed: int) -> None:
    """As when the missing index has been made."""
    simulation = Simulation(size=start, seed=seed).run(lambda _size: 5.0)
    assert simulation.flats[-1]

    simulation.run(steadily(0.0001))

    assert not simulation.flats[-1]
    assert simulation.settled() == pytest.approx(10_000, rel=0.25)


@seeds
def test_cost_that_rises_later_is_followed(seed: int) -> None:
    simulation = Simulation(seed=seed).run(steadily(0.0001))

    simulation.run(steadily(0.002))

    assert simulation.settled() == pytest.approx(500, rel=0.25)


def test_one_slow_batch_does_not_undo_what_was_learnt() -> None:
    simulation = Simulation(noise=0.0).run(steadily(0.0001))

    pace = after(simulation.pace, rows=simulation.pace.size, seconds=30.0)

    assert pace.size >= simulation.pace.size / 2
    assert not pace.flat


@pytest.mark.database
@pytest.mark.django_db
def test_a_run_whose_cost_is_flat_says_so_once_and_keeps_it_for_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = list(range(8))

    def needs(cls: type) -> bool:
        return bool(left)

    def do(cls: type, limit: int) -> int:
        left.pop()
        time.sleep(0.05)
        return limit

    hooks: dict[str, Any] = {"needs_insert": classmethod(needs), "do_insert": classmethod(do)}
    options = {**INSERT_ONLY, "batch_target": 0.001}
    with registry.preserved():
        view = ready(make_view(options=options, **hooks))
        first = only_run(run(view))
        left.append(1)
        second = only_run(run(view))

    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "is an index missing? view=sample.Made phase=insert size=" in warnings[0]
    assert first.pace["flat"]
    assert second.pace["flat"]
    assert (second.batch_size or 0) >= 250


batches = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1_000), st.booleans()), min_size=1, max_size=40
)
bounds = st.tuples(st.integers(1, 1_000), st.integers(0, 100_000)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


@given(batches=batches, bounds=bounds, target=st.floats(0.001, 100))
def test_whatever_the_batches_the_size_moves_within_its_bounds(
    batches: list[tuple[float, float, bool]], bounds: tuple[int, int], target: float
) -> None:
    floor, ceiling = bounds
    pace = Pace(floor)
    for share, seconds, full in batches:
        before = pace
        rows = pace.size if full else int(share * pace.size)

        pace = after(
            before, rows=rows, seconds=seconds, target=target, floor=floor, ceiling=ceiling
        )

        assert floor <= pace.size <= ceiling
        assert len(pace.history) <= HISTORY_LENGTH
        assert pace.size >= before.size // 2
        if not pace.flat and len(before.history) >= FAST_STEPS:
            assert pace.size <= max(before.size + 1, round(before.size * GROWTH))
        if seconds < target and 2 * rows < before.size:
            assert pace == before


@given(size=st.integers(1, 10**6), times=st.integers(0, 30), floor=st.integers(1, 10**4))
def test_halving_stops_at_the_floor(size: int, times: int, floor: int) -> None:
    smaller = halved(size, times, floor)

    assert min(size, floor) <= smaller <= size
    assert smaller == size >> times or smaller == min(size, floor)


@given(size=st.integers(1, 10**6), floor=st.integers(1, 10**4))
def test_halvings_counts_the_steps_to_the_floor(size: int, floor: int) -> None:
    times = halvings(size, floor)

    assert halved(size, times, floor) == min(size, floor)
    assert times == 0 or halved(size, times - 1, floor) > floor
