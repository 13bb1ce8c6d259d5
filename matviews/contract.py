"""What a view's class is recognized by, and the values that its hooks are given and give back."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Batch", "Shard", "ViewMarker"]


class ViewMarker:
    """What `MaterializedView` inherits from, so that a view is known without importing the mixin."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of the view's keys that a hook declaring `shard` is to work on.

    With `count` 4, the shard of a key may be `key % 4 == number`: any rule that gives each key to
    exactly one number will do.
    """

    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a hook that declares `cursor` returns.

    Attributes:
        rows: rows written by this batch.
        cursor: where the next batch goes on, any JSON value; None when the phase is done.
    """

    rows: int
    cursor: Any = None
