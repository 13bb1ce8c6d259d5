"""The size of the next batch, which measured times steer toward a target.

It follows GitLab's optimizer of batched background migrations: the efficiency (time over target) of
the last batches is smoothed, and a step grows by at most 1.2. Two cases would mislead it. A nearly
empty batch says nothing about cost, so it leaves the size alone. If smaller batches take as long,
shrinking does not help: the size at which that was measured is kept until batches cost less.
"""

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Pace", "halved", "halvings"]

HISTORY_LENGTH = 8  # batches that the size is computed from
SMOOTHING = 0.5  # weight of the newest batch in the smoothed efficiency
FAST_STEPS = 3  # batches at the start that may grow faster
FAST_GROWTH, GROWTH, SHRINK = 4.0, 1.2, 0.5
TOLERATED_ERROR = 0.1  # an efficiency this close to 1 leaves the size alone
# A smaller batch took about as long if its share of the time is between these.
FLAT_RANGE = 0.8, 1.6

History = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """The size of the next batch, and the measured batches that it was computed from."""

    #: Rows that the next batch may write.
    size: int
    #: `(size, seconds)` of the last full batches, oldest first.
    history: History = ()
    #: Whether smaller batches took as long: most likely an index is missing.
    flat: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any], size: int) -> "Pace":
        """The pace that `to_json` wrote, at `size`, which may have changed since."""
        history = tuple((rows, seconds) for rows, seconds in value.get("history", ()))
        return cls(size, history, value.get("flat", False))

    def to_json(self) -> dict[str, Any]:
        """The form that `PhaseRun.pace` stores."""
        return {"size": self.size, "history": self.history, "flat": self.flat}

    def after(
        self, *, rows: int, limit: int, seconds: float, target: float, floor: int, ceiling: int
    ) -> "Pace":
        """The pace after a batch of `rows` out of `limit` rows that took `seconds`."""
        if 2 * rows < limit and seconds < target:
            return replace(self, size=limit)
        history = self._history_with(limit, seconds)
        step = _step(history, target)
        # At least one row more, because rounding would never let a small size grow.
        new_size = max(limit + 1, round(limit * step)) if step > 1 else round(limit * step)
        flat = self.flat and step < 1
        if step < 1 and (flat_size := _size_where_cost_is_flat(history)):
            new_size, flat = max(limit, flat_size), True
        return Pace(max(floor, min(ceiling, new_size)), history, flat)

    def _history_with(self, size: int, seconds: float) -> History:
        """The last batches and a new one; while cost is flat, also the small one that proved it."""
        batches = (*self.history, (size, seconds))
        last = batches[-HISTORY_LENGTH:]
        return (min(batches), *last[1:]) if self.flat and min(batches) not in last else last


def halved(size: int, times: int, floor: int) -> int:
    """`size`, halved `times` times but not below `floor`; a size below `floor` stays."""
    return max(min(size, floor), size >> times)


def _step(history: History, target: float) -> float:
    efficiency = _smoothed(history, target)
    if abs(efficiency - 1) <= TOLERATED_ERROR:
        return 1.0
    growth = FAST_GROWTH if len(history) <= FAST_STEPS else GROWTH
    return max(SHRINK, min(growth, 1 / max(efficiency, 1e-6)))


def _smoothed(history: History, target: float) -> float:
    """The efficiency of the newest size at the smoothed cost per row of the last batches."""
    size = history[-1][0]
    cost = history[0][1] / history[0][0]
    for rows, seconds in history[1:]:
        cost += SMOOTHING * (seconds / rows - cost)
    return cost * size / target


def _size_where_cost_is_flat(history: History) -> int:
    """The largest size for which a batch of at most a quarter took about as long; 0 if none.

    A quarter, because noise alone can make a batch of half the size take as long.
    """
    low, high = FLAT_RANGE
    return max(
        (
            size
            for size, seconds in history
            for smaller_size, smaller_seconds in history
            if 4 * smaller_size <= size and low * seconds < smaller_seconds < high * seconds
        ),
        default=0,
    )


def halvings(size: int, floor: int) -> int:
    """How often `size` can be halved before it reaches the floor."""
    times = 0
    while size > floor:
        size, times = size // 2, times + 1
    return times
