"""MariaDB and MySQL.

Measured on MariaDB 10.11: an UPDATE or DELETE that reads the source share-locks rows or index
entries of it even in READ COMMITTED. An INSERT or CREATE TABLE that selects from it does not.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from ...conf import get_settings
from ..base.dialect import ROWS, Dialect
from ..fields import DATE, DATETIME, NUMBER, TEXT, WHOLE, AnyField, Column, family, field_of_column
from ..keys import Key, Keys
from ..sql import SQL, equal, joined, qualified

__all__ = ["MySQL"]

BYTES = re.compile(r"(var)?binary|(tiny|medium|long)?blob")
SURPLUS = "matviews_surplus"
TYPED = {DATE: "CAST(%s AS DATE)", DATETIME: "CAST(%s AS DATETIME(6))"}
AS_TEXT = {"date", "datetime", "decimal", "time", "uuid"}


class MySQL(Dialect):
    """Compares texts as bytes: to the usual collations "a" equals "A", and "a" equals "a "."""

    exact_collation = "utf8mb4_bin"
    session_collation = ("@@session", "collation_connection")
    kinds: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "integer", "bigint"), WHOLE),
        "bool": WHOLE,
        **dict.fromkeys(("char", "varchar", "tinytext", "text", "mediumtext", "longtext"), TEXT),
        "double precision": "double",
        "numeric": "decimal",
    }

    def kind(self, type_name: str) -> str:
        return super().kind(type_name.lower().replace(" unsigned", ""))

    def columns(self, tables: Collection[str]) -> dict[tuple[str, str], tuple[str, str]]:
        found: dict[tuple[str, str], tuple[str, str]] = {}
        by_database: dict[str, list[str]] = {}
        if self.session_collation[0] in tables:
            [found[self.session_collation]] = self._described(
                "SELECT '', '', 'varchar', @@session.collation_connection", []
            ).values()
        for table in tables:
            database, _dot, name = table.rpartition("`.`")
            by_database.setdefault(database, []).append(name)
        for database, names in by_database.items():
            found |= self._described(
                "SELECT CONCAT(%s, table_name), column_name, column_type, collation_name "
                "FROM information_schema.columns "
                "WHERE table_schema = COALESCE(NULLIF(%s, ''), DATABASE()) "
                f"AND table_name IN ({', '.join(['%s'] * len(names))})",
                [f"{database}`.`" if database else "", database, *names],
            )
        return found

    def same_collation(self, of_model: str, of_column: str) -> bool:
        """If the model names no collation, a table keeps the one it was created with."""
        return not of_model or super().same_collation(of_model, of_column)

    def exact(self, kind: str, value: str) -> str | None:
        """The driver returns None for 0000-00-00.

        A computed value may have fewer decimal places than its column.
        """
        plain = kind.partition("(")[0]
        if plain in (WHOLE, TEXT):
            return value
        if kind.startswith("datetime("):
            return f"LEFT(CONCAT(CAST({value} AS CHAR), '.000000'), {20 + int(kind[9:-1])})"
        return f"CAST({value} AS CHAR)" if plain in AS_TEXT else None

    def as_exact(self, kind: str, part: Any) -> Any:
        if kind.startswith("datetime("):
            return f"{part}.000000"[: 20 + int(kind[9:-1])]
        return super().as_exact(kind, part)

    def read_back(self, kind: str, exact: str) -> str:
        """As texts, 10.00 would sort before 2.00, and 100:00:00 before 99:00:00."""
        return f"CAST({exact} AS {kind})" if kind.startswith(("decimal", "time")) else exact

    def is_null(self, column: str) -> str:
        """0000-00-00 IS NULL is true in a NOT NULL column."""
        return f"{column} <=> NULL"

    def is_readable(
        self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]
    ) -> bool:
        """With NO_ZERO_DATE in `sql_mode`, a cast turns 0000-00-00 into NULL."""
        dates = [
            place
            for place, column in enumerate(columns)
            if (field := field_of_column(table, column)) and family(field) in TYPED
        ]
        return not any("-00" in str(row[place])[4:10] for row in rows for place in dates)

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """UNION ALL gives texts the collations of the table's own columns."""
        fields = (field_of_column(table, column) for column in columns)
        marks = ", ".join(TYPED.get(family(field) if field else "", "%s") for field in fields)
        names = ", ".join(map(self.name, columns))
        empty = f"SELECT {names} FROM {self.name(table)} WHERE 1 = 0"
        params = tuple(value for row in rows for value in row)
        return SQL(empty + f" UNION ALL SELECT {marks}" * len(rows), params)

    def numbered(self, table: str, fields: Sequence[AnyField], within: Keys) -> SQL:
        """As `logged`."""
        marks = ", ".join(
            "%s" if kind in (WHOLE, TEXT) else f"CAST(%s AS {kind})" for kind in within.kinds
        )
        empty = f"SELECT 0 AS place, {', '.join(self.names(fields))} FROM {table} WHERE 1 = 0"
        params = (value for place, key in enumerate(within.keys) for value in (place, *key))
        return SQL(empty + f" UNION ALL SELECT %s, {marks}" * len(within.keys), tuple(params))

    def stored(self, column: Column, value: str) -> str:
        """CAST would clip what an assignment refuses."""
        if family(column.field) in (WHOLE, NUMBER):
            return self.rounded(column, value)
        return value

    def is_distinct(self, field: AnyField, left: str, right: str) -> str:
        if self.has_ci_collation(field) or (
            family(field) == "JSON" and self.connection.mysql_is_mariadb
        ):
            left, right = (f"BINARY CONVERT({value} USING utf8mb4)" for value in (left, right))
        return f"NOT ({left} <=> {right})"

    def has_ci_collation(self, field: AnyField) -> bool:
        return family(field) == TEXT and not BYTES.match(self.kind_of(field))

    def hide_from_optimizer(self, condition: SQL) -> SQL:
        """MariaDB 10.11 looks for an index even in a row comparison over several tables.

        It then evaluates an expression of a table that it has not read yet, and may find
        "Impossible WHERE".
        """
        return SQL(f"IF({condition.text}, 1, 0)", condition.params)

    def _marks(self, within: Keys, parts: int) -> list[str]:
        """Decimals would be compared with a list of texts as floats, which are equal too soon."""
        kinds = within.kinds or [""] * parts
        return [f"CAST(%s AS {k})" if k.startswith("decimal") else "%s" for k in kinds]

    def compares(self, columns: Sequence[str], sign: str, end: Key) -> SQL:
        """A row comparison would not use an index."""
        strict = sign[0]
        choices = []
        for place, column in enumerate(columns):
            last = place == len(columns) - 1
            conditions = [
                SQL(f"{c} = %s", (v,)) for c, v in zip(columns[:place], end, strict=False)
            ]
            conditions.append(SQL(f"{column} {sign if last else strict} %s", (end[place],)))
            choices.append(joined(" AND ", conditions))
        either = joined(" OR ", choices)
        return SQL(f"({either.text})", either.params) if len(columns) > 1 else either

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
        """With a temporary table, which commits nothing, unless one has the keys already."""
        same = equal(qualified(ROWS, key), qualified(table, key))
        condition = joined(" AND ", [*where, SQL(self.is_null(f"{ROWS}.{key[0]}"))])
        found = SQL(
            f"FROM {table} LEFT JOIN ({keys.text}) {ROWS} ON {same} WHERE {condition.text}",
            (*keys.params, *condition.params),
        )
        if stored:
            return [SQL(f"DELETE {table} {found.text}", found.params)]
        named = {f"pk{place}": name for place, name in enumerate(pk)}
        selected = ", ".join(f"{name} AS {alias}" for alias, name in named.items())
        surplus = self.temporary(SURPLUS)
        matched = equal(named.values(), qualified(SURPLUS, named))
        drop = SQL(f"DROP TEMPORARY TABLE IF EXISTS {surplus}")
        find = SQL(
            f"CREATE TEMPORARY TABLE {surplus} AS SELECT {selected} {found.text}", found.params
        )
        remove = SQL(f"DELETE {table} FROM {table} JOIN {surplus} AS {SURPLUS} ON {matched}")
        return [drop, find, remove, drop]

    def temporary(self, name: str) -> str:
        """Where staging tables are: the role has the right there."""
        schema = get_settings().STAGING_SCHEMA
        return f"{self.name(schema)}.{name}" if schema else name

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
        """An INSERT of existing rows with their primary keys.

        So no other unique constraint decides which row is written. MariaDB pushes a condition on
        the view's keys into the derived table of new rows (see `hide_from_optimizer`); if only some
        keys are processed, they are enough to find the rows.
        """
        new = {name.removeprefix(f"{table}."): name for name in pk}
        new |= {name: f"{ROWS}.{name}" for name in (*key, *values)}
        columns, selected = ", ".join(new), ", ".join(new.values())
        same = equal(qualified(table, key), qualified(ROWS, key))
        sets = ", ".join(f"{value} = VALUES({value})" for value in values)
        join, where = (
            ("STRAIGHT_JOIN", self.hide_from_optimizer(where)) if keyed else ("JOIN", where)
        )
        return SQL(
            f"INSERT INTO {table} ({columns}) SELECT {selected} "
            f"FROM ({rows.text}) {ROWS} {join} {table} ON {same} WHERE {where.text} "
            f"ON DUPLICATE KEY UPDATE {sets}",
            (*rows.params, *where.params),
        )

    def delete_by_id(self, table: str, ids: Sequence[int]) -> SQL:
        """Looks up each key on its own.

        A statement waits for every locked row that it scans, and for an IN of many keys it scans
        all rows.
        """
        return SQL(
            f"DELETE {table} "
            f"FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) matviews_keys "
            f"STRAIGHT_JOIN {table} ON {table}.id = matviews_keys.id",
            (json.dumps(ids),),
        )

    def delete_between(self, table: str, low: int, high: int) -> SQL:
        """Where a range has most of the rows, MariaDB may read all rows to find it."""
        return SQL(
            f"DELETE {table} FROM {table} FORCE INDEX (PRIMARY) WHERE id >= %s AND id < %s",
            (low, high),
        )

    def numbers_in(self, column: str) -> tuple[str, str]:
        return (
            f"CROSS JOIN JSON_TABLE({column}, '$[*]' COLUMNS (value BIGINT PATH '$')) numbers",
            "numbers.value",
        )

    def shares_name(self, names: str, by_number: str, number: str) -> str:
        """MariaDB compares names as they are written: both must be escaped alike."""
        others = f"JSON_EXTRACT({by_number}, CONCAT('$.\"', {number}, '\"'))"
        return f"({names} IS NULL OR COALESCE(JSON_OVERLAPS({names}, {others}), TRUE))"

    def text_literal(self, text: str) -> str:
        return super().text_literal(text).replace("\\", "\\\\")

    def updated(self, found: int) -> int:
        """A row that an INSERT changes counts twice."""
        return (found + 1) // 2

    def utc(self, value: str, zone: str) -> SQL:
        return SQL(f"CONVERT_TZ({value}, %s, '+00:00')", (zone.removeprefix("UTC"),))
