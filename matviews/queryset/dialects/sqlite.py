"""SQLite. It keeps what it is given, whatever the type of the column, so values are rounded here."""

from collections.abc import Collection, Sequence
from typing import Any

from ..fields import WHOLE, AnyField, family
from ..keys import Key
from ..source import Column
from ..sql import SQL
from .base import FIXED, Dialect, opposite

__all__ = ["SQLite"]


class SQLite(Dialect):
    """Decimals are kept as binary numbers, and rounded to the places of their field."""

    most_keys = 1_000  # a statement has at most 32,766 parameters

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """As the base class has it; JSON holds values as the table does."""
        row = f"({', '.join(['%s'] * len(columns))})"
        return SQL(
            f"VALUES {', '.join([row] * len(rows))}", tuple(value for row in rows for value in row)
        )

    def stored(self, column: Column, value: str) -> str:
        """As the base class has it."""
        rounded = self.rounded(column, value)
        return f"CAST({rounded} AS INTEGER)" if family(column.field) == WHOLE else rounded

    def unlike(self, field: AnyField, left: str, right: str) -> str:
        """As the base class has it."""
        exact = " COLLATE BINARY" if self.folds(field) else ""
        return f"{left}{exact} IS NOT {right}"

    def smaller(self, left: str, right: str) -> str:
        """As the base class has it."""
        return f"min({left}, {right})"

    def among(self, columns: Sequence[str], keys: Collection[Key]) -> SQL:
        """As the base class has it; several columns are compared with rows of VALUES only."""
        condition = super().among(columns, keys)
        several = len(columns) > 1 and keys
        return (
            SQL(condition.text.replace(" IN (", " IN (VALUES ", 1), condition.params)
            if several
            else condition
        )

    def lacking(self, keys: SQL, key: Sequence[str], wanted: Sequence[str]) -> SQL:
        """As the base class has it; NOT IN, or the keys would be computed for each row."""
        return SQL(f"{self.row(wanted)} NOT IN ({keys.text})", keys.params)

    def utc(self, value: str, zone: str) -> SQL:
        """As the base class has it, by a function that Django adds to SQLite.

        It goes from a zone to another, but of fixed offsets it only knows the second.
        """
        zones = (opposite(zone), "UTC") if FIXED.search(zone) else ("UTC", zone)
        return SQL(f"django_datetime_trunc('second', {value}, %s, %s)", zones)
