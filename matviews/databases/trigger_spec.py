"""What the triggers of a table log."""

from dataclasses import dataclass

__all__ = ["TriggerSpec"]


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """What the triggers of one table log."""

    #: Those of which a change counts; None for any. Rows that come or go always count.
    columns: frozenset[str] | None = None
    #: Those of which the values before and after a change are logged; none if a change leads to no
    #: key in particular, but concerns the whole view.
    links: frozenset[str] = frozenset()

    def covers(self, other: "TriggerSpec") -> bool:
        """Whether what is logged suffices for `other`."""
        changes = self.columns is None or (
            other.columns is not None and other.columns <= self.columns
        )
        return changes and other.links <= self.links
