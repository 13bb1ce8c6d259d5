"""MariaDB and MySQL: timeouts belong to the session, so each transaction sets and restores them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from django.db import Error
from django.db.models import QuerySet

from ..base.sessions import Compiled, Limits, Sessions, milliseconds, whole_seconds
from ..compiled import CompiledSelect, CompiledUpdate

__all__ = ["MySQLSessions"]

WITHOUT_WAITING = ("SET STATEMENT innodb_lock_wait_timeout = 0 FOR ", "")
#: By connection, how deeply these contexts are nested.
_DEPTHS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class MySQLSessions(Sessions):
    """Where MariaDB and MySQL differ, MariaDB has a setting that MySQL lacks."""

    @contextmanager
    def limited(
        self, limits: Limits, *, strict: bool, alone: bool, snapshot: bool = False
    ) -> Iterator[None]:
        """One statement saves the session's values, sets ours and begins; another restores them.

        A callback after commit may begin another transaction before that, so each depth saves the
        values under names of its own.
        """
        database = self.connection
        values = self._settings(limits)
        if strict:
            values["sql_mode"] = "CONCAT(@@SESSION.sql_mode, ',STRICT_TRANS_TABLES')"
        if alone:
            level = "tx_isolation" if database.mysql_is_mariadb else "transaction_isolation"
            values[level] = "'REPEATABLE-READ'" if snapshot else "'READ-COMMITTED'"
        depth = _DEPTHS[database] = _DEPTHS.get(database, 0) + 1
        saved = [f"@matviews_{depth}_{name} = @@SESSION.{name}" for name in values]
        ours = [f"SESSION {name} = {value}" for name, value in values.items()]
        restored = [f"SESSION {name} = @matviews_{depth}_{name}" for name in values]
        raw = database.connection
        try:
            self.execute(
                f"SET {', '.join([*saved, *ours, *(['autocommit = 0'] if alone else [])])}"
            )
            yield
        finally:
            _DEPTHS[database] = depth - 1
            if database.connection is raw:  # a new session has nothing to restore
                self._restore([*restored, *(["autocommit = 1"] if alone else [])])

    def _restore(self, settings: list[str]) -> None:
        try:
            self.execute(f"SET {', '.join(settings)}")
        except Error:
            if not self.connection.in_atomic_block:
                self.connection.close()

    def limit(self, limits: Limits) -> None:
        values = self._settings(limits).items()
        self.execute(f"SET {', '.join(f'SESSION {name} = {value}' for name, value in values)}")

    def _settings(self, limits: Limits) -> dict[str, float | str]:
        """MySQL can limit reading statements only; its other timeout ends a silent connection."""
        statement, lock, idle = limits
        waits: dict[str, float | str] = {
            "innodb_lock_wait_timeout": whole_seconds(lock),
            "lock_wait_timeout": whole_seconds(lock),
        }
        if self.connection.mysql_is_mariadb:
            ours = {
                "max_statement_time": statement,
                "idle_transaction_timeout": whole_seconds(idle),
            }
        else:
            ours = {
                "max_execution_time": milliseconds(statement),
                "wait_timeout": whole_seconds(idle),
            }
        return ours | waits

    @contextmanager
    def ended_with_process(self) -> Iterator[None]:
        """Otherwise the server would finish the statement, and hold its locks meanwhile."""
        thread = self.connection.connection.thread_id()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if (
                not self.connection.in_atomic_block
            ):  # which would be lost: a test case's transaction
                self.connection.close()
                with suppress(Error):
                    self.execute(f"KILL {thread}")
            raise

    def plan(self, sql: str, params: Sequence[Any]) -> None:
        """Only prepared: to explain it, the server would compute rows it finds by a unique key."""
        with self.connection.cursor() as cursor:
            text = sql % (("?",) * len(params))
            cursor.execute("PREPARE matviews_planned FROM %s", (text,))
            cursor.execute("DEALLOCATE PREPARE matviews_planned")

    def commits_one_statement(self) -> bool:
        return bool(self.connection.mysql_is_mariadb)

    def updates(
        self, rows: QuerySet[Any], changes: dict[str, Any], locked: QuerySet[Any], *, alone: bool
    ) -> Compiled:
        """MySQL takes two statements.

        It cannot update a table that a subquery of the same statement reads (error 1093), nor set a
        lock timeout for one statement.
        """
        if self.connection.mysql_is_mariadb:
            return (CompiledUpdate(rows, changes, around=WITHOUT_WAITING),)
        return CompiledSelect(locked), CompiledUpdate(rows, changes)

    def update_unlocked(self, rows: QuerySet[Any], changes: dict[str, Any]) -> int:
        """An UPDATE would wait for every row that it scans, even uncommitted ones.

        A SELECT can skip them, and an INSERT of an existing row updates it.
        """
        quote, meta = self.connection.ops.quote_name, rows.model._meta
        unlocked: Any = rows.order_by().select_for_update(skip_locked=True)
        selected = unlocked.values_list(*[field.attname for field in meta.concrete_fields]).query
        select, parameters = selected.get_compiler(rows.db).as_sql()
        columns = ", ".join(quote(field.column) for field in meta.concrete_fields)
        new = ", ".join(f"{quote(meta.get_field(name).column)} = %s" for name in changes)
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {quote(meta.db_table)} ({columns}) {select} "
                f"ON DUPLICATE KEY UPDATE {new}",
                [*parameters, *changes.values()],
            )
            return int(cursor.rowcount)
