"""What the triggers of a table log."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["TriggerSpec", "ValueLog", "is_covered"]


class ValueLog(NamedTuple):
    """A table that gets the values of each changed row, for one additive view.

    The weight of an entry is 1 if a row was inserted, -1 if it was deleted, 0 if it may have been
    deleted. An entry without a weight says that changes are missing from the log.
    """

    #: The table's name.
    name: str
    #: The columns whose values it gets, under the same names.
    columns: tuple[str, ...]


def is_covered(columns: frozenset[str] | None, logged: frozenset[str] | None) -> bool:
    """Whether the changes of columns are among those of `logged`; None is all columns."""
    return logged is None or (columns is not None and columns <= logged)


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
    #: The value logs that also get each change.
    value_logs: frozenset[ValueLog] = frozenset()

    @property
    def compared(self) -> frozenset[str]:
        """The columns whose values before and after an UPDATE are compared."""
        return self.recorded | (self.columns or frozenset())

    def covers(self, other: "TriggerSpec") -> bool:
        """Whether what is logged suffices for `other`, except perhaps for a value log."""
        return is_covered(other.columns, self.columns) and other.links <= self.links

    @property
    def valued(self) -> frozenset[str]:
        """The columns whose values go to a value log."""
        return frozenset(name for log in self.value_logs for name in log.columns)
