"""MariaDB and MySQL: a trigger per row. TRUNCATE and actions of foreign keys fire none."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from django.db import DatabaseError, Error
from django.db.transaction import TransactionManagementError

from ..base.triggers import MAX_LINK_BYTES, OURS, TOO_LONG, TriggerName, Triggers, digest, json_of
from ..trigger_spec import TriggerSpec

__all__ = ["MySQLTriggers"]

ACTION = "a foreign key of it has ON DELETE or ON UPDATE, which fires no trigger here"
ENGINE = (
    "its engine is not InnoDB, so what is rolled back of it and of the log need not be the same"
)
PARTITIONED = "it is partitioned, and partitions that are truncated or dropped fire no trigger here"
OTHER_DATABASE = "its name names a database, and triggers are made in the connection's own alone"
PLAIN_MODE = "SET @matviews_sql_mode = @@sql_mode, sql_mode = ''"
NO_SUCH_COLUMN = 1054
# A session may set the time that its statements have, but not that of SYSDATE, which no function gives in UTC.
MOMENT = "UTC_TIMESTAMP(6) + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND"
# A session may also choose the next number that a statement counts up to, whichever table is the first to.
OWN_NUMBER = "IF @@insert_id <> 0 THEN SET insert_id = 0; END IF;"
INTRODUCER = "_utf8mb4"  # which the server may leave out of what it shows
MODE_BACK = "SET sql_mode = @matviews_sql_mode"
# JSON writes a byte as six at most. An array larger than a packet is NULL on MariaDB and an error on MySQL.
MAX_PACKET_BYTES = "@@max_allowed_packet DIV 8"
# Types whose texts hold all of a value, whatever the session's settings are; of texts, with the sets of
# characters that come back from UTF-8 as they were.
WRITABLE = {
    *("tinyint", "smallint", "mediumint", "int", "bigint", "year", "decimal", "date", "datetime"),
    *("time", "uuid", "inet4", "inet6"),
}
TEXTS = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"}
CHARSETS = {"utf8mb4", "utf8mb3", "utf8", "latin1", "ascii"}


class MySQLTriggers(Triggers):
    """A statement that makes or removes a trigger commits."""

    catalog: ClassVar[str] = (
        "SELECT event_object_table AS matviews_table, CONCAT(trigger_name, ':', "
        "COALESCE(UNIX_TIMESTAMP(created), '')) AS matviews_made FROM information_schema.triggers "
        "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s"
    )

    def literal(self, text: str) -> str:
        """What a backslash is depends on `sql_mode`."""
        return f"{INTRODUCER} X'{text.encode().hex()}'" if "\\" in text else super().literal(text)

    def __init__(self, using: str) -> None:
        super().__init__(using)
        columns = ", ".join(map(self.name, ("table", "links", "logged_at")))
        self.logged = f"{self.log} ({columns})"
        self._types: dict[str, dict[str, tuple[str, str]]] = {}

    def statements(self, name: str, event: str, table: str, spec: TriggerSpec) -> Iterator[str]:
        """What `sql_mode` is when a trigger is made, it is whenever it runs."""
        yield PLAIN_MODE
        yield (
            f"CREATE TRIGGER {self.name(name)} AFTER {event.upper()} ON {self.name(table)} "
            f"FOR EACH ROW {self._action(event, table, spec)}"
        )
        yield MODE_BACK

    def _action(self, event: str, table: str, spec: TriggerSpec) -> str:
        """What a trigger does.

        Where a column that is named here is gone, that alone is handled: any row may have changed. It is
        found out before the statement does anything, so no lock, and no rollback, is behind it.
        """
        before, after = (
            f"INSERT INTO {self.logged} VALUES ({self.literal(table)}, {self._links(table, row, spec)}, {MOMENT});"
            for row in ("OLD", "NEW")
        )
        body = {"insert": after, "delete": before}.get(event, before)
        if event == "update" and spec.links:
            body += f" IF NOT ({self._same(table, spec.links)}) THEN {after} END IF;"
        if event == "update" and spec.columns is not None:
            body = f"IF NOT ({self._same(table, spec.columns)}) THEN {body} END IF;"
        gone = (
            f"DECLARE EXIT HANDLER FOR {NO_SUCH_COLUMN} "
            f"INSERT INTO {self.logged} VALUES ({self.literal(table)}, NULL, {MOMENT}); "
            if "OLD." in body or "NEW." in body
            else ""
        )
        return f"matviews: BEGIN {gone}{self._leave_if_suppressed(table)} {OWN_NUMBER} {body} END"

    def replaced(self, table: str, spec: TriggerSpec) -> set[str]:
        """Who may make triggers of the table sees what they do."""
        version = self.version(table, spec)
        wanted = {
            str(TriggerName(digest(table), version, event)): self._action(event, table, spec)
            for event in self.events_of(spec)
        }
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT trigger_name, action_statement FROM information_schema.triggers "
                "WHERE event_object_schema = DATABASE() AND trigger_name LIKE %s",
                self.ours,
            )
            return {
                name
                for name, action in cursor.fetchall()
                if name in wanted
                and action is not None
                and action.replace(INTRODUCER, "") != wanted[name].replace(INTRODUCER, "")
            }

    def _leave_if_suppressed(self, table: str) -> str:
        """The secret is read where the session says that it knows it, and not else."""
        session = "CAST(COALESCE(@matviews_suppressed, '') AS BINARY)"
        value = f"{self.secrets}.{self.name('value')}"
        return (
            f"IF INSTR({session}, '{digest(table)}') > 0 THEN IF EXISTS (SELECT 1 FROM {self.secrets} "
            f"WHERE CAST({value} AS BINARY) = SUBSTRING_INDEX({session}, ' ', 1)) "
            f"THEN LEAVE matviews; END IF; END IF;"
        )

    @contextmanager
    def suppressed(self, tables: Collection[str], secret: Callable[[], str]) -> Iterator[None]:
        """By a variable of the session, which no rollback takes back."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @matviews_suppressed")
            before = str(cursor.fetchone()[0] or "")
        password = self.password(before, tables, secret())
        with self.connection.cursor() as cursor:
            cursor.execute("SET @matviews_suppressed = %s", [password])
        try:
            yield
        finally:
            with suppress(Error), self.connection.cursor() as cursor:  # if it is gone, so is that
                cursor.execute("SET @matviews_suppressed = %s", [before])

    def _links(self, table: str, row: str, spec: TriggerSpec) -> str:
        """The links of a row as an entry of the log has them, as JSON."""
        links = sorted(spec.links)
        if not links:
            return self._json([[]])
        if not all(self._is_writable(table, link) for link in links):
            return "NULL"
        texts = [f"CONVERT({row}.{self.name(link)} USING utf8mb4)" for link in links]
        # CONCAT of a NULL is NULL; a JSON_ARRAY around it would hold null, which no refresh can read.
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
        return f"IF({size} > {MAX_LINK_BYTES}, {self._json(TOO_LONG)}, IF({size} > {MAX_PACKET_BYTES}, NULL, {entry}))"

    def _json(self, value: object) -> str:
        return self.literal(json_of(value))

    def _is_writable(self, table: str, column: str) -> bool:
        kind, charset = self._type(table, column)
        return kind in WRITABLE or (kind in TEXTS and charset in CHARSETS)

    def _type(self, table: str, column: str) -> tuple[str, str]:
        """The type of a column, and its character set."""
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
        """A condition on `OLD` and `NEW`, a row before and after a change: the columns are the same."""
        return " AND ".join(self._same_value(table, column) for column in sorted(columns))

    def _same_value(self, table: str, column: str) -> str:
        before, after = (f"{row}.{self.name(column)}" for row in ("OLD", "NEW"))
        same, kind = f"{before} <=> {after}", self._type(table, column)[0]
        if kind == "timestamp":  # one hour of the year comes twice in the session's time zone
            return f"{same} AND UNIX_TIMESTAMP({before}) <=> UNIX_TIMESTAMP({after})"
        if kind in WRITABLE:
            return same
        # As bytes too: "a" is "A" to most collations. Not only so: FLOAT shows six digits.
        return f"{same} AND CAST({before} AS BINARY) <=> CAST({after} AS BINARY)"

    def ownerless(self) -> dict[str, str]:
        """None to an account that may not read who there is.

        None within a transaction either: one that has read MariaDB's table of accounts can set no savepoint.
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
                self.ours,
            )
            return {
                name: definer
                for name, definer in cursor.fetchall()
                if OURS.fullmatch(name) and definer not in accounts
            }

    def script(self, statements: Iterable[str]) -> str:
        """A statement may have semicolons in it."""
        ended = "".join(f"{statement}\n//\n" for statement in statements)
        return ended and f"DELIMITER //\n{ended}DELIMITER ;\n"

    def untrackable(self, tables: Collection[str]) -> dict[str, str]:
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
        return faults | {table: OTHER_DATABASE for table in tables if "`.`" in table}

    @contextmanager
    def definitions(self, tables: int = 1) -> Iterator[None]:
        """No transaction, for each statement commits. A wait for a lock, or silence in a transaction, ends after a second.

        Raises:
            TransactionManagementError: within a transaction, which it would commit.
        """
        if self.connection.in_atomic_block:
            raise TransactionManagementError(
                "To make or remove a trigger would commit the transaction that is under way."
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

    def is_held(self, error: DatabaseError) -> bool:
        return error.args[:1] in ((1205,), (1213,))

    def saved(self, names: Iterable[str]) -> dict[str, str]:
        found = {}
        with self.connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"SHOW CREATE TRIGGER {self.name(name)}")
                found[name] = cursor.fetchone()[2]
        return found

    def lost(self, saved: dict[str, str]) -> list[str]:
        there = {name for made in self.present().values() for name in made}
        lost = [statement for name, statement in saved.items() if name not in there]
        return [PLAIN_MODE, *lost, MODE_BACK] if lost else []
