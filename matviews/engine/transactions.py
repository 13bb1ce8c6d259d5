"""The engine's transactions: their database, isolation level and timeouts."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from django.db import connections, router, transaction

from ..conf import get_settings
from ..databases import Limits, clock, sessions_of
from ..definition import ViewDefinition
from ..exceptions import InvalidRequest
from ..models import ViewShard

__all__ = [
    "alias", "batch_transaction", "check_no_transaction", "drop_broken_connection",
    "in_transaction", "limit_statements", "now", "short_transaction", "snapshot",
    "statement_budget", "statement_timeout", "timestamp", "utc_now",
]  # fmt: skip

SHORT_TIMEOUT = 10.0  # seconds that a short transaction may wait for a lock, or be idle


def alias() -> str:
    """The alias of the database that holds the bookkeeping and the views."""
    return router.db_for_write(ViewShard)


def now() -> datetime:
    """The time by the clock of that database, which sets all times of the bookkeeping."""
    return clock.now(alias())


def timestamp() -> float:
    """The time by the clock of that database, in seconds since 1970."""
    return clock.timestamp(alias())


def utc_now() -> datetime:
    """The same as `now`, always with the zone UTC."""
    return datetime.fromtimestamp(timestamp(), UTC)


def drop_broken_connection() -> None:
    """Close a connection that an error made unusable: the next statement opens a new one."""
    if not connections[alias()].in_atomic_block:
        connections[alias()].close_if_unusable_or_obsolete()


def in_transaction() -> bool:
    """Whether the caller has begun a transaction; the one of a test case does not count."""
    if not connections[alias()].in_atomic_block:
        return False
    try:
        with transaction.atomic(using=alias(), durable=True):
            return False
    except RuntimeError:
        return True


def check_no_transaction(what: str) -> None:
    """Refuse `what`, which commits batch by batch, inside a transaction.

    Raises:
        InvalidRequest: a transaction is open.
    """
    if in_transaction():
        raise InvalidRequest(
            f"{what} cannot run inside a transaction: it commits each batch by itself. Call it "
            f"outside transaction.atomic(), in a migration with atomic = False; or call "
            f"View.refresh() instead, which leaves the work to workers after the commit."
        )


@contextmanager
def short_transaction(*, durable: bool = True) -> Iterator[None]:
    """A transaction in READ COMMITTED that commits by itself, with timeouts of its own.

    Under REPEATABLE READ, an `INSERT ... SELECT` on MariaDB and MySQL locks the rows that it reads,
    and on PostgreSQL concurrent updates of a row fail instead of seeing each other's result. One
    that is not `durable` may be part of a caller's transaction, which keeps its own level and
    timeouts.
    """
    statement = get_settings().STATEMENT_TIMEOUT
    short = min(statement, SHORT_TIMEOUT)
    limits = Limits(statement=statement, lock=short, idle=short)
    with _transaction(limits, durable=durable):
        yield


@contextmanager
def batch_transaction(seconds: float) -> Iterator[None]:
    """A transaction for a batch, whose statements time out after `seconds`.

    On MariaDB and MySQL it rejects values that do not fit, whatever the session's mode: truncated
    values would always differ from their source.
    """
    _open_connection()
    with (
        sessions_of(alias()).ended_with_process(),
        _transaction(Limits(seconds, seconds, seconds), strict=True),
    ):
        yield


@contextmanager
def snapshot(seconds: float, *, durable: bool = True, lock: float | None = None) -> Iterator[None]:
    """A transaction that only reads, and all of whose statements see the same commits.

    Its statements time out after `seconds`, or after `lock` if they wait for a lock. Inside a test
    case's transaction it sees what that sees. One that is not `durable` may be part of a caller's
    transaction, as in `short_transaction`.
    """
    limits = Limits(seconds, lock or seconds, seconds)
    with _transaction(limits, durable=durable, read_only=True):
        yield


@contextmanager
def _transaction(
    limits: Limits, *, strict: bool = False, durable: bool = True, read_only: bool = False
) -> Iterator[None]:
    # False inside a transaction of the caller or of a test case.
    alone = _open_connection().get_autocommit()
    sessions = sessions_of(alias())
    own = alone or durable  # otherwise it is part of the caller's, which keeps its timeouts
    limited = (
        sessions.limited(limits, strict=strict, alone=alone, snapshot=read_only)
        if own
        else nullcontext()
    )
    with limited, transaction.atomic(using=alias(), durable=durable):
        if alone:
            sessions.begin(limits, snapshot=read_only)
        yield


def _open_connection() -> Any:
    """Open the connection now.

    With CONN_HEALTH_CHECKS, a later statement could replace the session and its limits.
    """
    database: Any = connections[alias()]
    database.close_if_health_check_failed()
    database.ensure_connection()
    return database


def statement_timeout(definition: ViewDefinition | None) -> float:
    """Seconds that a statement of a view's batch may take."""
    own = definition and definition.options.statement_timeout
    return own or get_settings().STATEMENT_TIMEOUT


def limit_statements(seconds: float) -> None:
    """Set the timeouts of the batch's following statements, in seconds; SQLite has none."""
    sessions_of(alias()).limit(Limits(seconds, seconds, seconds))


def statement_budget(seconds: float, allowed: float) -> AbstractContextManager[None]:
    """A context whose statements may take `seconds` each; afterwards, `allowed` applies again."""
    return sessions_of(alias()).budget(seconds, Limits(allowed, allowed, allowed))
