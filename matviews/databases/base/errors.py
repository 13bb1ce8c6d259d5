"""What an error of the database calls for, and which constraint it tells of."""

from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

from django.db import DatabaseError, Error, InterfaceError

__all__ = ["ConstraintKind", "Errors", "Failure", "Violation"]


class Failure(Enum):
    """What a failed batch calls for."""

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
    """What the database says of a broken constraint."""

    kind: ConstraintKind
    #: Of the constraint; "" where the database does not name it.
    name: str = ""
    #: Of the constraint; () where the database does not name them.
    columns: tuple[str, ...] = ()
    #: Whose constraint it is; "" where the database does not say.
    table: str = ""


class Errors:
    """How a database's errors are told apart, by the codes of its driver."""

    #: By a driver's code, the kind of a broken constraint.
    kinds: ClassVar[dict[Any, Any]] = {}

    def failure(self, error: Exception) -> Failure:
        """What a failed batch calls for."""
        if isinstance(error, InterfaceError):
            return Failure.RETRY
        if isinstance(error, MemoryError):
            return Failure.RETRY_SMALLER
        return self._failure(error) if isinstance(error, Error) else Failure.FINAL

    def _failure(self, error: Error) -> Failure:
        raise NotImplementedError

    def is_missing(self, error: DatabaseError) -> bool:
        """Whether a statement failed because a table or column is missing."""
        raise NotImplementedError

    def is_denied(self, error: BaseException) -> bool:
        """Whether a statement was refused because the role lacks a right."""
        return False

    def is_denied_in_database(self, error: BaseException) -> bool:
        """Whether the right that the role lacks is one on the whole database."""
        return False

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether a statement that must not wait met a lock."""
        return False

    def violation(self, error: DatabaseError) -> Violation | None:
        """The constraint that a statement has broken, None if it was something else."""
        raise NotImplementedError
