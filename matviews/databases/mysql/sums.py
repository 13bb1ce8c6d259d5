"""The tables of additive views on MariaDB and MySQL."""

import re
from collections.abc import Mapping, Sequence

from django.db import connections

from ..base.sums import ENTRY, SumColumns, SumTables
from ..base.triggers import CHANGE_LOG
from ..sql import SQL
from .staging import MySQLStaging

__all__ = ["MySQLSumTables"]

TRIMMED = 5_000  # entries per statement
EXACT_TYPE = re.compile(r"(\w*text|varchar|char|enum|date|datetime|timestamp|uuid)\b")
EXACT_NUMBER = re.compile(r"(tiny|small|medium|big)?int\b|decimal\(\d+,(?P<places>\d+)\)")


class MySQLSumTables(SumTables):
    """The entries of a log are numbered: whatever else is locked, one is found by its number."""

    adds_decimals = True
    has_doubts = False
    larger, smaller = "GREATEST", "LEAST"
    #: A trigger runs without strict mode, so that it never makes a writer fail.
    stores_what_fits = True
    copies_collations = True

    numbered = (f"{ENTRY} BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",)
    nullable = " NULL"

    def present(self) -> set[str]:
        """Django would read the comments too, for which the server opens every table."""
        staging = MySQLStaging(self.using)
        return set(staging.tables(staging.home(CHANGE_LOG)))

    def create_log(self, log: str, columns: Mapping[str, tuple[str, str]]) -> str:
        return f"{super().create_log(log, columns)} ENGINE = InnoDB"

    reserved = ()

    def accepts(self, kind: str, places: int | None) -> bool:
        if places is None:
            return bool(EXACT_NUMBER.match(kind) or EXACT_TYPE.match(kind))
        found = EXACT_NUMBER.match(kind)
        return found is not None and int(found["places"] or 0) == places  # AVG has four more

    def is_unique(self, table: str, columns: Sequence[str]) -> bool:
        connection = connections[self.using]
        with connection.cursor() as cursor:
            found = connection.introspection.get_constraints(cursor, table).values()
        return any(
            (each["unique"] or each["primary_key"]) and set(each["columns"]) == {*columns}
            for each in found
        )

    def identity(self, column: str) -> str:
        return f"{column}, CAST({column} AS BINARY)"  # in most collations "a" equals "A"

    def sum_type(self, places: int) -> str:
        return f"DECIMAL(65, {places})"

    def whole(self, value: str) -> str:
        return f"CAST({value} AS SIGNED)"

    def exact(self, value: str, places: int) -> str:
        return f"CAST({value} AS {self.sum_type(places)})"

    def wide(self, column: str) -> str:
        return f"CAST({column} AS DECIMAL(65))"

    def mean(self, total: str, count: str, places: int) -> str:
        """Rounded, as AVG is where a query of groups is part of another one."""
        return f"ROUND({total} / {count}, {places} + @@div_precision_increment)"

    def suspect(self, places: Sequence[int | None]) -> str:
        return " OR ".join(self._impossible(places))

    def upsert(self, table: str, columns: SumColumns, rows: SQL) -> SQL:
        names = ", ".join(columns.all)
        return SQL(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM ({rows.text}) added "
            f"ORDER BY {', '.join(columns.key)} "
            f"ON DUPLICATE KEY UPDATE {self._sets(table, columns, 'VALUES({})')}",
            rows.params,
        )

    entry = ENTRY

    def temporary(self, name: str) -> str:
        return name

    def drop_copy(self, copy: str) -> str:
        return f"DROP TEMPORARY TABLE IF EXISTS {copy}"

    def delete_copied(self, copy: str, log: str, where: str = "1 = 1") -> str:
        """By number: a scan of the log would wait for entries that are not committed."""
        return (
            f"DELETE {log} FROM {copy} STRAIGHT_JOIN {log} ON {log}.{ENTRY} = {copy}.{ENTRY} "
            f"WHERE {where}"
        )

    def trim(self, log: str, most: int) -> None:
        """Without a temporary table: a role that may create none must not let a disk fill up."""
        with connections[self.using].cursor() as cursor:
            cursor.execute(f"SELECT {ENTRY} FROM {log} LIMIT {most}")
            found = [str(number) for (number,) in cursor.fetchall()]
            for start in range(0, len(found), TRIMMED):
                listed = ", ".join(found[start : start + TRIMMED])
                cursor.execute(f"DELETE FROM {log} WHERE {ENTRY} IN ({listed})")
