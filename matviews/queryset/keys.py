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
    "all_from_json",
    "as_key",
    "from_json",
    "prepared",
    "prepared_keys",
    "prepared_within",
    "to_json",
]

Key = tuple[Any, ...]
Range = tuple[Key | None, Key | None]


@dataclass(frozen=True, slots=True)
class Keys:
    """Some keys, instead of a range of them.

    Attributes:
        keys: the keys.
        prepared: whether they are parameters of a statement already.
    """

    keys: tuple[Key, ...]
    prepared: bool = False


Within = Range | Keys


def to_json(fields: Sequence[AnyField], key: Sequence[Any]) -> list[str]:
    """A key as strings, as Django's serializers write them."""
    return [
        field.value_to_string(SimpleNamespace(**{field.attname: value}))  # type: ignore[arg-type]
        for field, value in zip(fields, key, strict=True)
    ]


def from_json(fields: Sequence[AnyField], key: Sequence[str]) -> Key:
    """A key from its strings."""
    return all_from_json(fields, [key])[0]


def all_from_json(fields: Sequence[AnyField], keys: Sequence[Sequence[Any]]) -> list[Key]:
    """Keys from their strings, or from what else JSON has for them."""
    columns = []
    for place, field in enumerate(fields):
        to_python = value_field(field).to_python
        columns.append([to_python(key[place]) for key in keys])
    return list(zip(*columns, strict=True))


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
    return None if key is None else _prepared(fields, [key], using)[0]


def _prepared(
    fields: Sequence[AnyField], keys: Sequence[Sequence[Any]], using: str
) -> list[tuple[Any, ...]]:
    connection: Any = connections[using]
    columns = []
    for place, field in enumerate(fields):
        prepare = value_field(field).get_db_prep_value
        columns.append([prepare(key[place], connection) for key in keys])
    return list(zip(*columns, strict=True))


def prepared_keys(fields: Sequence[AnyField], keys: Sequence[Key], using: str) -> Keys:
    """Keys as parameters of a statement."""
    return Keys(tuple(_prepared(fields, keys, using)), prepared=True)


def prepared_within(fields: Sequence[AnyField], within: Within, using: str) -> Within:
    """A range or keys as parameters of a statement."""
    if isinstance(within, Keys):
        return within if within.prepared else prepared_keys(fields, within.keys, using)
    low, high = (prepared(fields, key, using) for key in within)
    return low, high
