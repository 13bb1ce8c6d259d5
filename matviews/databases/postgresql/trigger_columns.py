"""PostgreSQL: how a trigger names a table, and compares and writes the values of its columns."""

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from ..base.triggers import CHANGE_LOG, Triggers
from ..trigger_spec import TriggerSpec
from .table_names import cut, identifiers, regclass

__all__ = ["EXACT", "INEXACT_TYPES", "SETTINGS", "TriggerColumns"]

# Types whose equal values are identical, and the settings that their text form depends on.
EXACT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("int2", "int4", "int8", "bool", "uuid", "time"), ()),
    "bytea": ("bytea_output",),
    **dict.fromkeys(("date", "timestamp"), ("DateStyle",)),
    "timestamptz": ("DateStyle", "TimeZone"),
}
INEXACT_TYPES = ("text", "varchar", "bpchar", "numeric")  # their text form depends on no setting
SETTINGS = {
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "TimeZone": "'UTC'",
    "bytea_output": "'hex'",
    "extra_float_digits": "1",
    "lc_monetary": "'C'",
}


class TableLocation(NamedTuple):
    """Where a table is, by the search path of this connection."""

    #: The table's schema.
    schema: str
    #: The table's own name.
    table: str
    #: The type name of each column, "" if the type is not built in.
    types: dict[str, str]


class TriggerColumns(Triggers):
    """Tables and columns, as the SQL of a trigger writes them."""

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self._locations: dict[str, TableLocation] = {}

    def _selected(self, table: str, columns: Iterable[str], limit: int | None = None) -> str:
        """Columns as they are compared: as bytes, where equal values need not be identical."""
        return ", ".join(
            name if self._kind(table, column) in EXACT else f"{self._text(column, limit)} AS {name}"
            for column, name in ((column, self.name(column)) for column in columns)
        )

    def _text(self, column: str, limit: int | None = None) -> str:
        """The text form of a column, with at most `limit` characters."""
        name = self.name(column)
        text = f"concat({name})" if limit is None else f"left(concat({name}), {limit})"
        return f'CASE WHEN {name} IS NULL THEN NULL ELSE {text} END COLLATE pg_catalog."C"'

    def literal(self, text: str) -> str:
        """What a backslash means depends on `standard_conforming_strings`."""
        doubled = text.replace("\\", "\\\\")
        return f" E{super().literal(doubled)}" if "\\" in text else super().literal(text)

    def _settings(self, table: str, spec: TriggerSpec) -> list[str]:
        """The session settings that the text forms of a table's columns depend on."""
        texts = {column for column in spec.compared if self._kind(table, column) not in EXACT}
        found: set[str] = set()
        for column in texts | spec.links:
            kind = self._kind(table, column)
            if kind not in INEXACT_TYPES:
                found |= set(EXACT.get(kind, SETTINGS))
        return sorted(found)

    def _kind(self, table: str, column: str) -> str:
        """The name of a column's type, "" if the type is not built in or the column is missing."""
        return self._location(table).types.get(self._as_stored(column), "")

    def _as_stored(self, column: str) -> str:
        return next(map(cut, identifiers(self.name(column))), column)

    def _location(self, table: str) -> TableLocation:
        if table not in self._locations:
            self._locations[table] = self._find(table)
        return self._locations[table]

    def _find(self, table: str) -> TableLocation:
        with self.connection.cursor() as cursor:
            cursor.execute(  # no row, if no table can have the name
                "SELECT n.nspname, c.relname, a.attname, CASE WHEN t.typnamespace = "
                "'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid THEN t.typname ELSE '' END "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid) "
                "ON a.attrelid = c.oid AND a.attnum > 0 "
                "WHERE c.oid = pg_catalog.to_regclass(%s)::pg_catalog.oid",
                [regclass(self.name(table))],
            )
            rows = cursor.fetchall()
        schema, name = rows[0][:2] if rows else ("", table)
        return TableLocation(schema, name, {column: kind for *_location, column, kind in rows})

    @cached_property
    def _schema(self) -> str:
        """The schema of the log, which may differ from the table's."""
        return self._location(CHANGE_LOG).schema

    def _of_ours(self, name: str) -> str:
        """A function or table of this package, with its schema."""
        return f"{self.name(self._schema)}.{self.name(name)}"
