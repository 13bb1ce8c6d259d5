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
    """The kinds of constraints, and a value that is too long or does not fit otherwise."""

    UNIQUE = auto()
    NOT_NULL = auto()
    FOREIGN_KEY = auto()
    EXCLUSION = auto()
    TOO_LONG = auto()
    UNFIT = auto()
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
        """Whether a statement took longer than it may."""
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

    def is_external(self, error: BaseException | None) -> bool:
        """Whether the cause lies outside the view: a connection, a disk, rights, others' locks.

        Errors of the operating system count, among them those of connections that a hook opened.
        """
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            if isinstance(error, (InterfaceError, OSError)):
                return True
            if isinstance(error, DatabaseError) and self._is_external(error):
                return True
            error = error.__cause__ or error.__context__
        return False

    def _is_external(self, error: DatabaseError) -> bool:
        raise NotImplementedError

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether a statement that must not wait found a row locked."""
        return False

    def code(self, error: BaseException) -> str:
        """What the database calls the error; "" if it does not say."""
        return ""

    def is_data_error(self, error: Exception) -> bool:
        """Whether a statement failed for some rows that it read or wrote, and not as a whole."""
        return False

    def may_be_data_error(self, error: Exception) -> bool:
        """Whether rows may be at fault, because the error's code does not say that they are not.

        A function may reject a value with the code of a faulty statement: a text that is no search
        query is a syntax error on PostgreSQL, and a path into JSON an error on SQLite.
        """
        if self.is_data_error(error):
            return True
        if not isinstance(error, DatabaseError):
            return False
        is_final = self.failure(error) is Failure.FINAL
        return is_final and not self.is_external(error) and self._is_unspecific(error)

    def _is_unspecific(self, error: Exception) -> bool:
        """Whether the code of a final error, with a cause inside the view, may mean anything."""
        return False

    def does_not_fit(self, code: str) -> bool:
        """Whether a code is of a value that its column may refuse: NULL, too long, another type."""
        raise NotImplementedError

    def violation(self, error: DatabaseError) -> Violation | None:
        """The constraint that a statement violated, None if the error is another."""
        raise NotImplementedError
