"""How large the next batch is: its measured time steers it toward a target.

After GitLab's optimizer of batched background migrations: the efficiency (time over target) of the
last batches is smoothed, and a step grows by at most 1.2. Two cases say nothing about cost, or the
wrong thing: a nearly empty batch, and a batch whose cost does not fall with its size. The size at
which the latter was seen is kept, until batches cost less.
"""

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Pace", "halved", "halvings"]

HISTORY_LENGTH = 8  # batches
SMOOTHING = 0.5  # weight of the newest batch in the smoothed efficiency
FAST_STEPS = 3  # first batches of a view, which may grow faster
FAST_GROWTH, GROWTH, SHRINK = 4.0, 1.2, 0.5
TOLERATED_ERROR = 0.1  # efficiencies this near to 1 leave the size alone
FLAT_RANGE = 0.8, 1.6  # shares of a batch's time between which a smaller one's is about as long

History = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """The size of the next batch, and the batches that it was learnt from."""

    #: Rows that the next batch may write.
    size: int
    #: `(size, seconds)` of the last full batches, oldest first.
    history: History = ()
    #: Whether the cost did not fall with the size: most likely an index is missing.
    flat: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any], size: int) -> "Pace":
        """The pace that `to_json` has written, at a size that may have changed since."""
        history = tuple((rows, seconds) for rows, seconds in value.get("history", ()))
        return cls(size, history, value.get("flat", False))

    def to_json(self) -> dict[str, Any]:
        """As `PhaseRun.pace` holds it."""
        return {"size": self.size, "history": self.history, "flat": self.flat}

    def after(
        self, *, rows: int, limit: int, seconds: float, target: float, floor: int, ceiling: int
    ) -> "Pace":
        """The pace after a batch of `rows` out of `limit` rows that took `seconds`."""
        if 2 * rows < limit and seconds < target:
            return replace(self, size=limit)
        history = self._remember(limit, seconds)
        step = _step(history, target)
        # At least one row more, or small sizes would be rounded back to themselves.
        wanted = max(limit + 1, round(limit * step)) if step > 1 else round(limit * step)
        flat = self.flat and step < 1
        if step < 1 and (size := _size_where_cost_is_flat(history)):
            wanted, flat = max(limit, size), True
        return Pace(max(floor, min(ceiling, wanted)), history, flat)

    def _remember(self, size: int, seconds: float) -> History:
        """The last batches; while the cost is flat, also the small one that has shown it."""
        batches = (*self.history, (size, seconds))
        last = batches[-HISTORY_LENGTH:]
        return (min(batches), *last[1:]) if self.flat and min(batches) not in last else last


def halved(size: int, times: int, floor: int) -> int:
    """`size` halved `times` times, not below `floor` unless it was below already."""
    return max(min(size, floor), size >> times)


def _step(history: History, target: float) -> float:
    efficiency = _smoothed(history, target)
    if abs(efficiency - 1) <= TOLERATED_ERROR:
        return 1.0
    growth = FAST_GROWTH if len(history) <= FAST_STEPS else GROWTH
    return max(SHRINK, min(growth, 1 / max(efficiency, 1e-6)))


def _smoothed(history: History, target: float) -> float:
    """Efficiency that the newest size would have, by the cost per row of the last batches."""
    size = history[-1][0]
    cost = history[0][1] / history[0][0]
    for rows, seconds in history[1:]:
        cost += SMOOTHING * (seconds / rows - cost)
    return cost * size / target


def _size_where_cost_is_flat(history: History) -> int:
    """The largest size of which a quarter or less took about as long, 0 if there is none.

    A quarter, because noise alone can make a batch of half the size take as long.
    """
    low, high = FLAT_RANGE
    return max(
        (
            size
            for size, seconds in history
            for less, taken in history
            if 4 * less <= size and low * seconds < taken < high * seconds
        ),
        default=0,
    )


def halvings(size: int, floor: int) -> int:
    """How often `size` can be halved before it is at the floor."""
    times = 0
    while size > floor:
        size, times = size // 2, times + 1
    return times
