"""PostgreSQL."""

from collections.abc import Collection, Sequence

from ..fields import FAMILIES, TEXT, AnyField, family, value_field
from ..keys import Key
from ..source import Column
from ..sql import SQL
from .base import Dialect, opposite

__all__ = ["PostgreSQL"]

CONVERTED = set(FAMILIES.values()) - {TEXT}


class PostgreSQL(Dialect):
    """Assigning converts as a cast does, but for texts: a cast would cut them, assigning refuses."""

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
        values = [value for (value,) in keys]
        # An array of a smaller type would be looked through for each row of a column of a larger one.
        whole = "::bigint[]" if all(type(value) is int for value in values) else ""
        return SQL(f"{columns[0]} = ANY(%s{whole})", (values,))

    def unlike(self, field: AnyField, left: str, right: str) -> str:
        """As the base class has it. Texts that a collation takes for equal are compared as bytes."""
        exact = ' COLLATE "C"' if self.folds(field) else ""
        return f"{left}{exact} IS DISTINCT FROM {right}{exact}"

    def utc(self, value: str, zone: str) -> SQL:
        """As the base class has it; POSIX counts offsets the other way."""
        return SQL(f"({value} AT TIME ZONE %s)", (opposite(zone),))
