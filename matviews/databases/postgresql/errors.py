"""PostgreSQL's errors by SQLSTATE.

See https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from typing import Any, ClassVar

from django.db import DatabaseError, Error, OperationalError

from ...redact import has_place, raised_by_routine
from ...sqlstate import sqlstate
from ..base.errors import ConstraintKind, Errors, Failure, Violation

__all__ = ["PostgreSQLErrors"]

# statement_timeout, lock_timeout and idle_in_transaction_session_timeout: the batch computed for
# too long between two statements.
QUERY_CANCELED = "57014"
LIMITS = {QUERY_CANCELED, "55P03", "25P03"}
# Serialization failures, deadlocks, a server shutting down, too many connections, and foreign keys:
# the row that others just deleted, or have not committed yet, may exist at the next attempt.
TRANSIENT = {
    "40001", "40P01", "25P04", "57P01", "57P02", "57P03", "57P05", "53300", "23503", "23001",
}  # fmt: skip
# Classes of errors whose cause lies outside a view: connections, rights, transactions of others, a
# server without disk, memory or connections, a restart, input and output, a damaged file; and a
# server or a transaction that may only read.
EXTERNAL = {"08", "28", "3D", "40", "53", "57", "58", "F0", "XX"}
READ_ONLY, LOCK_TIMEOUT = "25006", "55P03"
MISSING = {"42P01", "42703"}
DENIED = "42501"
# Data exceptions, violated constraints, and what PL/pgSQL raises; a subquery with more than one
# row, and a row too long for an index.
OF_DATA = ("22", "23", "P0")
ALSO_OF_DATA = {"21000", "54000"}
# Texts too long, numbers and dates out of range, NULL, texts that are no value of a type.
UNFIT = {"22001", "22003", "22007", "22008", "23502", "22P02"}
# A routine that raises an error blames the row for it, whatever its code, but for these classes.
NEVER_OF_DATA = {*EXTERNAL, "42"}


class PostgreSQLErrors(Errors):
    """By SQLSTATE, whichever driver raised the error."""

    kinds: ClassVar[dict[Any, Any]] = {
        "22001": ConstraintKind.TOO_LONG,
        "23502": ConstraintKind.NOT_NULL,
        "23503": ConstraintKind.FOREIGN_KEY,
        "23505": ConstraintKind.UNIQUE,
        "23514": ConstraintKind.OTHER,
        "23P01": ConstraintKind.EXCLUSION,
    }

    def _failure(self, error: Error) -> Failure:
        state = sqlstate(error)
        if state in LIMITS:
            return Failure.RETRY_SMALLER
        lost = state is None and isinstance(error, OperationalError)
        if lost or state in TRANSIENT or (state or "").startswith("08"):
            return Failure.RETRY
        return Failure.FINAL

    def _is_external(self, error: DatabaseError) -> bool:
        state = sqlstate(error)
        if state is None:  # the connection is lost, or the driver could not convert a value
            return isinstance(error, OperationalError)
        if state in (READ_ONLY, LOCK_TIMEOUT, DENIED):
            return True
        return state[:2] in EXTERNAL and state != QUERY_CANCELED

    def is_statement_timeout(self, error: BaseException) -> bool:
        return sqlstate(error) == QUERY_CANCELED

    def is_missing(self, error: DatabaseError) -> bool:
        return sqlstate(error) in MISSING

    def is_denied(self, error: BaseException) -> bool:
        return sqlstate(error) == DENIED

    def code(self, error: BaseException) -> str:
        return sqlstate(error) or ""

    def is_data_error(self, error: Exception) -> bool:
        state = self.code(error) if isinstance(error, Error) else ""
        if not state or state[:2] in NEVER_OF_DATA:
            return False
        cause: Any = error.__cause__ or error
        by_routine = hasattr(cause, "diag") and raised_by_routine(cause)
        return state.startswith(OF_DATA) or state in ALSO_OF_DATA or by_routine

    def _is_unspecific(self, error: Exception) -> bool:
        cause: Any = error.__cause__ or error
        if not self.code(error) or not hasattr(cause, "diag") or raised_by_routine(cause):
            return False
        # A value that names no table lacks the place in the statement where a table is missing.
        return self.code(error) not in MISSING or not has_place(cause)

    def does_not_fit(self, code: str) -> bool:
        return code in UNFIT

    def violation(self, error: DatabaseError) -> Violation | None:
        cause: Any = error.__cause__ or error
        diagnostics: Any = getattr(cause, "diag", None)
        kind = self.kinds.get(getattr(diagnostics, "sqlstate", None) or "")
        if kind is None or raised_by_routine(cause):
            return None
        return Violation(
            kind,
            diagnostics.constraint_name or "",
            (diagnostics.column_name,) if diagnostics.column_name else (),
            diagnostics.table_name or "",
        )
