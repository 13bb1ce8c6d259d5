"""Keys of a view: as the database has them, and as JSON can hold them.

A part of a key is *exact*: a text, or a whole number, from which the database's own input of the column's type
gives back the very value. The database makes it (`Dialect.exact`), orders and compares it; to Python it is
opaque, and never goes through a field. What a trigger logs, or a caller gives, is brought into the same form
(`Dialect.as_exact`). Two texts may stand for what the database takes for one key: then it is looked at twice,
which is right.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Key", "KeySelection", "Keys", "Range", "from_json", "shown", "to_json"]

Key = tuple[Any, ...]
Range = tuple[Key | None, Key | None]


@dataclass(frozen=True, slots=True)
class Keys:
    """Some keys, instead of a range of them."""

    keys: tuple[Key, ...]


KeySelection = Range | Keys


def to_json(key: Iterable[Any]) -> list[Any]:
    """A key as JSON holds it. SQLite keeps what it is given: there a part may be of another type."""
    return [_TO_JSON[type(part)](part) if type(part) in _TO_JSON else part for part in key]


def from_json(key: Iterable[Any]) -> Key:
    """A key as `to_json` has made it."""
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
    """A key for a person."""
    return ", ".join(map(str, key))
