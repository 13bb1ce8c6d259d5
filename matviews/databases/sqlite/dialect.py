"""SQLite. It stores any value in any column, whatever the type, so values are rounded here."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from ..base.dialect import DIGITS, Dialect
from ..base.time_zones import FIXED, opposite
from ..fields import NUMBER, TEXT, WHOLE, AnyField, Column, column_of, family
from ..keys import Keys
from ..sql import SQL

__all__ = ["SQLite"]

NUMERAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?").fullmatch


def _collation(sql: str, column: str) -> str:
    """The collation that a table's definition gives to a column, "" for the default."""
    clause = (
        rf"[\"`\[]?\b{re.escape(column)}\b[\"`\]]?\s+(?:[^,()]|\([^()]*\))*?\bCOLLATE\s+[\"`]?(\w+)"
    )
    found = re.search(clause, sql, re.IGNORECASE)
    return found[1] if found else ""


class SQLite(Dialect):
    """Decimals are stored as binary numbers, and rounded to the places of their field."""

    has_ordered_dates = False  # "2024-3-1" is a date, and comes after "2024-12-31"
    kept_types = (bytes, float)
    returns_json_parts = False
    json_may_be_bytes = True
    logged_texts_have_collation = False
    max_keys = 1_000  # a statement has at most 32,766 parameters

    def kind(self, type_name: str) -> str:
        """By the affinity of a column, which follows from the name of its type."""
        name = type_name.upper()
        if "INT" in name:
            return WHOLE
        if any(part in name for part in ("CHAR", "CLOB", "TEXT")):
            return TEXT
        if "BLOB" in name or not name:
            return "blob"
        return "real" if any(part in name for part in ("REAL", "FLOA", "DOUB")) else NUMBER

    def columns(self, tables: Collection[str]) -> dict[tuple[str, str], tuple[str, str]]:
        marks = ", ".join(["%s"] * len(tables))
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT t.name, c.name, c.type, t.sql "
                "FROM sqlite_master t, pragma_table_xinfo(t.name) c "
                f"WHERE t.type = 'table' AND t.name IN ({marks})",
                list(tables),
            )
            rows = cursor.fetchall()
        return {(table, name): (kind, _collation(sql, name)) for table, name, kind, sql in rows}

    def same_collation(self, of_model: str, of_column: str) -> bool:
        return (of_model or "BINARY").upper() == (of_column or "BINARY").upper()

    def exact(self, kind: str, value: str) -> str | None:
        """The sign stops the driver from converting the value by the column's type."""
        return f"+{value}"

    def as_exact(self, kind: str, part: Any) -> Any:
        """A text that looks like a number becomes one in a column of numbers."""
        if kind in (NUMBER, "real") and isinstance(part, str) and NUMERAL(part):
            number = int(part) if DIGITS(part) else float(part)
            return number if abs(number) < 2**63 else float(number)
        return super().as_exact(kind, part)

    def read_back(self, kind: str, exact: str) -> str:
        """The column itself, with its affinity."""
        return exact.removeprefix("+")

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """JSON holds values as the table does."""
        row = f"({', '.join(['%s'] * len(columns))})"
        return SQL(
            f"VALUES {', '.join([row] * len(rows))}", tuple(value for row in rows for value in row)
        )

    def numbered(self, table: str, fields: Sequence[AnyField], within: Keys) -> SQL:
        """Exact values need no type, as the database has made them."""
        columns = []
        for number, field in enumerate(fields, start=2):
            collation = field.db_parameters(self.connection).get("collation")
            collate = f" COLLATE {self.name(collation)}" if collation else ""
            columns.append(f"column{number}{collate} AS {self.name(field.column or '')}")
        rows = ", ".join([f"({', '.join(['%s'] * (len(fields) + 1))})"] * len(within.keys))
        params = (value for place, key in enumerate(within.keys) for value in (place, *key))
        return SQL(
            f"SELECT column1 AS place, {', '.join(columns)} FROM (VALUES {rows})", tuple(params)
        )

    def stored(self, column: Column, value: str) -> str:
        """A plain column is copied unchanged, whatever it contains."""
        place = column_of(column.expression)
        if place and self._alike(place[1], column.field):
            return value
        rounded = self.rounded(column, value)
        return f"CAST({rounded} AS INTEGER)" if family(column.field) == WHOLE else rounded

    def _alike(self, one: AnyField, other: AnyField) -> bool:
        places = {getattr(field, "decimal_places", None) for field in (one, other)}
        return self.kind_of(one) == self.kind_of(other) and len(places) == 1

    def is_distinct(self, field: AnyField, left: str, right: str) -> str:
        exact = " COLLATE BINARY" if self.has_ci_collation(field) else ""
        return f"{left}{exact} IS NOT {right}"

    def smaller(self, left: str, right: str) -> str:
        return f"min({left}, {right})"

    def among(self, columns: Sequence[str], within: Keys, fields: Sequence[AnyField] = ()) -> SQL:
        """Several columns can be compared with rows of VALUES only."""
        condition = super().among(columns, within)
        if len(columns) == 1 or not within.keys:
            return condition
        row = f"{self.row(columns)} IN ("
        return SQL(f"{row}VALUES {condition.text.removeprefix(row)}", condition.params)

    def not_in_source(self, keys: SQL, key: Sequence[str], of_view: Sequence[str]) -> SQL:
        """With NOT EXISTS the keys would be computed for each row."""
        return SQL(f"{self.row(of_view)} NOT IN ({keys.text})", keys.params)

    def numbers_in(self, column: str) -> tuple[str, str]:
        return f"CROSS JOIN json_each({column}) numbers", "numbers.value"

    def shares_name(self, names: str, by_number: str, number: str) -> str:
        path = f"'$.\"' || {number} || '\"'"
        return (
            f"({names} IS NULL OR json_type({by_number}, {path}) IS NULL "
            f"OR EXISTS (SELECT 1 FROM json_each({names}) one "
            f"JOIN json_each({by_number}, {path}) other ON other.value = one.value))"
        )

    def utc(self, value: str, zone: str) -> SQL:
        """With a function that Django adds to SQLite.

        It converts from one zone to another, but accepts a fixed offset only as the second.
        """
        zones = (opposite(zone), "UTC") if FIXED.search(zone) else ("UTC", zone)
        return SQL(f"django_datetime_trunc('second', {value}, %s, %s)", zones)
