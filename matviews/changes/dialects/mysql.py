"""MariaDB and MySQL: a trigger per row. TRUNCATE and actions of foreign keys fire none."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from django.db import Error
from django.db.transaction import TransactionManagementError

from ..watched import Watch
from .base import PATIENCE, TriggerDialect, digest, digests

__all__ = ["MySQLTriggers"]

ACTION = "a foreign key of it has ON DELETE or ON UPDATE, which fires no trigger here"
ENGINE = (
    "its engine is not InnoDB, so what is rolled back of it and of the log need not be the same"
)
PARTITIONED = "it is partitioned, and partitions that are truncated or dropped fire no trigger here"


class MySQLTriggers(TriggerDialect):
    """A statement that makes or removes a trigger commits."""

    catalog: ClassVar[str] = (
        "SELECT event_object_table AS matviews_table, CONCAT(trigger_name, ':', "
        "COALESCE(UNIX_TIMESTAMP(created), '')) AS matviews_made FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE() AND trigger_name LIKE %s"
    )

    def literal(self, text: str) -> str:
        """As the base class has it; what a backslash is depends on `sql_mode`."""
        return f"_utf8mb4 X'{text.encode().hex()}'" if "\\" in text else super().literal(text)

    def statements(self, name: str, event: str, table: str, watch: Watch) -> Iterator[str]:
        """As the base class has it."""
        before, after = (
            f"INSERT INTO {self.logged} VALUES ({self.literal(table)}, {self.values(row, watch.links)});"
            for row in ("OLD", "NEW")
        )
        body = {"insert": after, "delete": before}.get(event, before)
        if event == "update" and watch.links:
            body += f" IF NOT ({self.same(table, watch.links)}) THEN {after} END IF;"
        if event == "update" and watch.columns is not None:
            body = f"IF NOT ({self.same(table, watch.columns)}) THEN {body} END IF;"
        muted = f"INSTR(COALESCE(@matviews_muted, ''), '{digest(table)}') = 0"
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"FOR EACH ROW BEGIN IF {muted} THEN {body} END IF; END"
        )

    @contextmanager
    def muted(self, tables: Collection[str]) -> Iterator[None]:
        """As the base class has it: by a variable of the session, which no rollback takes back."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @matviews_muted")
            before = cursor.fetchone()[0] or ""
            cursor.execute("SET @matviews_muted = %s", [f"{before} {digests(tables)}"])
        try:
            yield
        finally:
            with suppress(Error), self.connection.cursor() as cursor:  # if it is gone, so is that
                cursor.execute("SET @matviews_muted = %s", [before])

    def same(self, table: str, columns: Collection[str]) -> str:
        """As the base class has it."""
        return " AND ".join(self._same(table, column) for column in sorted(columns))

    def _same(self, table: str, column: str) -> str:
        before, after = (f"{row}.{self.name(column)}" for row in ("OLD", "NEW"))
        same = f"{before} <=> {after}"
        if self.is_exact(table, column):
            return same
        # As bytes too: "a" is "A" to most collations. Not only so: FLOAT shows six digits.
        return f"{same} AND CAST({before} AS BINARY) <=> CAST({after} AS BINARY)"

    def script(self, statements: Iterable[str]) -> str:
        """As the base class has it: a statement may have semicolons in it."""
        ended = "".join(f"{statement}\n//\n" for statement in statements)
        return ended and f"DELIMITER //\n{ended}DELIMITER ;\n"

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
        """As the base class has it."""
        faults = super().untrackable(tables)
        queries = {
            ACTION: "SELECT table_name FROM information_schema.referential_constraints "
            "WHERE constraint_schema = DATABASE() AND NOT (delete_rule IN ('RESTRICT', "
            "'NO ACTION') AND update_rule IN ('RESTRICT', 'NO ACTION'))",
            ENGINE: "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND engine <> 'InnoDB'",
            PARTITIONED: "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND create_options LIKE '%partitioned%'",
        }
        with self.connection.cursor() as cursor:
            for reason, query in queries.items():
                cursor.execute(query)
                found = {name for (name,) in cursor.fetchall()}
                faults |= dict.fromkeys(found.intersection(tables), reason)
        return faults

    @contextmanager
    def definitions(self) -> Iterator[None]:
        """As the base class has it: none, but no waiting for ever either.

        Raises:
            TransactionManagementError: within a transaction, which it would commit.
        """
        if self.connection.in_atomic_block:
            raise TransactionManagementError(
                "To make or remove a trigger would commit the transaction that is under way."
            )
        self.execute(
            [f"SET @matviews_patience = @@lock_wait_timeout, lock_wait_timeout = {PATIENCE}"]
        )
        try:
            yield
        finally:
            self.execute(["SET lock_wait_timeout = @matviews_patience"])
