"""Keys of a view as Python has them, as JSON can hold them, and as a statement takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from django.db import connections

from .fields import AnyField, value_field

__all__ = ["Key", "Keys", "Range", "Within", "from_json", "prepared", "prepared_within", "to_json"]

Key = tuple[Any, ...]
Range = tuple[Key | None, Key | None]


@dataclass(frozen=True, slots=True)
class Keys:
    """Some keys, instead of a range of them."""

    keys: tuple[Key, ...]


Within = Range | Keys


def to_json(fields: Sequence[AnyField], key: Sequence[Any]) -> list[str]:
    """A key as strings, as Django's serializers write them."""
    return [
        field.value_to_string(SimpleNamespace(**{field.attname: value}))  # type: ignore[arg-type]
        for field, value in zip(fields, key, strict=True)
    ]


def from_json(fields: Sequence[AnyField], key: Sequence[str]) -> tuple[Any, ...]:
    """A key from its strings."""
    return tuple(
        value_field(field).to_python(value) for field, value in zip(fields, key, strict=True)
    )


def prepared(
    fields: Sequence[AnyField], key: Sequence[Any] | None, using: str
) -> tuple[Any, ...] | None:
    """A key as parameters of a statement; None, an open end, stays None."""
    if key is None:
        return None
    connection: Any = connections[using]
    return tuple(
        field.get_db_prep_value(value, connection) for field, value in zip(fields, key, strict=True)
    )


def prepared_within(fields: Sequence[AnyField], within: Within, using: str) -> Within:
    """A range or keys as parameters of a statement."""
    if isinstance(within, Keys):
        keys = (prepared(fields, key, using) for key in within.keys)
        return Keys(tuple(key for key in keys if key is not None))
    low, high = (prepared(fields, key, using) for key in within)
    return low, high
