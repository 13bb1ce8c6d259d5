"""PostgreSQL: one trigger per statement, which sees all the rows that the statement has changed."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from .base import PATIENCE, TriggerDialect

__all__ = ["PostgreSQLTriggers"]

BEFORE, AFTER = "matviews_before", "matviews_after"
TRANSITIONS = {
    "insert": f"REFERENCING NEW TABLE AS {AFTER}",
    "update": f"REFERENCING OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}",
    "delete": f"REFERENCING OLD TABLE AS {BEFORE}",
    "truncate": "",
}


class PostgreSQLTriggers(TriggerDialect):
    """Which rows are the same does not matter: no source can tell rows apart that are alike in all
    that it reads.
    """

    events: ClassVar[tuple[str, ...]] = ("insert", "update", "delete", "truncate")
    catalog = (
        "SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE t.tgname LIKE %s AND t.tgenabled IN ('O', 'A') AND pg_table_is_visible(c.oid)"
    )

    def statements(
        self, name: str, event: str, table: str, columns: Collection[str] | None
    ) -> Iterator[str]:
        """As the base class has it. The function writes the log with the rights of its owner, for
        those who may write to the table need not have them.
        """
        function = f"{self.name(self._schema)}.{self.name(name)}"
        log = f"INSERT INTO {self.log} ({self.logged_table}) VALUES ({self.literal(table)})"
        yield (
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql "
            f"SECURITY DEFINER SET search_path = {self.name(self._schema)}, pg_temp "
            f"SET extra_float_digits = 1 AS $matviews$ "
            f"BEGIN IF {self._changed(event, table, columns)} THEN {log}; END IF; RETURN NULL; END "
            f"$matviews$"
        )
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"{TRANSITIONS[event]} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )

    @property
    def _schema(self) -> str:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            return str(cursor.fetchone()[0])

    def _changed(self, event: str, table: str, columns: Collection[str] | None) -> str:
        if event == "truncate":
            return "true"
        if event != "update" or columns is None:
            rows = BEFORE if event == "delete" else AFTER
            return f"EXISTS (SELECT 1 FROM {rows})"
        values = ", ".join(self._value(table, column) for column in sorted(columns))
        return f"EXISTS (SELECT {values} FROM {BEFORE} EXCEPT ALL SELECT {values} FROM {AFTER})"

    def _value(self, table: str, column: str) -> str:
        """A column, as a text of bytes where values may be equal and yet not the same."""
        name = self.name(column)
        return name if self.is_exact(table, column) else f'{name}::text COLLATE "C"'

    def drop(self, table: str, names: Iterable[str]) -> list[str]:
        """As the base class has it; removing a function removes its trigger."""
        schema = self.name(self._schema)
        return [
            f"DROP FUNCTION IF EXISTS {schema}.{self.name(name)}() CASCADE"
            for name in sorted(names)
        ]

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
        """As the base class has it; a statement on one table of a family may change another."""
        faults = super().untrackable(tables)
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname FROM pg_class c WHERE relname = ANY(%s) AND pg_table_is_visible(oid) "
                "AND (relkind = 'p' OR EXISTS (SELECT 1 FROM pg_inherits i "
                "WHERE c.oid IN (i.inhrelid, i.inhparent)))",
                [list(tables)],
            )
            family = {name for (name,) in cursor.fetchall()}
        return faults | dict.fromkeys(family, "it is partitioned, or inherits from another table")

    @contextmanager
    def definitions(self) -> Iterator[None]:
        """As the base class has it."""
        with super().definitions():
            self.execute([f"SET LOCAL lock_timeout = '{PATIENCE}s'"])
            yield
