"""What the last refreshes of a view took, by keys and in full, and which is cheaper.

The cost of a refresh by keys depends on the source rows of the dirty groups, or on the search for
them, not on the number of keys: five dirty keys may be the whole table. Only earlier refreshes show
that.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ...contract import Shard
from ...definition import ViewDefinition
from ...json_fields import Cost
from ...models import PhaseRun, ViewShard
from ...states import RefreshStrategy
from .shard_work import Work

__all__ = [
    "MAX_KEYS",
    "KnownCosts",
    "expected_seconds",
    "is_expensive",
    "is_full_cheaper",
    "keys_budget",
    "known_costs",
    "max_worthwhile_keys",
    "record_cost",
    "record_full_timeout",
    "record_timeout",
]

# Refreshes by keys are compared with those of about as many keys: of 1 to 3, of 4 to 15, ...
SIZE_FACTOR = 4
# Seconds: a refresh by keys that takes no longer is never replaced by a full one.
CHEAP_SECONDS = 0.05
# Up to this many keys are tried even if no refresh of that size was measured. Beyond it, each key
# is expected to cost as much as in the largest refresh that was.
TRIED_KEYS = 1_000
# The order of magnitude, 256 keys, from which on a measurement says what each key costs. Of fewer,
# most is what any refresh costs: that of one key said that 10,000 take 300 s, when 0.3 s was right.
TELLING_SIZE = 4
# Keys of one refresh, which are read into memory.
MAX_KEYS = 1_000_000
# A batch by keys may take this much of a full refresh: if all groups are dirty, both read the whole
# source, and without a margin the keys would often be cut off just before their end.
BUDGET_FACTOR = 1.2
# Below, bookkeeping could exceed the limit.
MIN_BUDGET_SECONDS = 0.2
# A batch that should take less of its budget gets no time limit of its own.
SAFE_FRACTION = 0.25
# A temporary table is filled once for all phases of keys that take longer.
TEMPORARY_TABLE_SECONDS = 0.02
# The factor by which each full refresh lowers the remembered cost of keys, so that they are tried
# again after a while: they may have waited for a lock, or the data has changed.
RECOVERY = 0.9


def record_cost(work: Work, run: PhaseRun) -> None:
    """Learn from a run that succeeded; `save_changes` writes it."""
    cost = work.shard.costs.get(run.phase, Cost())
    if run.dirty_after is None:
        keys = {size: round(RECOVERY * seconds, 4) for size, seconds in cost.keys.items()}
        _set(work, run, Cost(round(run.seconds, 4), keys))
    elif run.keys_scanned:
        size = _size(run.keys_scanned)
        before = cost.keys.get(size, run.seconds)
        _set(work, run, _with_keys(cost, size, (before + run.seconds) / 2))


def record_full_timeout(work: Work, run: PhaseRun, seconds: float) -> None:
    """Save that a full refresh takes longer than `seconds`, whatever the last one took."""
    cost = work.shard.costs.get(run.phase, Cost())
    _set(work, run, Cost(max(cost.full or 0.0, 2 * seconds), cost.keys))
    ViewShard.objects.filter(pk=work.shard.pk).update(costs=work.shard.costs)


def record_timeout(work: Work, run: PhaseRun, seconds: float, keys: int) -> None:
    """Learn from a batch of dirty keys that took longer than `seconds`."""
    cost = work.shard.costs.get(run.phase, Cost())
    _set(work, run, _with_keys(cost, _size(keys), 2 * seconds))


class KnownCosts(NamedTuple):
    """What is known of the costs of a view's refreshes, all phases together."""

    #: The strategy that the view is pinned to.
    pinned: RefreshStrategy | None
    #: Seconds of the last full refresh; None if a phase had none.
    full: float | None
    #: Seconds of refreshes by keys, by the smallest and largest number of their keys.
    by_keys: dict[tuple[int, int], float]
    #: The number of dirty keys beyond which a refresh is full; None if it is unknown.
    max_keys: int | None


def known_costs(definition: ViewDefinition) -> KnownCosts | None:
    """The costs of a view's refreshes, None if it is not registered in the database yet."""
    shards = ViewShard.objects.filter(view__label=definition.label, number=0)
    if not (shard := shards.select_related("view").first()):
        return None
    work = Work(shard=shard, hook_shard=Shard(0, 1), definition=definition, refreshes=[])
    return KnownCosts(
        pinned=shard.view.pinned_strategy,
        full=_full_seconds(work),
        by_keys={
            (SIZE_FACTOR**size, SIZE_FACTOR ** (size + 1) - 1): round(seconds, 4)
            for size, seconds in sorted(_seconds_by_size(work).items())
        },
        max_keys=max_worthwhile_keys(work),
    )


def expected_seconds(work: Work, phases: Iterable[str], keys: int | None) -> dict[str, float]:
    """What phases should take for a number of dirty keys, and in full, by strategy if known."""
    costs = [work.shard.costs.get(phase, Cost()) for phase in phases]
    seconds = {
        RefreshStrategy.BY_KEYS: [keys and _by_keys(cost.keys, keys) for cost in costs],
        RefreshStrategy.FULL: [cost.full for cost in costs],
    }
    return {
        strategy.value: round(sum(filter(None, each)), 4)
        for strategy, each in seconds.items()
        if None not in each
    }


def _by_keys(by_size: dict[int, float], keys: int) -> float | None:
    """What a number of keys should take, by the measurement of that size or the next larger one.

    If all measured sizes are smaller, each key costs as much as in the largest of them.
    """
    if not by_size:
        return None
    largest = max(by_size)
    if _size(keys) > largest:
        return by_size[largest] / int(SIZE_FACTOR**largest) * keys
    return by_size[min(size for size in by_size if size >= _size(keys))]


def is_expensive(work: Work, keys: int) -> bool:
    """Whether a number of keys should take longer than a temporary table costs.

    Until the cost of keys is known, the cost of a full refresh stands in for it.
    """
    assert work.definition is not None
    expected = expected_seconds(work, work.definition.derived, keys)
    full = expected.get(RefreshStrategy.FULL, 0.0)
    return expected.get(RefreshStrategy.BY_KEYS, full) > TEMPORARY_TABLE_SECONDS


def max_worthwhile_keys(work: Work) -> int | None:
    """The number of dirty keys beyond which a full refresh is cheaper; None if it is unknown.

    A view that is pinned to a strategy keeps to it.
    """
    if pinned := work.shard.view.pinned_strategy:
        return MAX_KEYS if pinned is RefreshStrategy.BY_KEYS else 0
    full, by_size = _full_seconds(work), _seconds_by_size(work)
    if full is None or not by_size:
        return None
    threshold = max(full, CHEAP_SECONDS)
    if too_slow := [size for size, seconds in by_size.items() if seconds > threshold]:
        return int(SIZE_FACTOR ** min(too_slow)) - 1
    largest = max(by_size)
    if largest < TELLING_SIZE:
        return None
    per_key = max(by_size[largest], 1e-6) / SIZE_FACTOR**largest
    return min(MAX_KEYS, max(TRIED_KEYS, int(threshold / per_key)))


def keys_budget(work: Work, keys: int) -> float | None:
    """Seconds after which a batch of dirty keys is to become a full refresh.

    None if it will not take long, if it is unknown what a full refresh takes, or if the view is
    pinned to refreshes by keys.
    """
    full = _full_seconds(work)
    if full is None or work.shard.view.pinned_strategy:
        return None
    budget = max(BUDGET_FACTOR * full, MIN_BUDGET_SECONDS)
    known = _seconds_by_size(work).get(_size(keys))
    return None if known is not None and known < SAFE_FRACTION * budget else budget


def is_full_cheaper(work: Work, seconds: float) -> bool:
    """Whether a full refresh takes less than twice the time in which dirty keys did not finish."""
    full = None if work.shard.view.pinned_strategy else _full_seconds(work)
    return full is not None and full <= 2 * seconds


def _size(keys: int) -> int:
    """The order of magnitude of a number of keys."""
    size = 0
    while keys >= SIZE_FACTOR:
        keys, size = keys // SIZE_FACTOR, size + 1
    return size


def _with_keys(cost: Cost, size: int, seconds: float) -> Cost:
    return Cost(cost.full, {**cost.keys, size: round(seconds, 4)})


def _set(work: Work, run: PhaseRun, cost: Cost) -> None:
    work.shard.costs = {**work.shard.costs, run.phase: cost}
    work.shard_changed = True


def _full_seconds(work: Work) -> float | None:
    """What the last full refresh of all phases took."""
    assert work.definition is not None
    costs = [work.shard.costs.get(phase, Cost()) for phase in work.definition.derived]
    known = [cost.full for cost in costs if cost.full is not None]
    return sum(known) if len(known) == len(costs) else None


def _seconds_by_size(work: Work) -> dict[int, float]:
    """What refreshes by keys took in all phases, by the order of magnitude of their keys."""
    assert work.definition is not None
    found: dict[int, float] = {}
    for phase in work.definition.derived:
        for size, seconds in work.shard.costs.get(phase, Cost()).keys.items():
            found[size] = found.get(size, 0.0) + seconds
    return found
