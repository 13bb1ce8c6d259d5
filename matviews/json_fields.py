"""JSON columns that are read as named tuples."""

from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import JSONField

from .waits import Wait

__all__ = [
    "UNTRACKED",
    "Checkpoint",
    "CheckpointField",
    "CheckpointsField",
    "Cost",
    "CostsField",
    "Drain",
    "DrainsField",
    "WaitField",
]


class Checkpoint(NamedTuple):
    """How far the rows of a phase reflect the changes that were drained from the view's queue."""

    #: The last drain that they reflect; -1 where changes were not tracked.
    drain_number: int
    #: The exact fingerprint of the `source()` that they were computed from; None if not all had
    #: the same.
    fingerprint: str | None


#: Of a phase whose changes are not tracked.
UNTRACKED = Checkpoint(-1, None)


class Drain(NamedTuple):
    """A drain of the view's queue that some phase has yet to process."""

    number: int
    #: When the oldest change in it was logged.
    logged_at: datetime


class Cost(NamedTuple):
    """What the refreshes of a phase took."""

    #: Seconds of the last full refresh; None if there was none.
    full: float | None = None
    #: Seconds of the last refreshes by keys, smoothed, by the order of magnitude of their keys.
    keys: dict[int, float] = {}  # never changed in place


class _TypedField(JSONField):
    """A JSON column with typed values. Migrations record it as the plain JSONField that it is."""

    def typed(self, value: Any) -> Any:
        """Convert a value of the column from its JSON form."""
        raise NotImplementedError

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return self.to_python(super().from_db_value(value, expression, connection))

    def to_python(self, value: Any) -> Any:
        return None if value is None else self.typed(value)

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.JSONField", args, kwargs


class CheckpointField(_TypedField):
    """A `Checkpoint`, or NULL."""

    def typed(self, value: Any) -> Checkpoint:
        return Checkpoint(*value)


class CheckpointsField(_TypedField):
    """A `Checkpoint` for each phase that has succeeded."""

    def typed(self, value: Any) -> dict[str, Checkpoint]:
        return {phase: Checkpoint(*checkpoint) for phase, checkpoint in value.items()}


class CostsField(_TypedField):
    """A `Cost` for each phase that has succeeded."""

    def typed(self, value: Any) -> dict[str, Cost]:
        return {
            phase: Cost(full, {int(size): seconds for size, seconds in keys.items()})
            for phase, (full, keys) in value.items()
        }


class DrainsField(_TypedField):
    """The drains that some phase has yet to process, ordered by number."""

    def typed(self, value: Any) -> list[Drain]:
        return [Drain(number, _time(logged_at)) for number, logged_at in value]

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return super().get_db_prep_value(_plain(value), connection, prepared)

    def value_to_string(self, obj: Any) -> Any:
        return _plain(self.value_from_object(obj))


class WaitField(_TypedField):
    """A `Wait`, or NULL."""

    def typed(self, value: Any) -> Wait:
        return Wait(*value)


def _time(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _plain(drains: Any) -> Any:
    if not isinstance(drains, list):  # an expression, in a query
        return drains
    return [[number, logged_at.isoformat()] for number, logged_at in drains]
