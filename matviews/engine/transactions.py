"""Transactions of the engine: their level, their limits, and the database that they are in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

from django.db import connections, router, transaction

from ..conf import get_settings
from ..databases import Limits, clock, sessions_of
from ..exceptions import InvalidRequest
from ..models import ViewShard

__all__ = [
    "alias", "batch_transaction", "check_no_transaction", "drop_broken_connection", "in_transaction",
    "limit_statements", "now", "short_transaction", "timestamp",
]  # fmt: skip

LONGEST_SHORT = 10.0  # seconds of silence, or of waiting for a lock, in a short transaction


def alias() -> str:
    """The database that holds the bookkeeping, and so the views."""
    return router.db_for_write(ViewShard)


def now() -> datetime:
    """The time by the clock of that database, by which all times of the bookkeeping are."""
    return clock.now(alias())


def timestamp() -> float:
    """The same, in seconds since 1970."""
    return clock.timestamp(alias())


def drop_broken_connection() -> None:
    """Close a connection that an error has left unusable, so that the next statement reopens it."""
    if not connections[alias()].in_atomic_block:
        connections[alias()].close_if_unusable_or_obsolete()


def in_transaction() -> bool:
    """Whether the caller has begun a transaction; that of a test case does not count."""
    if not connections[alias()].in_atomic_block:
        return False
    try:
        with transaction.atomic(using=alias(), durable=True):
            return False
    except RuntimeError:
        return True


def check_no_transaction(what: str) -> None:
    """Refuse what commits batch by batch inside a transaction.

    Raises:
        InvalidRequest: there is one.
    """
    if in_transaction():
        raise InvalidRequest(
            f"{what} cannot run inside a transaction: it commits each batch by itself. Call it outside "
            f"transaction.atomic(), in a migration with atomic = False; or call View.refresh() instead, "
            f"which asks the workers once the transaction has committed."
        )


@contextmanager
def short_transaction(*, durable: bool = True) -> Iterator[None]:
    """A transaction in READ COMMITTED that commits by itself, with limits of its own.

    Under REPEATABLE READ, on MariaDB and MySQL an `INSERT ... SELECT` locks the rows that it reads,
    and on PostgreSQL two processes that meet at one row fail instead of seeing each other's end.
    One that is not `durable` may be part of a caller's transaction, which keeps its own level and limits.
    """
    most = get_settings().STATEMENT_TIMEOUT
    least = min(most, LONGEST_SHORT)
    limits = Limits(statement=most, lock=least, idle=least)
    with _transaction(limits, durable=durable):
        yield


@contextmanager
def batch_transaction(seconds: float) -> Iterator[None]:
    """A transaction for a batch, whose statements end within `seconds`.

    On MariaDB and MySQL it refuses values that do not fit, whatever the session's mode: truncated ones
    would differ from their source for ever.
    """
    _open_connection()
    with (
        sessions_of(alias()).ended_with_process(),
        _transaction(Limits(seconds, seconds, seconds), strict=True),
    ):
        yield


@contextmanager
def _transaction(limits: Limits, *, strict: bool = False, durable: bool = True) -> Iterator[None]:
    alone = _open_connection().get_autocommit()  # else a test case's transaction is around it
    sessions = sessions_of(alias())
    own = alone or durable  # else it is part of a caller's, which keeps its limits
    limited = sessions.limited(limits, strict=strict, alone=alone) if own else nullcontext()
    with limited, transaction.atomic(using=alias(), durable=durable):
        if alone:
            sessions.begin(limits)
        yield


def _open_connection() -> Any:
    """The connection, open: with CONN_HEALTH_CHECKS a statement may open another session than was there."""
    database: Any = connections[alias()]
    database.close_if_health_check_failed()
    database.ensure_connection()
    return database


def limit_statements(seconds: float) -> None:
    """Limit the statements that follow in this batch; SQLite has no such limit."""
    sessions_of(alias()).limit(Limits(seconds, seconds, seconds))
