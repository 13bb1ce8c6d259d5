"""The tables of additive views on MariaDB and MySQL."""

from collections.abc import Sequence

from django.db import connections

from ..base.sums import ENTRY, WEIGHT, SumTables
from ..sql import SQL

__all__ = ["MySQLSumTables"]


COPY = "matviews_trimmed"


class MySQLSumTables(SumTables):
    """The entries of a log are numbered: whatever else is locked, one is found by its number."""

    adds_decimals = True
    #: A trigger runs without strict mode, so that it never makes a writer fail.
    stores_what_fits = True
    copies_collations = True

    def create_log(self, log: str, table: str, columns: Sequence[str]) -> list[str]:
        """Its columns may be NULL: an entry may have no values."""
        name, names = self.name(log), ", ".join(map(self.name, columns))
        nothing = ", ".join(f"NULLIF({each}, {each}) AS {each}" for each in map(self.name, columns))
        created = (
            f"CREATE TABLE {name} ({ENTRY} BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, "
            f"{WEIGHT} BIGINT NULL) ENGINE = InnoDB "
            f"SELECT {names} FROM (SELECT {names} FROM {self.name(table)} UNION ALL "
            f"SELECT {nothing} FROM {self.name(table)}) matviews_nothing LIMIT 0"
        )
        return [created]

    def sum_type(self, places: int) -> str:
        return f"DECIMAL(65, {places})"

    def whole(self, value: str) -> str:
        return f"CAST({value} AS SIGNED)"

    def exact(self, value: str, places: int) -> str:
        return f"CAST({value} AS {self.sum_type(places)})"

    def mean(self, total: str, count: str, places: int) -> str:
        """Rounded, as AVG is where a query of groups is part of another one."""
        return f"ROUND({total} / {count}, {places} + @@div_precision_increment)"

    def suspect(self, places: Sequence[int]) -> str:
        return " OR ".join(self._impossible(places))

    def upsert(self, table: str, columns: Sequence[str], key: Sequence[str], rows: SQL) -> SQL:
        sets = ", ".join(
            f"{name} = {table}.{name} + VALUES({name})" for name in columns[len(key) :]
        )
        return SQL(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM ({rows.text}) added "
            f"ORDER BY {', '.join(key)} ON DUPLICATE KEY UPDATE {sets}",
            rows.params,
        )

    entry = ENTRY

    def temporary(self, name: str) -> str:
        return name

    def copy_entries(self, copy: str, log: str) -> str:
        return f"CREATE TEMPORARY TABLE {copy} SELECT * FROM {log}"

    def drop_copy(self, copy: str) -> str:
        return f"DROP TEMPORARY TABLE IF EXISTS {copy}"

    def delete_copied(self, copy: str, log: str) -> str:
        """By number: a scan of the log would wait for entries that are not committed."""
        return f"DELETE {log} FROM {copy} STRAIGHT_JOIN {log} ON {log}.{ENTRY} = {copy}.{ENTRY}"

    def trim(self, log: str, most: int) -> list[str]:
        return [
            self.drop_copy(COPY),
            f"CREATE TEMPORARY TABLE {COPY} SELECT {ENTRY} FROM {log} LIMIT {most}",
            self.delete_copied(COPY, log),
            self.drop_copy(COPY),
        ]

    def columns(self, table: str) -> dict[str, str]:
        with connections[self.using].cursor() as cursor:
            cursor.execute(
                "SELECT column_name, CONCAT_WS(' ', column_type, collation_name) "
                "FROM information_schema.columns "
                "WHERE table_schema = DATABASE() AND table_name = %s",
                [table],
            )
            return dict(cursor.fetchall())
