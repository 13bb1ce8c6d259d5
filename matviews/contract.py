"""What identifies a view's class, and the values that hooks take and return."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Batch", "Shard", "ViewMarker"]


class ViewMarker:
    """Base of `MaterializedView`: identifies views without importing the mixin."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the view's keys that a hook processes if it declares `shard`.

    With `count` 4, a hook may take the keys for which `key % 4 == number`. Any rule will do, as
    long as it assigns every key to exactly one number.
    """

    #: Which of the shards this is, from 0.
    number: int
    #: How many shards the view has.
    count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a hook that declares `cursor` returns."""

    #: How many rows this batch wrote.
    rows: int
    #: Where the next batch continues, any JSON value; None if the phase is done.
    cursor: Any = None
