"""What the triggers of a table log."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FOREIGN", "TriggerSpec", "ValueLog", "is_covered"]

#: Stands for the columns of a read-only view's own table, as far as anything but a batch of that
#: view has changed them.
FOREIGN = "matviews_foreign"


class ValueLog(NamedTuple):
    """A table that gets the values of each changed row, for one additive view.

    An entry has a weight: 1 of a row that has come, -1 of one that has gone. Without a weight, an
    entry says that changes are missing here.
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
    #: The columns that `FOREIGN` stands for; none if the table is not that of a read-only view.
    guarded: frozenset[str] = frozenset()

    @property
    def watched(self) -> frozenset[str] | None:
        """The columns of the table whose changes are logged; None for any."""
        return None if self.columns is None else self._expanded(self.columns)

    @property
    def compared(self) -> frozenset[str]:
        """The columns whose values before and after an UPDATE are compared."""
        return self._expanded(self.recorded | (self.columns or frozenset()))

    @property
    def recorded_one_by_one(self) -> frozenset[str]:
        """The columns of the table of which an UPDATE is asked whether it changed them."""
        return self._expanded(self.recorded)

    @property
    def named(self) -> frozenset[str]:
        """The columns of the table whose names an entry has if they changed."""
        return self.recorded - {FOREIGN}

    @property
    def skips_batches(self) -> bool:
        """Whether nobody but the read-only view whose table it is needs the log."""
        return bool(self.guarded) and not self.recorded

    @property
    def marks_batches(self) -> bool:
        """Whether others need the log too, so that entries of batches are told from others."""
        return bool(self.guarded and self.recorded)

    def _expanded(self, columns: frozenset[str]) -> frozenset[str]:
        return columns - {FOREIGN} | self.guarded if FOREIGN in columns else columns

    def covers(self, other: "TriggerSpec") -> bool:
        """Whether what is logged suffices for `other`, which can do without a value log."""
        return is_covered(other.columns, self.columns) and other.links <= self.links

    @property
    def valued(self) -> frozenset[str]:
        """The columns whose values go to a value log."""
        return frozenset(name for log in self.value_logs for name in log.columns)
