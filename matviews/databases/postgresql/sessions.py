"""PostgreSQL: timeouts belong to the transaction.

Behind PgBouncer another client soon uses the same session.
"""

from typing import Any

from django.db import OperationalError
from django.db.models import QuerySet

from ..base.sessions import Compiled, Limits, Sessions, milliseconds
from ..compiled import CompiledUpdate, run_middle_command

__all__ = ["PostgreSQLSessions"]

READ_COMMITTED = "ISOLATION LEVEL READ COMMITTED"
SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
COMMITTED = (f"BEGIN {READ_COMMITTED}; ", "; COMMIT")


class PostgreSQLSessions(Sessions):
    """With psycopg 3 a transaction begins in one round trip; psycopg 2 works too."""

    def begin(self, limits: Limits, *, snapshot: bool = False) -> None:
        level = SNAPSHOT if snapshot else READ_COMMITTED
        settings = [f"SET LOCAL {name} = {value}" for name, value in _settings(limits).items()]
        raw = self.connection.connection
        if not hasattr(raw, "pgconn"):  # psycopg 2 always sends its own BEGIN
            self.execute("; ".join([f"SET TRANSACTION {level}", *settings]))
            return
        with self.connection.wrap_database_errors:
            result = raw.pgconn.exec_("; ".join([f"BEGIN {level}", *settings]).encode())
        if result.error_message:
            raise OperationalError(result.error_message.decode(errors="replace").strip())

    def limit(self, limits: Limits) -> None:
        self.execute(
            "; ".join(f"SET LOCAL {name} = {value}" for name, value in _settings(limits).items())
        )

    def check_constraints_at_once(self) -> None:
        self.execute("SET CONSTRAINTS ALL IMMEDIATE")

    def commits_one_statement(self) -> bool:
        """Whether the driver reports the row count of the second of three commands."""
        self.connection.ensure_connection()
        bound_by_server = self.connection.settings_dict["OPTIONS"].get("server_side_binding")
        return hasattr(self.connection.connection, "pgconn") and not bound_by_server

    def commit_row(self, sql: str) -> tuple[Any, ...]:
        before, after = COMMITTED
        with self.connection.cursor() as cursor:
            run_middle_command(cursor, f"{before}{sql}{after}", ())
            row: tuple[Any, ...] = cursor.fetchone()
        return row

    def updates(
        self, rows: QuerySet[Any], changes: dict[str, Any], locked: QuerySet[Any], *, alone: bool
    ) -> Compiled:
        free = rows.model._base_manager.using(self.using).filter(pk__in=locked)
        return (CompiledUpdate(free, changes, around=COMMITTED if alone else None),)

    def update_unlocked(self, rows: QuerySet[Any], changes: dict[str, Any]) -> int:
        locked = rows.order_by().select_for_update(skip_locked=True).values("pk")
        free = rows.model._base_manager.using(rows.db).filter(pk__in=locked)
        return int(free.update(**changes))


def _settings(limits: Limits) -> dict[str, int]:
    return {
        "statement_timeout": milliseconds(limits.statement),
        "lock_timeout": milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": milliseconds(limits.idle),
    }
