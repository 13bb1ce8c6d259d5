"""Values of a batch: a part of its dirty keys, and its attempt to run a statement."""

from dataclasses import dataclass

from ...databases.keys import Key

__all__ = ["AttemptedBatch", "DirtyPart"]


@dataclass(kw_only=True, eq=False)
class DirtyPart:
    """A part of a drain's dirty keys: a row of `DirtyKeys`, or a row that is yet to be inserted."""

    drain_number: int
    #: How many keys the part has.
    count: int
    #: The keys; None if they are not loaded.
    keys: list[Key] | None = None
    #: The primary key of the row; None before it is inserted.
    pk: int | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptedBatch:
    """The batch of a derived phase that is running; after an error, the one that failed."""

    #: How many phases its statement runs: an error of several does not show which one failed.
    phases: int
    #: How many dirty keys it has; 0 in a full refresh.
    dirty_keys: int = 0
    #: Seconds that a statement may take.
    seconds: float = 0.0
