"""MariaDB and MySQL: a trigger per row. TRUNCATE and foreign key actions fire none.

What foreign keys change is logged by triggers of the tables that they reference.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from django.db import DatabaseError, Error
from django.db.transaction import TransactionManagementError

from ..base.triggers import NAME_REGEX, TriggerName, digest
from ..trigger_spec import TriggerSpec
from .cascades import CascadeTriggers
from .trigger_sql import BATCH, INTRODUCER, MODE_BACK, PLAIN_MODE, SUPPRESSED

__all__ = ["MySQLTriggers"]

ACTION = (
    "it has a foreign key with ON DELETE or ON UPDATE to a table in another database, which fires "
    "no trigger here"
)
ENGINE = "its engine is not InnoDB, so a rollback undoes the log entry but not the change"
PARTITIONED = "it is partitioned, and truncating or dropping a partition fires no trigger here"
# InnoDB names tables as their files, where `-` is `@002d`.
TABLE_NAME = (
    "CONVERT(CONVERT(CONVERT(SUBSTRING_INDEX(name, '/', -1) USING binary) USING filename) "
    "USING utf8mb4)"
)
DATABASE_PART = "CONVERT(SUBSTRING_INDEX(name, '/', 1) USING binary)"
OWN_PART = "CONVERT(CONVERT(DATABASE() USING filename) USING binary)"
TABLE_ID, NEXT_NUMBER = "table:", "next:"
CASCADE_REGEX = "^matviews_[0-9a-f]{8}_[0-9a-f]{8}_[a-z]+_[0-9a-f]{8}$"
OTHER_DATABASE = "its name includes a database, and triggers work in the connection's database only"


class MySQLTriggers(CascadeTriggers):
    """Creating or dropping a trigger commits."""

    # For a trigger on another table, matviews_table is the digest of the table that it logs for.
    catalog: ClassVar[str] = (
        f"SELECT CONVERT(IF(trigger_name REGEXP '{CASCADE_REGEX}' AND "
        "LEFT(SHA2(event_object_table, 256), 8) = SUBSTRING_INDEX(trigger_name, '_', -1), "
        "SUBSTR(trigger_name, 10, 8), event_object_table) USING utf8mb4) "
        "COLLATE utf8mb4_bin AS matviews_table, "
        "CONCAT(trigger_name, ':', COALESCE(UNIX_TIMESTAMP(created), '')) AS matviews_made "
        "FROM information_schema.triggers "
        "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s"
    )

    def installed_sql(self, table: str) -> str:
        """Both kinds of triggers."""
        either = f"IN ({table}, LEFT(SHA2({table}, 256), 8))"
        return (
            f"(SELECT GROUP_CONCAT(matviews_all SEPARATOR ' ') FROM (SELECT matviews_table, "
            f"{self.concat_sql} AS matviews_all FROM ({self.catalog}) matviews_present "
            f"GROUP BY matviews_table) matviews_grouped "
            f"WHERE matviews_grouped.matviews_table {either})"
        )

    def installed_triggers(self) -> dict[str, dict[str, str]]:
        found = super().installed_triggers()
        tables = {digest(table): table for table in found}
        for of in [each for each in found if each in tables]:
            found[tables[of]] |= found.pop(of)
        return found

    def replaced(self, table: str, spec: TriggerSpec) -> set[str]:
        """A role that may create triggers of the table may read their bodies."""
        version = self.version(table, spec)
        required = {
            str(TriggerName(digest(table), version, event)): body
            for event, body in self._bodies(table, spec).items()
        }
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT trigger_name, action_statement FROM information_schema.triggers "
                "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s",
                self.NAME_PATTERN,
            )
            return {
                name
                for name, action in cursor.fetchall()
                if name in required
                and action is not None
                and action.replace(INTRODUCER, "") != required[name].replace(INTRODUCER, "")
            }

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """With a session variable, which no rollback resets."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT {SUPPRESSED}")
            before = str(cursor.fetchone()[0] or "")
        with self._set(SUPPRESSED, self.password(before, tables, secret()), before):
            yield

    @contextmanager
    def as_batch(self, table: str, secret: str) -> Iterator[None]:
        """With a session variable, which the block resets before anything else can use it."""
        with self._set(BATCH, self.password("", [table], secret), ""):
            yield

    @contextmanager
    def _set(self, variable: str, value: str, before: str) -> Iterator[None]:
        """A context with a value of a session variable; a lost session has lost it too.

        A session that cannot be reset is closed.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET {variable} = %s", [value])
        raw = self.connection.connection
        try:
            yield
        finally:
            if self.connection.connection is raw:
                try:
                    # Django refuses statements after an error in the transaction.
                    with self.connection.wrap_database_errors, raw.cursor() as cursor:
                        cursor.execute(f"SET {variable} = %s", [before])
                except Error:
                    self.connection.close()

    def ownerless(self) -> dict[str, str]:
        """Finds none if this account may not read the accounts.

        Finds none in a transaction either: after MariaDB's table of accounts has been read, no
        savepoint can be set.
        """
        if self.connection.in_atomic_block:
            return {}
        with self.connection.cursor() as cursor:
            try:
                cursor.execute("SELECT user, host FROM mysql.user")
            except Error:
                return {}
            accounts = {f"{user}@{host}" for user, host in cursor.fetchall()}
            cursor.execute(
                "SELECT trigger_name, definer FROM information_schema.triggers "
                "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s",
                self.NAME_PATTERN,
            )
            return {
                name: definer
                for name, definer in cursor.fetchall()
                if NAME_REGEX.fullmatch(name) and definer not in accounts
            }

    def script(self, statements: Iterable[str]) -> str:
        """A statement may contain semicolons."""
        ended = "".join(f"{statement}\n//\n" for statement in statements)
        return ended and f"DELIMITER //\n{ended}DELIMITER ;\n"

    def untrackable_tables(self, tables: Collection[str]) -> dict[str, str]:
        faults = super().untrackable_tables(tables)
        queries = {
            ACTION: "SELECT table_name FROM information_schema.referential_constraints "
            "WHERE constraint_schema = DATABASE() AND unique_constraint_schema <> DATABASE() "
            "AND NOT (delete_rule IN ('RESTRICT', 'NO ACTION') "
            "AND update_rule IN ('RESTRICT', 'NO ACTION'))",
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
        return faults | {table: OTHER_DATABASE for table in tables if "`.`" in table}

    def storage(self, tables: Collection[str]) -> dict[str, str]:
        """InnoDB's ID of each table, which only an account with PROCESS can see.

        Without PROCESS, the next AUTO_INCREMENT value, which nothing else lowers.
        """
        with self.connection.cursor() as cursor:
            source = "innodb_sys_tables" if self.connection.mysql_is_mariadb else "innodb_tables"
            try:
                cursor.execute(
                    f"SELECT {TABLE_NAME}, table_id FROM information_schema.{source} "
                    f"WHERE {DATABASE_PART} = {OWN_PART}"
                )
                ids = {name: f"{TABLE_ID}{number}" for name, number in cursor}
            except DatabaseError:
                cursor.execute(
                    "SELECT table_name, auto_increment FROM information_schema.tables "
                    "WHERE table_schema = DATABASE() AND auto_increment IS NOT NULL"
                )
                ids = {name: f"{NEXT_NUMBER}{number}" for name, number in cursor}
        return {table: ids[table] for table in tables if table in ids}

    def was_truncated(self, before: str, now: str) -> bool:
        """False if one is an ID and the other is not: accounts differ in what they see."""
        kinds = {text.partition(":")[0] for text in (before, now)}
        if len(kinds) > 1 or before == now:
            return False
        numbers = [int(text.partition(":")[2]) for text in (before, now)]
        return before.startswith(TABLE_ID) or numbers[1] < numbers[0]

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """No transaction, because each statement commits.

        A wait for a lock, or silence in a transaction, ends after a second.

        Raises:
            TransactionManagementError: within a transaction, which it would commit.
        """
        if self.connection.in_atomic_block:
            raise TransactionManagementError(
                "Creating or dropping a trigger would commit the current transaction."
            )
        limits = ["lock_wait_timeout", "innodb_lock_wait_timeout"]
        if self.connection.mysql_is_mariadb:
            limits.append("idle_transaction_timeout")
        kept = [f"@matviews_own_{name} = @@{name}, {name} = 1" for name in limits]
        kept.append("@matviews_own_sql_mode = @@sql_mode")  # PLAIN_MODE stays after an error
        self.execute([f"SET {', '.join(kept)}"])
        try:
            yield
        finally:
            back = [f"{name} = @matviews_own_{name}" for name in (*limits, "sql_mode")]
            self.execute([f"SET {', '.join(back)}"])

    def is_locked(self, error: DatabaseError) -> bool:
        return error.args[:1] in ((1205,), (1213,))

    def saved(self, names: Iterable[str]) -> dict[str, str]:
        found = {}
        with self.connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"SHOW CREATE TRIGGER {self.name(name)}")
                found[name] = cursor.fetchone()[2]
        return found

    def lost(self, saved: dict[str, str]) -> list[str]:
        there = {name for made in self.installed_triggers().values() for name in made}
        lost = [statement for name, statement in saved.items() if name not in there]
        return [PLAIN_MODE, *lost, MODE_BACK] if lost else []
