"""What the triggers of a table log."""

from dataclasses import dataclass

__all__ = ["TriggerSpec"]


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """What the triggers of one table log."""

    #: Those whose changes are logged; None for any. Rows added or removed are always logged.
    columns: frozenset[str] | None = None
    #: Those whose values before and after a change are logged; none if every change causes a full
    #: refresh.
    links: frozenset[str] = frozenset()

    def covers(self, other: "TriggerSpec") -> bool:
        """Whether what is logged suffices for `other`."""
        changes = self.columns is None or (
            other.columns is not None and other.columns <= self.columns
        )
        return changes and other.links <= self.links
