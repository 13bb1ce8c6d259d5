"""Classifies database errors: whether to retry, and which constraint was violated."""

from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

from django.db import DatabaseError, Error, InterfaceError

__all__ = ["ConstraintKind", "Errors", "Failure", "Violation"]


class Failure(Enum):
    """How the engine reacts to a failed batch."""

    RETRY = "try again"
    RETRY_SMALLER = "try again, smaller"
    FINAL = "fail the phase run"


class ConstraintKind(Enum):
    """The kinds of constraints, and a value that is too long."""

    UNIQUE = auto()
    NOT_NULL = auto()
    FOREIGN_KEY = auto()
    TOO_LONG = auto()
    OTHER = auto()


class Violation(NamedTuple):
    """What the database says about a violated constraint."""

    kind: ConstraintKind
    #: The constraint's name; "" if the database does not give it.
    name: str = ""
    #: The constraint's columns; () if the database does not name them.
    columns: tuple[str, ...] = ()
    #: The constraint's table; "" if the database does not name it.
    table: str = ""


class Errors:
    """Classifies errors by the codes of a database's driver."""

    #: The kind of constraint that each code of the driver is about.
    kinds: ClassVar[dict[Any, Any]] = {}

    def failure(self, error: Exception) -> Failure:
        """How the engine should react to an error of a batch."""
        if isinstance(error, InterfaceError):
            return Failure.RETRY
        if isinstance(error, MemoryError):
            return Failure.RETRY_SMALLER
        return self._failure(error) if isinstance(error, Error) else Failure.FINAL

    def _failure(self, error: Error) -> Failure:
        raise NotImplementedError

    def is_statement_timeout(self, error: BaseException) -> bool:
        """Whether a statement took longer than it may; SQLite has no such limit."""
        return False

    def is_missing(self, error: DatabaseError) -> bool:
        """Whether a statement failed because a table or column is missing."""
        raise NotImplementedError

    def is_denied(self, error: BaseException) -> bool:
        """Whether a statement was refused because the role has no right to it."""
        return False

    def is_denied_in_database(self, error: BaseException) -> bool:
        """Whether the missing right is one on the whole database."""
        return False

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether a statement that must not wait found a row locked."""
        return False

    def violation(self, error: DatabaseError) -> Violation | None:
        """The constraint that a statement violated, None if the error is another."""
        raise NotImplementedError
