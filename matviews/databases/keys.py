"""Keys of a view, in the database and in JSON.

A part of a key is *exact*: a text or an integer that the database turns back into the very same
value. The database makes it (`Dialect.exact`), orders it and compares it; Python never interprets
it or passes it through a field. Keys that triggers log or callers pass are converted to the same
form (`Dialect.as_exact`). If two texts stand for the same key of the database, it is processed
twice, which is harmless; where a key must be recognized, the database compares (`equal_keys`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Key",
    "KeyRows",
    "KeySelection",
    "Keys",
    "Range",
    "RangeWithout",
    "from_json",
    "in_order",
    "shown",
    "to_json",
]

Key = tuple[Any, ...]
Range = tuple[Key | None, Key | None]


@dataclass(frozen=True, slots=True)
class Keys:
    """Some keys, or values of one part of them, instead of a range of keys."""

    keys: tuple[Key, ...]
    #: The kinds of their parts, as `Dialect.kind_of` returns them; of a single part, it may be
    #: left out.
    kinds: tuple[str, ...] = ()
    #: Which part of the view's key the first of theirs is.
    first_part: int = 0

    def __post_init__(self) -> None:
        assert self.kinds or len(self.keys[:1]) == 0 or len(self.keys[0]) == 1

    def part(self, number: int) -> "Keys":
        """The values of one part, each once."""
        values = dict.fromkeys(key[number : number + 1] for key in self.keys)
        return Keys(tuple(values), self.kinds[number : number + 1], number)


@dataclass(frozen=True, slots=True)
class KeyRows(Keys):
    """Keys that the statement finds itself, in one of its parts."""

    #: The name of the part.
    table: str = ""
    #: Its columns, which have the types of the key's.
    names: tuple[str, ...] = ()

    def part(self, number: int) -> "KeyRows":
        return KeyRows((), table=self.table, names=self.names[number : number + 1])


@dataclass(frozen=True, slots=True)
class RangeWithout:
    """A range of keys, without some of them."""

    within: Range
    without: Keys


#: Which keys a statement is about.
KeySelection = Range | RangeWithout | Keys


def in_order(keys: Iterable[Key]) -> list[Key]:
    """Keys in the order of their exact values, which of numbers and dates is that of the database.

    Neighbours are close to each other in tables and indexes. SQLite may store parts of two types.
    """
    return sorted(keys, key=lambda key: [(type(part).__name__, part) for part in key])


def to_json(key: Iterable[Any]) -> list[Any]:
    """A key as JSON holds it. SQLite may store a part as another type."""
    return [_TO_JSON[type(part)](part) if type(part) in _TO_JSON else part for part in key]


def from_json(key: Iterable[Any]) -> Key:
    """The key that `to_json` was given."""
    return tuple(_from_json(part) for part in key)


_TO_JSON: dict[type, Any] = {
    bytes: lambda part: {"blob": part.hex()},
    float: lambda part: {"real": part.hex()},
}


def _from_json(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return bytes.fromhex(part["blob"]) if "blob" in part else float.fromhex(part["real"])


def shown(key: Iterable[Any]) -> str:
    """A key for a person to read."""
    return ", ".join(map(str, key))
