"""What the dialects share, and what each of them must say."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from django.db import connections

from ..fields import NUMBER, TEXT, WHOLE, AnyField, Column, family, value_field
from ..keys import Key, Keys, KeySelection
from ..sql import SQL, Array, equal, joined, qualified

__all__ = ["FIXED", "ROWS", "Dialect", "opposite"]

ROWS = "matviews_rows"  # what the rows of the source are called in a statement
PRECISION = re.compile(r"\(.*?\)")  # of a type, as in varchar(10)
DIGITS = re.compile(r"-?[0-9]+").fullmatch
FIXED = re.compile(r"[+-]\d\d:\d\d$")  # the end of a time zone that is a fixed offset
FLOAT_TOLERANCE = (
    "1e-12"  # relative; double precision has 15 to 17 digits, and sums lose the last ones
)


class Dialect:
    """The SQL of PostgreSQL, of which the others differ in a few places.

    Args:
        using: alias of the database.
    """

    max_keys = 5_000  # in one statement, which has them several times as parameters
    bool_is_int = True  # a boolean is stored as a whole number
    kept_types: ClassVar[tuple[type, ...]] = ()  # of Python, stored as they are in any column
    returns_json_parts = True  # what is extracted from JSON is JSON again
    json_may_be_bytes = False  # a JSON column may hold what is no text
    extremes_skip_nulls = False  # GREATEST and LEAST leave NULLs out
    exact_collation = ""  # tells all letters apart, where the default does not
    # Names of types whose values are compared alike, and what each is called here.
    kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection: what is cached with a dialect may be used by another one."""
        return connections[self.using]

    def name(self, name: str) -> str:
        """An identifier in quotes, in a text with parameters."""
        quoted: str = self.connection.ops.quote_name(name)
        return quoted.replace("%", "%%")

    def names(self, fields: Sequence[AnyField], table: str = "") -> list[str]:
        """The columns of fields, of a table if one is given by its quoted name."""
        names = [self.name(field.column or "") for field in fields]
        return qualified(table, names) if table else names

    def kind_of(self, field: AnyField) -> str:
        """The kind of a field's column, as the model has it."""
        return self.kind(value_field(field).rel_db_type(self.connection) or "")

    def kind(self, type_name: str) -> str:
        """What a type is compared as: values of one kind, and one collation, are equal and ordered alike."""
        found = PRECISION.search(type_name)
        plain = PRECISION.sub("", type_name.lower()).strip()
        kind = self.kinds.get(plain, plain)
        if kind in (WHOLE, TEXT) or not found:
            return kind
        return kind + found[0].replace(" ", "")

    def columns(self, tables: Collection[str]) -> dict[tuple[str, str], tuple[str, str]]:
        """Types and collations, "" for the default, by table and column; of tables that are there."""
        raise NotImplementedError

    def same_collation(self, of_model: str, of_column: str) -> bool:
        """Whether a column's collation is what its model says; "" stands for the default."""
        return of_model == of_column

    def _described(self, query: str, params: Any) -> dict[tuple[str, str], tuple[str, str]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, params)
            rows = cursor.fetchall()
        return {(table, column): (kind, collation or "") for table, column, kind, collation in rows}

    def exact(self, kind: str, value: str) -> str | None:
        """A value as a text, or number, that gives it back whatever the session; None if there is none.

        Args:
            kind: of the value.
            value: its SQL.
        """
        raise NotImplementedError

    def as_exact(self, kind: str, part: Any) -> Any:
        """A part of a key that a trigger has logged, or a caller has given, as `exact` gives it.

        Args:
            kind: of the key's column.
            part: a text, or what SQLite keeps.
        """
        if kind == TEXT:
            return part if isinstance(part, str) else str(part)
        return int(part) if kind == WHOLE and isinstance(part, str) and DIGITS(part) else part

    def read_back(self, kind: str, exact: str) -> str:
        """What `exact` has made of a value, as a value of its kind again."""
        return exact

    def is_null(self, column: str) -> str:
        """A condition on a column that cannot be NULL, of a table that an outer join may lack a row of."""
        return f"{column} IS NULL"

    def is_readable(
        self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]
    ) -> bool:
        """Whether `logged` gives the rows as they were logged."""
        return True

    def row(self, columns: Sequence[str]) -> str:
        """Columns as one value."""
        return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"

    def inside(self, columns: Sequence[str], within: KeySelection) -> SQL:
        """A condition on the columns of a key: above the low end and up to the high one, or among keys."""
        if isinstance(within, Keys):
            return self.among(columns, within.keys)
        low, high = within
        ends = [(">", low), ("<=", high)]
        return joined(" AND ", (self.beyond(columns, sign, end) for sign, end in ends if end))

    def among(self, columns: Sequence[str], keys: Collection[Key]) -> SQL:
        """A condition on columns: their values are among some keys, which are of the same length."""
        marks = ", ".join([self.row(["%s"] * len(columns))] * len(keys))
        params = tuple(value for key in keys for value in key)
        return SQL(f"{self.row(columns)} IN ({marks})" if keys else "1 = 0", params)

    def hide_from_optimizer(self, condition: SQL) -> SQL:
        """The same condition on rows, in which no index needs to be looked for."""
        return condition

    def array(self, keys: Keys) -> Array | None:
        """Prepared keys as `among` gives them, if that is one parameter however many they are."""
        return None

    def beyond(self, columns: Sequence[str], sign: str, end: Key) -> SQL:
        """A condition on the columns of a key: on one side of `end`."""
        return SQL(f"{self.row(columns)} {sign} {self.row(['%s'] * len(columns))}", end)

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """A query for rows that were logged, of the same types as the columns of their table.

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

    def stored(self, column: Column, value: str) -> str:
        """A value of the source as the view's column will hold it."""
        raise NotImplementedError

    def differs(self, column: Column, left: str, right: str) -> str:
        """Whether two values, as stored, are not the same; NULL is the same as NULL."""
        unlike = self.is_distinct(column.field, left, right)
        if not column.is_float_aggregate:
            return unlike
        return (
            f"({unlike} AND ({left} IS NULL OR {right} IS NULL OR ({left} > 0) <> ({right} > 0) OR "
            f"abs({left} - {right}) > {FLOAT_TOLERANCE} * {self.smaller(f'abs({left})', f'abs({right})')}))"
        )

    def is_distinct(self, field: AnyField, left: str, right: str) -> str:
        """Whether two values are not exactly the same."""
        raise NotImplementedError

    def smaller(self, left: str, right: str) -> str:
        """The smaller one of two numbers."""
        return f"least({left}, {right})"

    def has_ci_collation(self, field: AnyField) -> bool:
        """Whether texts that are equal may have different letters."""
        return family(field) == TEXT and bool(field.db_parameters(self.connection).get("collation"))

    def not_in_source(self, keys: SQL, key: Sequence[str], wanted: Sequence[str]) -> SQL:
        """A condition on rows of the view: `keys` lacks their key.

        Args:
            keys: a query for the keys of the source.
            key: names of the key's columns in `keys`, quoted.
            wanted: the key's columns in the view, quoted, with their table.
        """
        same = equal(qualified(ROWS, key), wanted)
        return SQL(f"NOT EXISTS (SELECT 1 FROM ({keys.text}) {ROWS} WHERE {same})", keys.params)

    def delete(
        self,
        table: str,
        key: Sequence[str],
        keys: SQL,
        where: Iterable[SQL],
        pk: Sequence[str],
    ) -> list[SQL]:
        """Remove the rows of the view whose keys the source lacks; statements one after the other.

        Args:
            table: the view's table, quoted.
            key: the key's columns.
            keys: a query for the keys of the source.
            where: which rows, their columns with the table.
            pk: the columns of the view's primary key, with their table.
        """
        lacking = self.not_in_source(keys, key, qualified(table, key))
        condition = joined(" AND ", [*where, lacking])
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
            rows: a query for the new rows, columns named as in the view.
            where: which rows; the view's columns are of `table`, the new ones of `ROWS`.
            pk: the columns of the view's primary key, with their table.
            keyed: the new rows are those of some keys, whose parts may lie in several tables.
        """
        sets = ", ".join(f"{value} = {ROWS}.{value}" for value in values)
        same = equal(qualified(table, key), qualified(ROWS, key))
        return SQL(
            f"UPDATE {table} SET {sets} FROM ({rows.text}) {ROWS} WHERE {same} AND {where.text}",
            (*rows.params, *where.params),
        )

    def delete_by_id(self, table: str, ids: Sequence[int]) -> SQL:
        """Delete rows by their primary key `id`, without waiting for any other row.

        Args:
            table: its name, quoted.
            ids: the keys.
        """
        among = self.inside(["id"], Keys(tuple((pk,) for pk in ids)))
        return SQL(f"DELETE FROM {table} WHERE {among.text}", among.params)

    def numbers_in(self, column: str) -> tuple[str, str]:
        """A join to the whole numbers in a JSON array, and the column that they are in then."""
        numbers = f"SELECT number::bigint AS value FROM jsonb_array_elements_text({column}) number"
        return f"CROSS JOIN LATERAL ({numbers}) numbers", "numbers.value"

    def text_literal(self, text: str) -> str:
        """A text in quotes."""
        doubled = text.replace("'", "''")
        return f"'{doubled}'"

    def bytes_literal(self, digits: str) -> str:
        """Bytes, given as hexadecimal digits."""
        return f"X'{digits}'"

    def updated(self, found: int) -> int:
        """Rows that an update wrote, by what the driver counted."""
        return found

    def utc(self, value: str, zone: str) -> SQL:
        """A date and time of a time zone, in UTC.

        Args:
            value: SQL of the date and time.
            zone: a name, or "UTC+05:30" for one that is as much ahead of UTC.
        """
        raise NotImplementedError

    def rounded(self, column: Column, value: str) -> str:
        """A number as a column that rounds will hold it."""
        kind, places = family(column.field), getattr(column.field, "decimal_places", None)
        if kind == NUMBER and places is not None:
            return f"ROUND({value}, {places})"
        whole = family(column.expression.output_field) == WHOLE
        return f"ROUND({value})" if kind == WHOLE and not whole else value


def opposite(zone: str) -> str:
    """A fixed offset with the other sign; a name as it is."""
    return FIXED.sub(lambda found: found[0].translate(str.maketrans("+-", "-+")), zone)
