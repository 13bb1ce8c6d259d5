"""The SQL that the dialects share, and what each implements."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from django.db import connections

from ..fields import NUMBER, TEXT, WHOLE, AnyField, Column, family, value_field
from ..keys import Key, Keys, KeySelection, RangeWithout
from ..sql import SQL, Array, equal, joined, qualified

__all__ = ["DIGITS", "ROWS", "Dialect"]

ROWS = "matviews_rows"  # alias of the source's rows
PRECISION = re.compile(r"\(.*?\)")  # as in varchar(10)
DIGITS = re.compile(r"-?[0-9]+").fullmatch
FLOAT_TOLERANCE = "1e-12"  # relative: a double has 15 to 17 digits, of which sums lose the last


class Dialect:
    """The SQL of PostgreSQL; the others override the few places where they differ.

    Args:
        using: alias of the database.
    """

    #: The maximum number of keys in a statement, which repeats them as parameters.
    max_keys = 5_000
    #: Whether parts of one statement can insert, update and delete.
    has_writing_parts = False
    #: Whether a column of dates holds only dates, which are then in order.
    has_ordered_dates = True
    #: Whether booleans are stored as integers.
    bool_is_int = True
    #: Python types that any column stores unchanged.
    kept_types: ClassVar[tuple[type, ...]] = ()
    #: Whether a value extracted from JSON is JSON again.
    returns_json_parts = True
    #: Whether a JSON column may hold bytes that are not text.
    json_may_be_bytes = False
    #: Whether GREATEST and LEAST ignore NULLs.
    extremes_skip_nulls = False
    #: A case- and accent-sensitive collation, where the default is not one.
    exact_collation = ""
    #: Whether `logged` returns texts with the collations of their columns.
    logged_texts_have_collation = True
    #: Table and column under which `columns` returns the collation of the session's constants.
    session_collation: ClassVar[tuple[str, str] | None] = None
    #: The kind of each type; values of one kind compare alike.
    kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection. A cached dialect may be used by several threads."""
        return connections[self.using]

    def name(self, name: str) -> str:
        """A quoted identifier, for a statement with parameters."""
        return str(self.connection.ops.quote_name(name)).replace("%", "%%")

    def names(self, fields: Sequence[AnyField], table: str = "") -> list[str]:
        """The quoted columns of fields, qualified with a quoted table if one is given."""
        names = [self.name(field.column or "") for field in fields]
        return qualified(table, names) if table else names

    def kind_of(self, field: AnyField) -> str:
        """The kind of a field's column, according to the model."""
        return self.kind(value_field(field).rel_db_type(self.connection) or "")

    def kind(self, type_name: str) -> str:
        """The kind of a type: values of one kind and collation are equal and ordered alike."""
        found = PRECISION.search(type_name)
        plain = PRECISION.sub("", type_name.lower()).strip()
        kind = self.kinds.get(plain, plain)
        return kind if kind in (WHOLE, TEXT) or not found else kind + found[0].replace(" ", "")

    def columns(self, tables: Collection[str]) -> dict[tuple[str, str], tuple[str, str]]:
        """Types and collations ("" for the default) by table and column, of tables that exist."""
        raise NotImplementedError

    def same_collation(self, of_model: str, of_column: str) -> bool:
        """Whether a column has the collation that its model says; "" is the default."""
        return of_model == of_column

    def _described(self, query: str, params: Any) -> dict[tuple[str, str], tuple[str, str]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, params)
            rows = cursor.fetchall()
        return {(table, column): (kind, collation or "") for table, column, kind, collation in rows}

    def exact(self, kind: str, value: str) -> str | None:
        """SQL of a text or integer that represents a value exactly in any session; or None.

        Args:
            kind: the kind of the value.
            value: its SQL.
        """
        raise NotImplementedError

    def as_exact(self, kind: str, part: Any) -> Any:
        """A key part that a trigger logged or a caller passed, in the form of `exact`.

        Args:
            kind: the kind of the key's column.
            part: a text, or what SQLite keeps.
        """
        if kind == TEXT:
            return part if isinstance(part, str) else str(part)
        return int(part) if kind == WHOLE and isinstance(part, str) and DIGITS(part) else part

    def read_back(self, kind: str, exact: str) -> str:
        """SQL that turns the result of `exact` back into a value of its kind."""
        return exact

    def is_null(self, column: str) -> str:
        """Whether a NOT NULL column is NULL because an outer join found no row."""
        return f"{column} IS NULL"

    def is_readable(
        self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]
    ) -> bool:
        """Whether `logged` returns the rows as they were logged."""
        return True

    def row(self, columns: Sequence[str]) -> str:
        """Columns as one row value."""
        return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"

    def selects(
        self, columns: Sequence[str], within: KeySelection, fields: Sequence[AnyField] = ()
    ) -> SQL:
        """Whether columns, of these fields if known, are in a range `(low, high]` or among keys."""
        if isinstance(within, Keys):
            return self.among(columns, within, fields)
        if isinstance(within, RangeWithout):
            inside = self.selects(columns, within.within)
            outside = self.among(columns, within.without, fields)
            return joined(" AND ", [inside, SQL(f"NOT ({outside.text})", outside.params)])
        ends = zip((">", "<="), within, strict=True)
        return joined(" AND ", (self.compares(columns, sign, end) for sign, end in ends if end))

    def among(self, columns: Sequence[str], within: Keys, fields: Sequence[AnyField] = ()) -> SQL:
        """Whether columns, of these fields if known, have the values of one of the keys."""
        if not within.keys:
            return SQL("1 = 0")
        listed = ", ".join([self.row(self._marks(within, len(columns)))] * len(within.keys))
        params = tuple(value for key in within.keys for value in key)
        return SQL(f"{self.row(columns)} IN ({listed})", params)

    def _marks(self, within: Keys, parts: int) -> list[str]:
        """A parameter for each part of a key."""
        return ["%s"] * parts

    def hide_from_optimizer(self, condition: SQL) -> SQL:
        """The same condition, in a form that the optimizer does not use to choose an index."""
        return condition

    def arrays(self, within: Keys) -> list[Array]:
        """The keys as `among` passes them, if it passes one parameter per part."""
        return []

    def compares(self, columns: Sequence[str], sign: str, end: Key) -> SQL:
        """Whether the columns of a key are on one side of `end`."""
        return SQL(f"{self.row(columns)} {sign} {self.row(['%s'] * len(columns))}", end)

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """A query for logged rows, with the types of their table's columns.

        Args:
            table: its name.
            columns: the names of the columns.
            rows: their values, as JSON has them.
        """
        names, name = ", ".join(map(self.name, columns)), self.name(table)
        given = json.dumps([dict(zip(columns, row, strict=True)) for row in rows])
        return SQL(
            f"SELECT {names} FROM jsonb_populate_recordset(NULL::{name}, %s::jsonb)", (given,)
        )

    def numbered(self, table: str, fields: Sequence[AnyField], within: Keys) -> SQL:
        """A query for keys and their `place`, with the types and collations of a table's columns.

        Args:
            table: its name, quoted.
            fields: the fields of the columns.
            within: the keys; their places are counted from 0.
        """
        raise NotImplementedError

    def stored(self, column: Column, value: str) -> str:
        """A value of the source as the view's column will store it."""
        raise NotImplementedError

    def differs(self, column: Column, left: str, right: str) -> str:
        """Whether two stored values differ; NULL equals NULL, float aggregates have a tolerance."""
        distinct = self.is_distinct(column.field, left, right)
        if not column.is_float_aggregate:
            return distinct
        smaller = self.smaller(f"abs({left})", f"abs({right})")
        return (
            f"({distinct} AND ({left} IS NULL OR {right} IS NULL OR ({left} > 0) <> ({right} > 0) "
            f"OR abs({left} - {right}) > {FLOAT_TOLERANCE} * {smaller}))"
        )

    def is_distinct(self, field: AnyField, left: str, right: str) -> str:
        """Whether two values are not exactly the same; NULL equals NULL."""
        raise NotImplementedError

    def smaller(self, left: str, right: str) -> str:
        """The smaller of two numbers."""
        return f"least({left}, {right})"

    def has_ci_collation(self, field: AnyField) -> bool:
        """Whether texts that compare equal may differ in case, accents or trailing spaces."""
        return family(field) == TEXT and bool(field.db_parameters(self.connection).get("collation"))

    def not_in_source(self, keys: SQL, key: Sequence[str], of_view: Sequence[str]) -> SQL:
        """Whether a row of the view has a key that `keys` does not contain.

        Args:
            keys: a query for the keys of the source.
            key: names of the key's columns in `keys`, quoted.
            of_view: the key's columns in the view, quoted, with their table.
        """
        same = equal(qualified(ROWS, key), of_view)
        return SQL(f"NOT EXISTS (SELECT 1 FROM ({keys.text}) {ROWS} WHERE {same})", keys.params)

    def delete(
        self,
        table: str,
        key: Sequence[str],
        keys: SQL,
        where: Iterable[SQL],
        pk: Sequence[str],
        *,
        stored: bool,
    ) -> list[SQL]:
        """Statements, to be run in order, that delete the view's rows whose keys the source lacks.

        Args:
            table: the view's table, quoted.
            key: the key's columns.
            keys: a query for the keys of the source.
            where: restricts the rows of the view; columns are qualified.
            pk: the columns of the view's primary key, qualified.
            stored: whether `keys` are a few, from a table of ours: nobody else's rows are read.
        """
        not_in_source = self.not_in_source(keys, key, qualified(table, key))
        condition = joined(" AND ", [*where, not_in_source])
        return [SQL(f"DELETE FROM {table} WHERE {condition.text}", condition.params)]

    def update(
        self,
        table: str,
        key: Sequence[str],
        values: Sequence[str],
        rows: SQL,
        where: SQL,
        pk: Sequence[str],
        *,
        keyed: bool,
    ) -> SQL:
        """Write the values of `rows` into the rows of the view with the same key.

        Args:
            table: the view's table, quoted.
            key: the key's columns.
            values: the columns to write.
            rows: a query for the new rows, with the view's column names.
            where: which rows; the view's columns are of `table`, the new ones of `ROWS`.
            pk: the columns of the view's primary key, qualified.
            keyed: whether the new rows are those of some keys, perhaps of several tables.
        """
        sets = ", ".join(f"{value} = {ROWS}.{value}" for value in values)
        same = equal(qualified(table, key), qualified(ROWS, key))
        return SQL(
            f"UPDATE {table} SET {sets} FROM ({rows.text}) {ROWS} WHERE {same} AND {where.text}",
            (*rows.params, *where.params),
        )

    def temporary(self, name: str) -> str:
        """The name of a temporary table, quoted where that is needed."""
        return name

    def delete_by_id(self, table: str, ids: Sequence[int]) -> SQL:
        """Delete rows by their primary key `id`, without waiting for any other row.

        Args:
            table: its name, quoted.
            ids: the keys.
        """
        among = self.selects(["id"], Keys(tuple((pk,) for pk in ids)))
        return SQL(f"DELETE FROM {table} WHERE {among.text}", among.params)

    def delete_between(self, table: str, low: int, high: int) -> SQL:
        """Delete the rows whose primary key `id` is at least `low` and below `high`.

        Without waiting for any other row, if the row `high` is not locked by anybody else.
        """
        return SQL(f"DELETE FROM {table} WHERE id >= %s AND id < %s", (low, high))

    def numbers_in(self, column: str) -> tuple[str, str]:
        """A join to the integers in a JSON array, and the column that then holds them."""
        numbers = f"SELECT number::bigint AS value FROM jsonb_array_elements_text({column}) number"
        return f"CROSS JOIN LATERAL ({numbers}) numbers", "numbers.value"

    def shares_name(self, names: str, by_number: str, number: str) -> str:
        """Whether a JSON array of names contains one that an object lists under a number.

        True if the array is NULL, or the object lacks the number.
        """
        others = f"({by_number} -> {number}::text)"
        return (
            f"({names} IS NULL OR {others} IS NULL OR {names} ?| "
            f"ARRAY(SELECT jsonb_array_elements_text({others})))"
        )

    def text_literal(self, text: str) -> str:
        """A quoted text."""
        return "'" + text.replace("'", "''") + "'"

    def bytes_literal(self, digits: str) -> str:
        """Bytes from hexadecimal digits."""
        return f"X'{digits}'"

    def updated(self, found: int) -> int:
        """The number of rows that an update wrote, from the driver's count."""
        return found

    def utc(self, value: str, zone: str) -> SQL:
        """Convert a datetime of a time zone to UTC.

        Args:
            value: SQL of the datetime.
            zone: a name, or "UTC+05:30" for a fixed offset ahead of UTC.
        """
        raise NotImplementedError

    def rounded(self, column: Column, value: str) -> str:
        """A number as the column will store it, if the column rounds."""
        kind, places = family(column.field), getattr(column.field, "decimal_places", None)
        if kind == NUMBER and places is not None:
            return f"ROUND({value}, {places})"
        whole = family(column.expression.output_field) == WHOLE
        return f"ROUND({value})" if kind == WHOLE and not whole else value
