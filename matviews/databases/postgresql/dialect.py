"""PostgreSQL."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from ..base.dialect import Dialect
from ..base.time_zones import opposite
from ..fields import FAMILIES, TEXT, WHOLE, AnyField, Column, family, value_field
from ..keys import Keys
from ..sql import SQL, Array
from .table_names import regclass

__all__ = ["PostgreSQL"]

ESCAPED = str.maketrans({"\\": r"\\", '"': r"\""})
AS_TEXT = {
    "bpchar", "boolean", "cidr", "citext", "inet", "macaddr", "numeric",
    "time without time zone", "uuid",
}  # fmt: skip
DATE_TYPES = {"date", "timestamp with time zone", "timestamp without time zone"}
#: By type, its largest value plus one; its smallest value is the negative of this.
ENDS = {"smallint": 2**15, "integer": 2**31}
CONVERTED = set(FAMILIES.values()) - {TEXT}


class PostgreSQL(Dialect):
    """Assignments convert like casts, but a cast truncates texts that an assignment refuses."""

    max_keys = 10_000  # as one array
    has_writing_parts = True
    bool_is_int = False
    extremes_skip_nulls = True
    kinds: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("smallint", "integer", "bigint"), WHOLE),
        **dict.fromkeys(("smallserial", "serial", "bigserial"), WHOLE),
        **dict.fromkeys(("varchar", "character varying", "text"), TEXT),
        **dict.fromkeys(("char", "character"), "bpchar"),
        "bool": "boolean",
        "decimal": "numeric",
        "time": "time without time zone",
        "timestamp": "timestamp without time zone",
        "timestamptz": "timestamp with time zone",
    }

    def columns(self, tables: Collection[str]) -> dict[tuple[str, str], tuple[str, str]]:
        quote = self.connection.ops.quote_name
        quoted = {name: quote(name) for name in tables if regclass(quote(name))}
        return self._described(
            "SELECT t.name, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), "
            "NULLIF(o.collname, 'default') FROM "
            "unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) t (name, quoted) "
            "JOIN pg_attribute a ON a.attrelid = pg_catalog.to_regclass(t.quoted)::pg_catalog.oid "
            "LEFT JOIN pg_collation o ON o.oid = a.attcollation "
            "WHERE a.attnum > 0 AND NOT a.attisdropped",
            [list(quoted), list(quoted.values())],
        )

    def exact(self, kind: str, value: str) -> str | None:
        """JSON writes dates independently of DateStyle, including those that Python cannot hold."""
        plain = kind.partition("(")[0]
        if plain in (WHOLE, TEXT):
            return value
        if plain in DATE_TYPES:
            return f"(to_jsonb({value}) #>> '{{}}')"
        if plain == "interval":
            return _exact_interval(value)
        return f"{value}::text" if plain in AS_TEXT else None

    def as_exact(self, kind: str, part: Any) -> Any:
        if kind.startswith("bpchar"):
            return str(part).rstrip(" ")
        if kind.startswith("timestamp"):
            return str(part).replace(" ", "T", 1)
        return super().as_exact(kind, part)

    def read_back(self, kind: str, exact: str) -> str:
        plain = kind.partition("(")[0]
        return exact if plain in (WHOLE, TEXT) else f"CAST({exact} AS {plain})"

    def stored(self, column: Column, value: str) -> str:
        if family(column.field) not in CONVERTED:
            return value
        kind = value_field(column.field).rel_db_type(self.connection)
        return f"CAST({value} AS {kind})"

    def among(self, columns: Sequence[str], within: Keys, fields: Sequence[AnyField] = ()) -> SQL:
        """Thousands of values are parsed faster as arrays.

        Several columns are joined with the keys: where no index serves it, a list of keys would be
        compared with each row, one after the other.
        """
        if not within.keys:
            return super().among(columns, within)
        arrays = self.arrays(within)
        if len(columns) == 1:
            values = [value for (value,) in within.keys]
            numbers = all(type(value) is int for value in values)
            kind = f"::{self._whole_type(values, fields)}[]" if numbers else ""
            return SQL(f"{columns[0]} = ANY(%s{kind})", tuple(arrays))
        names = [f"part{number}" for number in range(len(columns))]
        parts = map(self.read_back, within.kinds, names)
        marks = (f"%s::{'bigint' if kind == WHOLE else 'text'}[]" for kind in within.kinds)
        return SQL(
            f"{self.row(columns)} IN (SELECT {', '.join(parts)} "
            f"FROM unnest({', '.join(marks)}) matviews_key ({', '.join(names)}))",
            tuple(arrays),
        )

    def _whole_type(self, values: Sequence[int], fields: Sequence[AnyField]) -> str:
        """The type of an array of whole numbers.

        An array of another type than the column would be scanned for each row: only values of the
        same type are hashed. A number that the column cannot hold makes it an array of bigint.
        """
        kind = (value_field(fields[0]).rel_db_type(self.connection) if fields else None) or ""
        end = ENDS.get(kind)
        return kind if end and all(-end <= value < end for value in values) else "bigint"

    def arrays(self, within: Keys) -> list[Array]:
        return [
            _array(values, within.first_part + number)
            for number, values in enumerate(zip(*within.keys, strict=True))
        ]

    def numbered(self, table: str, fields: Sequence[AnyField], within: Keys) -> SQL:
        """UNION ALL gives texts the collations of the table's columns."""
        names, parts = ", ".join(self.names(fields)), [f"part{n}" for n in range(len(fields))]
        typed = ", ".join(map(self.read_back, within.kinds, parts))
        marks = (f"%s::{'bigint' if kind == WHOLE else 'text'}[]" for kind in within.kinds)
        return SQL(
            f"SELECT 0::bigint AS place, {names} FROM {table} WHERE false UNION ALL "
            f"SELECT number - 1, {typed} FROM unnest({', '.join(marks)}) WITH ORDINALITY "
            f"matviews_key ({', '.join(parts)}, number)",
            tuple(self.arrays(within)),
        )

    def is_distinct(self, field: AnyField, left: str, right: str) -> str:
        """Texts that are equal in a collation are compared as bytes."""
        exact = '::text COLLATE "C"' if self.has_ci_collation(field) else ""
        return f"{left}{exact} IS DISTINCT FROM {right}{exact}"

    def has_ci_collation(self, field: AnyField) -> bool:
        return super().has_ci_collation(field) or self.kind_of(field) == "citext"

    def bytes_literal(self, digits: str) -> str:
        return f"'\\x{digits}'"

    def utc(self, value: str, zone: str) -> SQL:
        """POSIX offsets have the opposite sign."""
        return SQL(f"({value} AT TIME ZONE %s)", (opposite(zone),))


def _exact_interval(value: str) -> str:
    """An interval by its parts, whatever IntervalStyle is.

    The leading `+0 years` stops a minus sign from applying to all parts.
    """
    months = f"extract(year from {value})::int * 12 + extract(month from {value})::int"
    seconds = (
        f"extract(hour from {value})::bigint * 3600 + extract(minute from {value})::int * 60 "
        f"+ extract(second from {value})"
    )
    parts = f"{months}, ' months ', extract(day from {value})::int, ' days ', {seconds}, ' seconds'"
    return f"CASE WHEN isfinite({value}) THEN concat('+0 years ', {parts}) ELSE {value}::text END"


def _array(values: Iterable[Any], part: int) -> Array:
    """The values of a part of keys.

    psycopg would take longer to adapt a list than the database takes for the rest.
    """
    array = Array(f"{{{','.join(map(_element, values))}}}")
    array.part = part
    return array


def _element(value: Any) -> str:
    return str(value) if type(value) is int else f'"{str(value).translate(ESCAPED)}"'
