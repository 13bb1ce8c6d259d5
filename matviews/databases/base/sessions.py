"""Timeouts of transactions, and updates of one row that do not wait for a lock."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

from django.db import connections
from django.db.models import QuerySet

from ..compiled import CompiledSelect, CompiledUpdate

__all__ = ["Compiled", "Limits", "Sessions", "milliseconds", "whole_seconds"]

Compiled: TypeAlias = tuple[CompiledSelect | CompiledUpdate, ...]


class Limits(NamedTuple):
    """Seconds after which the server aborts a transaction of the engine."""

    #: For a statement.
    statement: float
    #: For a statement that waits for a lock.
    lock: float
    #: Without a statement: the process may be frozen while its locks block others.
    idle: float


class Sessions:
    """The sessions of a database without timeouts and row locks; most databases override it.

    Args:
        using: alias of the database.
    """

    def __init__(self, using: str) -> None:
        self.using = using

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.using]

    def limited(
        self, limits: Limits, *, strict: bool, alone: bool, snapshot: bool = False
    ) -> AbstractContextManager[None]:
        """A context around a transaction, where timeouts belong to the session.

        Args:
            limits: the timeouts.
            strict: refuse values that do not fit a column, whatever the session's mode.
            alone: whether the transaction is not nested, so that it can have a level of its own.
            snapshot: whether all its statements read one snapshot; else it is READ COMMITTED.
        """
        return nullcontext()

    def begin(self, limits: Limits, *, snapshot: bool = False) -> None:
        """Begin a transaction with its level and timeouts, where they belong to the transaction.

        On SQLite each transaction reads one snapshot.
        """

    def limit(self, limits: Limits) -> None:
        """Change the timeouts of the current transaction."""

    @contextmanager
    def budget(self, seconds: float, limits: Limits) -> Iterator[None]:
        """A context with a different time limit for statements; that for lock waits stays.

        Args:
            seconds: for each statement.
            limits: the timeouts that apply again afterwards.
        """
        self.limit(limits._replace(statement=seconds))
        yield
        self.limit(limits)

    @contextmanager
    def ended_with_process(self) -> Iterator[None]:
        """A context: KeyboardInterrupt and SystemExit abort the statement that is running in it."""
        yield

    def check_constraints_at_once(self) -> None:
        """Check constraints per statement from now on, if the database can; else at the commit."""

    def plan(self, sql: str, params: Sequence[Any]) -> None:
        """Have the database prepare a statement, without running it.

        Raises:
            DatabaseError: the statement is at fault, and not a row that it reads.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {sql}", params)

    def commits_one_statement(self) -> bool:
        """Whether `updates` outside a transaction is one statement that commits itself."""
        return True

    def commit_row(self, sql: str) -> tuple[Any, ...]:
        """Run a statement in a READ COMMITTED transaction of its own, and return its row.

        Only where one statement can write to several tables, and if `commits_one_statement`.
        """
        raise NotImplementedError

    def updates(
        self, rows: QuerySet[Any], changes: dict[str, Any], locked: QuerySet[Any], *, alone: bool
    ) -> Compiled:
        """The statements that update a row unless it is locked; each must find the row.

        Args:
            rows: selects the row.
            changes: what to write.
            locked: selects and locks the row's primary key, skipping locked rows.
            alone: whether it runs outside a transaction.
        """
        return (CompiledUpdate(rows, changes),)

    def update_unlocked(self, rows: QuerySet[Any], changes: dict[str, Any]) -> int:
        """Update the rows that nobody has locked, in one statement, and return their number."""
        return rows.update(**changes)

    def execute(self, sql: str) -> None:
        """Run a statement that has no parameters."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql)


def milliseconds(seconds: float) -> int:
    """At least one: zero would mean no timeout."""
    return max(1, round(seconds * 1000))


def whole_seconds(seconds: float) -> int:
    """At least one: zero would mean no timeout."""
    return max(1, round(seconds))
