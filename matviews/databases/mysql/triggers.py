"""MariaDB and MySQL: a trigger per row. TRUNCATE and foreign key actions fire none."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from django.db import DatabaseError, Error
from django.db.transaction import TransactionManagementError

from ..base.triggers import (
    MAX_LINK_BYTES,
    NAME_REGEX,
    TOO_LONG,
    TriggerName,
    Triggers,
    digest,
    json_of,
)
from ..trigger_spec import TriggerSpec

__all__ = ["MySQLTriggers"]

ACTION = "it has a foreign key with ON DELETE or ON UPDATE, which fires no trigger here"
ENGINE = "its engine is not InnoDB, so a rollback undoes the log entry but not the change"
PARTITIONED = "it is partitioned, and truncating or dropping a partition fires no trigger here"
OTHER_DATABASE = "its name includes a database, and triggers work in the connection's database only"
PLAIN_MODE = "SET @matviews_sql_mode = @@sql_mode, sql_mode = ''"
NO_SUCH_COLUMN = 1054
# A session may set the time of its statements, but not that of SYSDATE, which no function returns
# in UTC.
UTC_NOW = "UTC_TIMESTAMP(6) + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND"
# A session may also set the next auto-increment value, which the first insert into any table would
# take.
OWN_NUMBER = "IF @@insert_id <> 0 THEN SET insert_id = 0; END IF;"
INTRODUCER = "_utf8mb4"  # the server may omit it when it shows a trigger
MODE_BACK = "SET sql_mode = @matviews_sql_mode"
# JSON escapes a byte as at most six. An array larger than a packet is NULL on MariaDB, an error on
# MySQL.
MAX_PACKET_BYTES = "@@max_allowed_packet DIV 8"
# Types whose text form is exact whatever the session's settings; for texts, in character sets that
# survive a conversion to UTF-8 and back.
WRITABLE = {
    *("tinyint", "smallint", "mediumint", "int", "bigint", "year", "decimal", "date", "datetime"),
    *("time", "uuid", "inet4", "inet6"),
}
TEXTS = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"}
CHARSETS = {"utf8mb4", "utf8mb3", "utf8", "latin1", "ascii"}


class MySQLTriggers(Triggers):
    """Creating or dropping a trigger commits."""

    catalog: ClassVar[str] = (
        "SELECT event_object_table AS matviews_table, CONCAT(trigger_name, ':', "
        "COALESCE(UNIX_TIMESTAMP(created), '')) AS matviews_made FROM information_schema.triggers "
        "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s"
    )

    def literal(self, text: str) -> str:
        """What a backslash means depends on `sql_mode`."""
        return f"{INTRODUCER} X'{text.encode().hex()}'" if "\\" in text else super().literal(text)

    def __init__(self, using: str) -> None:
        super().__init__(using)
        columns = ", ".join(map(self.name, ("table", "links", "logged_at")))
        self.logged = f"{self.log} ({columns})"
        self._types: dict[str, dict[str, tuple[str, str]]] = {}

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """A trigger always runs with the `sql_mode` that it was created with."""
        yield PLAIN_MODE
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"FOR EACH ROW {self._action(event, table, spec)}"
        )
        yield MODE_BACK

    def _action(self, event: str, table: str, spec: TriggerSpec) -> str:
        """The body of a trigger.

        If a column that it names is gone, only that error is handled: any row may have changed. It
        is raised before the statement does anything, so it leaves no lock and no rollback behind.
        """
        before, after = (
            f"INSERT INTO {self.logged} "
            f"VALUES ({self.literal(table)}, {self._links(table, row, spec)}, {UTC_NOW});"
            for row in ("OLD", "NEW")
        )
        body = {"insert": after, "delete": before}.get(event, before)
        if event == "update" and spec.links:
            body += f" IF NOT ({self._same(table, spec.links)}) THEN {after} END IF;"
        if event == "update" and spec.columns is not None:
            body = f"IF NOT ({self._same(table, spec.columns)}) THEN {body} END IF;"
        gone = (
            f"DECLARE EXIT HANDLER FOR {NO_SUCH_COLUMN} "
            f"INSERT INTO {self.logged} VALUES ({self.literal(table)}, NULL, {UTC_NOW}); "
            if "OLD." in body or "NEW." in body
            else ""
        )
        return f"matviews: BEGIN {gone}{self._leave_if_suppressed(table)} {OWN_NUMBER} {body} END"

    def replaced(self, table: str, spec: TriggerSpec) -> set[str]:
        """A role that may create triggers of the table may read their bodies."""
        version = self.version(table, spec)
        required = {
            str(TriggerName(digest(table), version, event)): self._action(event, table, spec)
            for event in self.events_of(spec)
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

    def _leave_if_suppressed(self, table: str) -> str:
        """The secret is read only if the session claims to know it."""
        session = "CAST(COALESCE(@matviews_suppressed, '') AS BINARY)"
        value = f"{self.secrets}.{self.name('value')}"
        return (
            f"IF INSTR({session}, '{digest(table)}') > 0 "
            f"THEN IF EXISTS (SELECT 1 FROM {self.secrets} "
            f"WHERE CAST({value} AS BINARY) = SUBSTRING_INDEX({session}, ' ', 1)) "
            f"THEN LEAVE matviews; END IF; END IF;"
        )

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """With a session variable, which no rollback resets."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @matviews_suppressed")
            before = str(cursor.fetchone()[0] or "")
        password = self.password(before, tables, secret())
        with self.connection.cursor() as cursor:
            cursor.execute("SET @matviews_suppressed = %s", [password])
        try:
            yield
        finally:
            with (
                suppress(Error),
                self.connection.cursor() as cursor,
            ):  # a lost session has lost the variable too
                cursor.execute("SET @matviews_suppressed = %s", [before])

    def _links(self, table: str, row: str, spec: TriggerSpec) -> str:
        """The links of a row as a log entry has them, as JSON."""
        links = sorted(spec.links)
        if not links:
            return self._json([[]])
        if not all(self._is_writable(table, link) for link in links):
            return "NULL"
        texts = [f"CONVERT({row}.{self.name(link)} USING utf8mb4)" for link in links]
        # CONCAT of a NULL is NULL; in a JSON_ARRAY it would be null, which no refresh can read.
        entry = (
            f"CONCAT({self.literal(f'[{json_of(links)}, ')}, JSON_ARRAY({', '.join(texts)}), ']')"
        )
        sizes = [
            f"COALESCE(LENGTH({row}.{self.name(link)}), 0)"
            for link in links
            if self._type(table, link)[0] in TEXTS
        ]
        if not sizes:
            return entry
        size = " + ".join(sizes)
        return (
            f"IF({size} > {MAX_LINK_BYTES}, {self._json(TOO_LONG)}, "
            f"IF({size} > {MAX_PACKET_BYTES}, NULL, {entry}))"
        )

    def _json(self, value: object) -> str:
        return self.literal(json_of(value))

    def _is_writable(self, table: str, column: str) -> bool:
        kind, charset = self._type(table, column)
        return kind in WRITABLE or (kind in TEXTS and charset in CHARSETS)

    def _type(self, table: str, column: str) -> tuple[str, str]:
        """The type and character set of a column."""
        if table not in self._types:
            with self.connection.cursor() as cursor:
                cursor.execute(
                    "SELECT table_name, column_name, data_type, character_set_name "
                    "FROM information_schema.columns "
                    "WHERE table_schema = DATABASE() AND table_name = %s",
                    [table],
                )
                found = [row for name, *row in cursor.fetchall() if name == table]
            self._types[table] = {column: (kind, charset or "") for column, kind, charset in found}
        return self._types[table].get(column, ("", ""))

    def _same(self, table: str, columns: Collection[str]) -> str:
        """Whether columns of `OLD` and `NEW`, the row before and after a change, are the same."""
        return " AND ".join(self._same_value(table, column) for column in sorted(columns))

    def _same_value(self, table: str, column: str) -> str:
        before, after = (f"{row}.{self.name(column)}" for row in ("OLD", "NEW"))
        same, kind = f"{before} <=> {after}", self._type(table, column)[0]
        if kind == "timestamp":  # the session's time zone has one hour of the year twice
            return f"{same} AND UNIX_TIMESTAMP({before}) <=> UNIX_TIMESTAMP({after})"
        if kind in WRITABLE:
            return same
        # As bytes too, because in most collations "a" equals "A"; as values, because FLOAT shows
        # six digits.
        return f"{same} AND CAST({before} AS BINARY) <=> CAST({after} AS BINARY)"

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
        return faults | {table: OTHER_DATABASE for table in tables if "`.`" in table}

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
        self.execute([f"SET {', '.join(kept)}"])
        try:
            yield
        finally:
            back = [f"{name} = @matviews_own_{name}" for name in limits]
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
