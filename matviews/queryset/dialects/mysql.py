"""MariaDB and MySQL.

Measured on MariaDB 10.11: an UPDATE or DELETE that reads the source share-locks its rows or entries of
its indexes even in READ COMMITTED; an INSERT or CREATE TABLE that selects from it does not.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..fields import NUMBER, TEXT, WHOLE, AnyField, family
from ..keys import Key
from ..query import field_of_column
from ..source import Column
from ..sql import SQL, equal, joined, qualified
from .base import ROWS, Dialect

__all__ = ["MySQL"]

SURPLUS = "matviews_surplus"
TYPED = {"date": "CAST(%s AS DATE)", "date and time": "CAST(%s AS DATETIME(6))"}


class MySQL(Dialect):
    """Texts are compared as bytes: the usual collations take "a" for "A", and "a" for "a "."""

    def logged(self, table: str, columns: Sequence[str], rows: Collection[Sequence[Any]]) -> SQL:
        """As the base class has it; beside the table's own columns, texts take their collations."""
        fields = (field_of_column(table, column) for column in columns)
        marks = ", ".join(TYPED.get(family(field) if field else "", "%s") for field in fields)
        names = ", ".join(map(self.name, columns))
        empty = f"SELECT {names} FROM {self.name(table)} WHERE 1 = 0"
        params = tuple(value for row in rows for value in row)
        return SQL(empty + f" UNION ALL SELECT {marks}" * len(rows), params)

    def stored(self, column: Column, value: str) -> str:
        """As the base class has it; CAST would clip what assigning refuses."""
        if family(column.field) in (WHOLE, NUMBER):
            return self.rounded(column, value)
        return value

    def unlike(self, field: AnyField, left: str, right: str) -> str:
        """As the base class has it."""
        if self.folds(field) or (family(field) == "JSON" and self.connection.mysql_is_mariadb):
            left, right = (f"BINARY CONVERT({each} USING utf8mb4)" for each in (left, right))
        return f"NOT ({left} <=> {right})"

    def folds(self, field: AnyField) -> bool:
        """As the base class has it."""
        return family(field) == TEXT

    def opaque(self, condition: SQL) -> SQL:
        """As the base class has it.

        MariaDB 10.11 looks for an index in a comparison of rows even where they are of several tables. It then
        computes an expression of a table that it has not read yet, and may find that no row can be.
        """
        return SQL(f"IF({condition.text}, 1, 0)", condition.params)

    def beyond(self, columns: Sequence[str], sign: str, end: Key) -> SQL:
        """As the base class has it; a comparison of rows would not use an index."""
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
    ) -> list[SQL]:
        """As the base class has it, by way of a temporary table, which commits nothing."""
        same = equal(qualified(ROWS, key), qualified(table, key))
        condition = joined(" AND ", [*where, SQL(f"{ROWS}.{key[0]} IS NULL")])
        named = {f"pk{place}": name for place, name in enumerate(pk)}
        selected = ", ".join(f"{name} AS {alias}" for alias, name in named.items())
        matched = equal(named.values(), qualified(SURPLUS, named))
        drop = SQL(f"DROP TEMPORARY TABLE IF EXISTS {SURPLUS}")
        find = SQL(
            f"CREATE TEMPORARY TABLE {SURPLUS} AS SELECT {selected} FROM {table} "
            f"LEFT JOIN ({keys.text}) {ROWS} ON {same} WHERE {condition.text}",
            (*keys.params, *condition.params),
        )
        remove = SQL(f"DELETE {table} FROM {table} JOIN {SURPLUS} ON {matched}")
        return [drop, find, remove, drop]

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
        """As the base class has it.

        An INSERT of rows that are there, with their primary keys, so that no other unique
        constraint decides which row is written.

        A condition on keys of the view goes into the query for the new rows as well, by what is equal
        to them: see `opaque`. Some keys lead to the view without it.
        """
        new = {name.removeprefix(f"{table}."): name for name in pk}
        new |= {name: f"{ROWS}.{name}" for name in (*key, *values)}
        columns, selected = ", ".join(new), ", ".join(new.values())
        same = equal(qualified(table, key), qualified(ROWS, key))
        sets = ", ".join(f"{value} = VALUES({value})" for value in values)
        join, where = ("STRAIGHT_JOIN", self.opaque(where)) if keyed else ("JOIN", where)
        return SQL(
            f"INSERT INTO {table} ({columns}) SELECT {selected} FROM ({rows.text}) {ROWS} {join} {table} "
            f"ON {same} WHERE {where.text} ON DUPLICATE KEY UPDATE {sets}",
            (*rows.params, *where.params),
        )

    def updated(self, found: int) -> int:
        """As the base class has it: a row that an INSERT changes counts twice."""
        return (found + 1) // 2

    def utc(self, value: str, zone: str) -> SQL:
        """As the base class has it."""
        return SQL(f"CONVERT_TZ({value}, %s, '+00:00')", (zone.removeprefix("UTC"),))
