"""What the triggers of a table log."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BatchWrites", "TriggerSpec", "is_covered"]


def is_covered(columns: frozenset[str] | None, logged: frozenset[str] | None) -> bool:
    """Whether the changes of columns are among those of `logged`; None is all columns."""
    return logged is None or (columns is not None and columns <= logged)


class BatchWrites(StrEnum):
    """What triggers do when the table is that of a view, and a batch of that view writes to it."""

    #: They log it like any other change.
    LOGGED = "logged"
    #: They log it, and say in the entry that it concerns other views only.
    MARKED = "marked"
    #: They do not log it.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """What the triggers of one table log."""

    #: Those whose changes are logged; None for any. Rows added or removed are always logged.
    columns: frozenset[str] | None = None
    #: Those whose values before and after a change are logged; none if every change causes a full
    #: refresh.
    links: frozenset[str] = frozenset()
    #: Those of which an entry says whether an UPDATE changed them; none if that makes no
    #: difference, because the views that read the table read the same columns.
    recorded: frozenset[str] = frozenset()
    #: What becomes of the writes of batches.
    batches: BatchWrites = BatchWrites.LOGGED

    @property
    def compared(self) -> frozenset[str]:
        """The columns whose values before and after an UPDATE are compared."""
        return self.recorded | (self.columns or frozenset())

    def covers(self, other: "TriggerSpec") -> bool:
        """Whether what is logged suffices for `other`."""
        logged = is_covered(other.columns, self.columns) and other.links <= self.links
        return logged and self.batches in (other.batches, BatchWrites.MARKED)
