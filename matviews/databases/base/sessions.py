"""How a session's transactions are limited, and how one row is updated without waiting for a lock."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

from django.db import connections
from django.db.models import QuerySet

from ..compiled import CompiledSelect, CompiledUpdate

__all__ = ["Compiled", "Limits", "Sessions", "milliseconds", "whole_seconds"]

Compiled: TypeAlias = tuple[CompiledSelect | CompiledUpdate, ...]


class Limits(NamedTuple):
    """Seconds after which the server ends what one of our transactions does."""

    #: Of a running statement.
    statement: float
    #: Of a statement that waits for a lock.
    lock: float
    #: Of a connection without a statement: its process may be frozen while its locks block the others.
    idle: float


class Sessions:
    """The sessions of SQLite, which has no limits and no row locks; the others differ from it.

    Args:
        using: alias of the database.
    """

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.using]

    def limited(self, limits: Limits, *, strict: bool, alone: bool) -> AbstractContextManager[None]:
        """A context around a transaction, where limits belong to the session.

        Args:
            limits: of the transaction.
            strict: values that do not fit a column are refused, whatever the session's mode.
            alone: no other transaction is around it, so it gets the level READ COMMITTED.
        """
        return nullcontext()

    def begin(self, limits: Limits) -> None:
        """Begin a transaction with its level and limits, where they belong to the transaction."""

    def limit(self, limits: Limits) -> None:
        """Change the limits of the transaction that is running. SQLite has none."""

    @contextmanager
    def ended_with_process(self) -> Iterator[None]:
        """A context whose running statement ends when KeyboardInterrupt or SystemExit leaves it."""
        yield

    def commits_one_statement(self) -> bool:
        """Whether `updates` gives, outside a transaction, one statement that commits by itself."""
        return True

    def updates(
        self, rows: QuerySet[Any], changes: dict[str, Any], locked: QuerySet[Any], *, alone: bool
    ) -> Compiled:
        """The statements that update a row unless somebody holds it; each must find the row.

        Args:
            rows: selects the row.
            changes: what to write.
            locked: selects the row's primary key and locks it, skipping locked rows.
            alone: outside a transaction.
        """
        return (CompiledUpdate(rows, changes),)

    def update_unlocked(self, rows: QuerySet[Any], changes: dict[str, Any]) -> int:
        """Update, in one statement, those of some rows that nobody holds; how many."""
        return rows.update(**changes)

    def execute(self, sql: str) -> None:
        """Run a statement that has no parameters."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql)


def milliseconds(seconds: float) -> int:
    """At least one: zero would mean no limit."""
    return max(1, round(seconds * 1000))


def whole_seconds(seconds: float) -> int:
    """At least one, as above."""
    return max(1, round(seconds))
