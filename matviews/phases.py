"""The three phases of a refresh, and the names that belong to each."""

from django.db.models import TextChoices

__all__ = ["Phase"]


class Phase(TextChoices):
    """The three kinds of work that bring a view up to date, in the order in which they run."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"

    @property
    def needs_hook(self) -> str:
        """Name of the hook that says whether this phase has work."""
        return f"needs_{self.value}"

    @property
    def do_hook(self) -> str:
        """Name of the hook that does one batch of this phase."""
        return f"do_{self.value}"

    @property
    def success_field(self) -> str:
        """Name of the `ViewControl` field with the time of this phase's last success."""
        return f"last_{self.value}"

    @property
    def as_of_field(self) -> str:
        """Name of the `ViewControl` field with the time that this phase's rows are as of."""
        return f"{self.value}_as_of"

    @property
    def order(self) -> int:
        """Position of this phase within a refresh, from 0."""
        return _ORDER[self]


_ORDER = {phase: number for number, phase in enumerate(Phase)}
