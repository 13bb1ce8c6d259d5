"""What differs between PostgreSQL, MariaDB/MySQL and SQLite in the path of a batch."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from django.db import Error, InterfaceError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Func, Q, TextField, Value

from ..compiled import GIVEN, TOKEN, CompiledSelect, CompiledUpdate
from ..models import Stripe

__all__ = [
    "Fault",
    "alias",
    "batch_transaction",
    "claim",
    "claim_transaction",
    "classify",
    "drop_broken_connection",
    "limit_statements",
    "limits",
    "lock_free",
    "short_transaction",
]

# MariaDB and MySQL error numbers.
MYSQL_LIMIT = {1205, 1969, 3024}  # lock wait timeout, max_statement_time, max_execution_time
MYSQL_TRANSIENT = {1213, 1020}  # deadlock, record changed since last read
MYSQL_LOST = {1040, 1053, 1203, 1927, 2006, 2013, 2055, 4031}  # lost, or refused for being too many

# PostgreSQL: 57014 is what statement_timeout raises, 55P03 what lock_timeout raises; 40xxx are
# deadlocks and serialization failures, 57P0x a server going down, 53300 too many connections.
# 25P03 is the idle timeout, of a batch that computed for too long between two statements.
POSTGRES_LIMIT = {"57014", "55P03", "25P03"}
POSTGRES_TRANSIENT = {"40001", "40P01", "25P04", "57P01", "57P02", "57P03", "57P05", "53300"}


class Fault(Enum):
    """What a failed batch calls for."""

    TRANSIENT = "try again"
    LIMIT = "try again, smaller"
    FINAL = "fail the phase run"


def alias() -> str:
    """The database that holds the bookkeeping, and so the views."""
    return router.db_for_write(Stripe)


def _connection() -> BaseDatabaseWrapper:
    return connections[alias()]


def drop_broken_connection() -> None:
    """Close a connection that an error has left unusable, so that the next statement reopens it."""
    if not _connection().in_atomic_block:
        _connection().close_if_unusable_or_obsolete()


def lock_free(condition: Q) -> list[Stripe]:
    """Lock and return the stripes that fit and that nobody holds, without waiting.

    To be the first statement of a transaction. SQLite has no row locks: there a write takes the
    whole database, and a transaction that began with a read could not always go on to a write.
    """
    # The default order would join the view's control, and lock it with the stripe.
    stripes = Stripe.objects.filter(condition).order_by()
    if _connection().features.has_select_for_update:
        return list(stripes.select_for_update(skip_locked=True))
    stripes.update(token=F("token"))
    return list(stripes)


def claim(stripe_id: int, token: int, fits: Q | None = None, /, **changes: Any) -> bool:
    """Change a stripe's row if its token is still `token`; never wait for who holds the row.

    To be the first statement of a transaction. On PostgreSQL it is one statement; MySQL cannot
    update a table that a subquery of the same statement reads (error 1093), and MariaDB waits there.
    """
    statements = _claim(alias(), fits or Q(), tuple(changes.items()))
    return all(statement.run(stripe_id, token) for statement in statements)


@lru_cache(maxsize=64)
def _claim(
    using: str, fits: Q, changes: tuple[tuple[str, Any], ...]
) -> tuple[CompiledSelect | CompiledUpdate, ...]:
    """The statements of a claim, of which each must find the row."""
    row = Stripe.objects.using(using).filter(Q(pk=GIVEN, token=TOKEN) & fits).order_by()
    locked = row.select_for_update(skip_locked=True).values_list("pk")
    vendor = connections[using].vendor
    if vendor == "postgresql":
        row = Stripe.objects.using(using).filter(pk__in=locked)
    with transaction.atomic(using=using):  # or Django would not compile what locks
        update = CompiledUpdate(row, dict(changes))
        return (CompiledSelect(locked), update) if vendor == "mysql" else (update,)


@contextmanager
def short_transaction() -> Iterator[None]:
    """A transaction in READ COMMITTED that commits by itself, whatever the connection's level is.

    Under REPEATABLE READ, on MariaDB and MySQL an `INSERT ... SELECT` locks the rows that it reads,
    and on PostgreSQL two processes that meet at one row fail instead of seeing each other's end.
    """
    database = _connection()
    database.ensure_connection()
    alone = not database.in_atomic_block  # else a test case's transaction is around it
    sets_level = alone and _isolation_level(database) not in _READ_COMMITTED
    if sets_level and database.vendor == "mysql":
        _execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    with transaction.atomic(using=alias(), durable=True):
        if sets_level and database.vendor == "postgresql":
            _execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        yield


def claim_transaction() -> AbstractContextManager[None]:
    """A transaction for `claim` alone: where that is one statement, it needs no BEGIN and COMMIT."""
    database = _connection()
    one = database.vendor != "mysql" and _isolation_level(database) in _READ_COMMITTED
    return nullcontext() if one and database.get_autocommit() else short_transaction()


_READ_COMMITTED = {None, "read committed", "READ_COMMITTED"}


def _isolation_level(database: Any) -> str | None:
    """The connection's level: a name on MariaDB and MySQL, an enum of psycopg's on PostgreSQL."""
    level = getattr(database, "isolation_level", None)
    return getattr(level, "name", level)


@contextmanager
def batch_transaction(seconds: float) -> Iterator[None]:
    """A transaction for a batch, whose statements end within `seconds`; see also `limits`.

    The limits of MariaDB and MySQL belong to the session, so they are taken back at the end.
    """
    database: Any = _connection()
    if database.vendor != "mysql":
        with short_transaction():
            yield
        return
    database.ensure_connection()
    names = _mysql_limits(seconds)
    _execute(f"SET {', '.join(f'@matviews_{name} = @@SESSION.{name}' for name in names)}")
    limit_statements(seconds)
    thread = database.connection.thread_id()
    try:
        with short_transaction():
            yield
    except (KeyboardInterrupt, SystemExit):
        if not database.in_atomic_block:  # else a test case's transaction would be lost too
            database.close()
            with suppress(Error):  # the server would finish the statement, and hold its locks
                _execute(f"KILL {thread}")
        raise
    finally:
        with suppress(Error):  # a connection that is gone has no limits to take back
            if database.connection is not None and database.is_usable():
                _execute(f"SET {', '.join(f'SESSION {n} = @matviews_{n}' for n in names)}")


def limits(seconds: float) -> dict[str, Func]:
    """Columns that bound the statements of a transaction on PostgreSQL once a query reads them.

    So they cost no statement of their own. The second frees the stripe of a worker that has gone
    silent inside its transaction. Empty on other databases.
    """
    return _limits(seconds) if _connection().vendor == "postgresql" else {}


@cache
def _limits(seconds: float) -> dict[str, Func]:
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    return {f"set_{name}": _set_config(name, seconds) for name in names}


def _set_config(name: str, seconds: float) -> Func:
    milliseconds = str(round(seconds * 1000))
    return Func(
        Value(name), Value(milliseconds), Value(True),
        function="set_config", output_field=TextField(),
    )  # fmt: skip


def limit_statements(seconds: float) -> None:
    """Bound the statements that follow in this batch; SQLite has no such limit."""
    vendor = _connection().vendor
    if vendor == "postgresql":
        milliseconds = round(seconds * 1000)
        _execute(f"SET LOCAL statement_timeout = {milliseconds}")
        _execute(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
    elif vendor == "mysql":
        values = _mysql_limits(seconds).items()
        _execute(f"SET SESSION {', '.join(f'{name} = {value}' for name, value in values)}")


def _mysql_limits(seconds: float) -> dict[str, float]:
    """MySQL can bound only reading statements; its other limit ends a silent connection."""
    database: Any = _connection()
    whole = max(1, round(seconds))
    if database.mysql_is_mariadb:
        return {"max_statement_time": seconds, "idle_transaction_timeout": whole}
    return {"max_execution_time": round(seconds * 1000), "wait_timeout": whole}


def _execute(sql: str) -> None:
    with _connection().cursor() as cursor:
        cursor.execute(sql)


def classify(error: Exception) -> Fault:
    """Tell what a failed batch calls for, mostly by the database's own error codes."""
    if isinstance(error, InterfaceError):
        return Fault.TRANSIENT
    if isinstance(error, MemoryError):
        return Fault.LIMIT
    if not isinstance(error, Error):
        return Fault.FINAL
    cause = error.__cause__ or error
    vendor = _connection().vendor
    if vendor == "postgresql":
        return _classify_postgres(error, getattr(cause, "sqlstate", None))
    if vendor == "mysql":
        return _classify_mysql(cause.args[0] if cause.args else None)
    busy = getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return Fault.TRANSIENT if busy else Fault.FINAL


def _classify_postgres(error: Error, state: str | None) -> Fault:
    if state in POSTGRES_LIMIT:
        return Fault.LIMIT
    lost = state is None and isinstance(error, OperationalError)
    if lost or state in POSTGRES_TRANSIENT or (state or "").startswith("08"):
        return Fault.TRANSIENT
    return Fault.FINAL


def _classify_mysql(number: object) -> Fault:
    if number in MYSQL_LIMIT:
        return Fault.LIMIT
    return Fault.TRANSIENT if number in MYSQL_TRANSIENT | MYSQL_LOST else Fault.FINAL
