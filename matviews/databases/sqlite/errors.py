"""SQLite's errors, by Python's names for their codes."""

from typing import Any, ClassVar

from django.db import DatabaseError, Error

from ..base.errors import ConstraintKind, Errors, Failure, Violation

__all__ = ["SQLiteErrors"]

TRANSIENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CONSTRAINT_FOREIGNKEY")
MISSING = ("no such table", "no such column", "has no column")


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
        return Failure.RETRY if _name(error).startswith(TRANSIENT) else Failure.FINAL

    def is_missing(self, error: DatabaseError) -> bool:
        return any(words in str(error.__cause__ or error) for words in MISSING)

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
