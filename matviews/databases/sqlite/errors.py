"""SQLite's errors, by Python's names for their codes."""

from typing import Any, ClassVar

from django.db import DatabaseError, Error

from ..base.errors import ConstraintKind, Errors, Failure, Violation

__all__ = ["SQLiteErrors"]

TRANSIENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CONSTRAINT_FOREIGNKEY")
EXTERNAL = (
    "SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_FULL", "SQLITE_IOERR",
    "SQLITE_LOCKED", "SQLITE_NOMEM", "SQLITE_NOTADB", "SQLITE_PERM", "SQLITE_PROTOCOL",
    "SQLITE_READONLY",
)  # fmt: skip
MISSING = ("no such table", "no such column", "has no column")

OF_DATA = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG")
# The text is all that tells these from a faulty statement.
OF_DATA_BY_TEXT = ("integer overflow", "malformed JSON", "user-defined function raised exception")
UNSPECIFIC = "SQLITE_ERROR"


def _name(error: BaseException) -> str:
    return getattr(error.__cause__ or error, "sqlite_errorname", "")


class SQLiteErrors(Errors):
    """SQLite has no roles, so it denies nothing."""

    kinds: ClassVar[dict[Any, Any]] = {
        "SQLITE_CONSTRAINT_CHECK": ConstraintKind.OTHER,
        "SQLITE_CONSTRAINT_FOREIGNKEY": ConstraintKind.FOREIGN_KEY,
        "SQLITE_CONSTRAINT_NOTNULL": ConstraintKind.NOT_NULL,
        "SQLITE_CONSTRAINT_PRIMARYKEY": ConstraintKind.UNIQUE,
        "SQLITE_CONSTRAINT_UNIQUE": ConstraintKind.UNIQUE,
    }

    def _failure(self, error: Error) -> Failure:
        if self.is_statement_timeout(error):
            return Failure.RETRY_SMALLER
        return Failure.RETRY if _name(error).startswith(TRANSIENT) else Failure.FINAL

    def is_statement_timeout(self, error: BaseException) -> bool:
        return _name(error) == "SQLITE_INTERRUPT"

    def _is_external(self, error: DatabaseError) -> bool:
        return _name(error).startswith(EXTERNAL)

    def is_missing(self, error: DatabaseError) -> bool:
        return any(words in str(error.__cause__ or error) for words in MISSING)

    def code(self, error: BaseException) -> str:
        return _name(error)

    def is_data_error(self, error: Exception) -> bool:
        if not isinstance(error, Error):
            return False
        text = str(error.__cause__ or error)
        return _name(error).startswith(OF_DATA) or text.startswith(OF_DATA_BY_TEXT)

    def _is_unspecific(self, error: Exception) -> bool:
        is_missing = isinstance(error, DatabaseError) and self.is_missing(error)
        return _name(error) == UNSPECIFIC and not is_missing

    def does_not_fit(self, code: str) -> bool:
        return code == "SQLITE_CONSTRAINT_NOTNULL"

    def violation(self, error: DatabaseError) -> Violation | None:
        kind = self.kinds.get(_name(error))
        if kind is None:
            return None
        named = str(error.__cause__ or error).partition(": ")[2]
        if kind is ConstraintKind.OTHER or named.startswith("index "):
            return Violation(kind, named.removeprefix("index ").strip("'"))
        parts = [part.rpartition(".") for part in named.split(", ") if part]
        table = parts[0][0] if parts else ""
        return Violation(kind, columns=tuple(column for _table, _dot, column in parts), table=table)
