"""Keys of a view as Python has them, as JSON can hold them, and as a statement takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections

from .fields import AnyField, value_field

__all__ = [
    "Key",
    "Keys",
    "Range",
    "Within",
    "as_key",
    "from_json",
    "prepared",
    "prepared_within",
    "to_json",
]

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


def as_key(fields: Sequence[AnyField], value: Any) -> Key:
    """A key that somebody gives, as the fields have it: a value, or a tuple of several fields' values.

    Raises:
        ValueError: it is none.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    names = ", ".join(field.name for field in fields)
    if None in values or len(values) != len(fields):
        raise ValueError(f"{value!r} is not {names}.")
    try:
        return from_json(fields, to_json(fields, from_json(fields, values)))
    except (ValidationError, TypeError, ValueError) as error:
        raise ValueError(f"{value!r} is not {names}.") from error


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
