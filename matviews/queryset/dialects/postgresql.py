"""PostgreSQL."""

from collections.abc import Collection, Sequence
from typing import Any

from ..fields import FAMILIES, TEXT, AnyField, family, value_field
from ..keys import Key, Keys
from ..source import Column
from ..sql import SQL, Array
from .base import Dialect, opposite

__all__ = ["PostgreSQL"]

ESCAPED = str.maketrans({"\\": r"\\", '"': r"\""})
CONVERTED = set(FAMILIES.values()) - {TEXT}


class PostgreSQL(Dialect):
    """Assigning converts as a cast does, but for texts: a cast would cut them, assigning refuses."""

    most_keys = 10_000  # it takes them as one array

    def stored(self, column: Column, value: str) -> str:
        """As the base class has it."""
        if family(column.field) not in CONVERTED:
            return value
        kind = value_field(column.field).rel_db_type(self.connection)
        return f"CAST({value} AS {kind})"

    def among(self, columns: Sequence[str], keys: Collection[Key]) -> SQL:
        """As the base class has it; thousands of values are read faster as one array."""
        if len(columns) > 1:
            return super().among(columns, keys)
        # An array of a smaller type would be looked through for each row of a column of a larger one.
        whole = "::bigint[]" if all(type(value) is int for (value,) in keys) else ""
        return SQL(f"{columns[0]} = ANY(%s{whole})", (_array(keys),))

    def array(self, keys: Keys) -> Array | None:
        """As the base class has it."""
        return _array(keys.keys) if len(keys.keys[0]) == 1 else None

    def unlike(self, field: AnyField, left: str, right: str) -> str:
        """As the base class has it. Texts that a collation takes for equal are compared as bytes."""
        exact = ' COLLATE "C"' if self.folds(field) else ""
        return f"{left}{exact} IS DISTINCT FROM {right}{exact}"

    def utc(self, value: str, zone: str) -> SQL:
        """As the base class has it; POSIX counts offsets the other way."""
        return SQL(f"({value} AT TIME ZONE %s)", (opposite(zone),))


def _array(keys: Collection[Key]) -> Array:
    """The values of keys of one column; psycopg would take longer for a list than the database for the rest."""
    return Array(f"{{{','.join([_element(value) for (value,) in keys])}}}")


def _element(value: Any) -> str:
    return str(value) if type(value) is int else f'"{str(value).translate(ESCAPED)}"'
