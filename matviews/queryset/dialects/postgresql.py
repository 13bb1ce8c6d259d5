"""PostgreSQL."""

from ..fields import FAMILIES, TEXT, AnyField, family, value_field
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

    def unlike(self, field: AnyField, left: str, right: str) -> str:
        """As the base class has it. Texts that a collation takes for equal are compared as bytes."""
        exact = ' COLLATE "C"' if self.folds(field) else ""
        return f"{left}{exact} IS DISTINCT FROM {right}{exact}"

    def utc(self, value: str, zone: str) -> SQL:
        """As the base class has it; POSIX counts offsets the other way."""
        return SQL(f"({value} AT TIME ZONE %s)", (opposite(zone),))
