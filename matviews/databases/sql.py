"""Fragments of SQL with their parameters."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["SQL", "Array", "equal", "joined", "qualified"]


class SQL(NamedTuple):
    """SQL with `%s` for each of its parameters."""

    text: str
    params: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text)


class Array(str):
    """The values of one part of several keys as one parameter, in the database's text form."""

    __slots__ = ("part",)

    #: Which part of the view's key.
    part: int


def joined(separator: str, parts: Iterable[SQL]) -> SQL:
    """The fragments that are not empty, joined by a separator."""
    kept: Sequence[SQL] = [part for part in parts if part]
    text = separator.join(part.text for part in kept)
    return SQL(text, tuple(param for part in kept for param in part.params))


def qualified(table: str, columns: Iterable[str]) -> list[str]:
    """Columns qualified with their table; both are quoted already."""
    return [f"{table}.{column}" for column in columns]


def equal(left: Iterable[str], right: Iterable[str]) -> str:
    """Whether each value equals the one in the same place on the other side."""
    return " AND ".join(f"{one} = {other}" for one, other in zip(left, right, strict=True))
