"""What differs between PostgreSQL, MariaDB/MySQL and SQLite in the path of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from django.db import Error, InterfaceError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q, QuerySet

from ..conf import get_settings
from ..databases import clock
from ..databases.compiled import GIVEN, TOKEN, CompiledSelect, CompiledUpdate
from ..exceptions import InvalidRequest
from ..models import Refresh, ViewShard
from ..sqlstate import sqlstate
from ..states import RefreshState

__all__ = [
    "Fault",
    "alias",
    "batch_transaction",
    "check_no_transaction",
    "classify",
    "drop_broken_connection",
    "in_transaction",
    "join_unlocked",
    "limit_statements",
    "lock_free",
    "now",
    "short_transaction",
    "timestamp",
    "update_if_current",
    "update_unlocked",
]

# MariaDB and MySQL error numbers.
MYSQL_LIMIT = {1205, 1969, 3024}  # lock wait timeout, max_statement_time, max_execution_time
# Deadlock, record changed since last read, and foreign keys: a row that others have just deleted, or
# not committed yet, may be there the next time, or no longer wanted.
MYSQL_TRANSIENT = {1213, 1020, 1216, 1217, 1451, 1452}
MYSQL_LOCKED = 1205  # also what a statement says at once that is not to wait
MYSQL_LOST = {1040, 1053, 1203, 1927, 2006, 2013, 2055, 4031}  # lost, or refused for being too many

# PostgreSQL: 57014 is what statement_timeout raises, 55P03 what lock_timeout raises; 40xxx are
# deadlocks and serialization failures, 57P0x a server going down, 53300 too many connections, 23503
# and 23001 foreign keys.
# 25P03 is the idle timeout, of a batch that computed for too long between two statements.
POSTGRES_LIMIT = {"57014", "55P03", "25P03"}
POSTGRES_TRANSIENT = {
    "40001", "40P01", "25P04", "57P01", "57P02", "57P03", "57P05", "53300", "23503", "23001",
}  # fmt: skip
SQLITE_TRANSIENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CONSTRAINT_FOREIGNKEY")


class Fault(Enum):
    """What a failed batch calls for."""

    TRANSIENT = "try again"
    LIMIT = "try again, smaller"
    FINAL = "fail the phase run"


def alias() -> str:
    """The database that holds the bookkeeping, and so the views."""
    return router.db_for_write(ViewShard)


def now() -> datetime:
    """The time by the clock of that database, by which all times of the bookkeeping are."""
    return clock.now(alias())


def timestamp() -> float:
    """The same, in seconds since 1970."""
    return clock.timestamp(alias())


def _connection() -> BaseDatabaseWrapper:
    return connections[alias()]


def _usable_connection() -> Any:
    """The connection, open: with CONN_HEALTH_CHECKS a statement may open another session than was there."""
    database = _connection()
    database.close_if_health_check_failed()
    database.ensure_connection()
    return database


def drop_broken_connection() -> None:
    """Close a connection that an error has left unusable, so that the next statement reopens it."""
    if not _connection().in_atomic_block:
        _connection().close_if_unusable_or_obsolete()


def lock_free(condition: Q) -> list[ViewShard]:
    """Lock and return the shards that fit and that nobody holds, without waiting.

    To be the first statement of a transaction. SQLite has no row locks: there a write takes the
    whole database, and a transaction that began with a read could not always go on to a write.
    """
    # The default order would join the view's control, and lock it with the shard.
    shards = ViewShard.objects.filter(condition).order_by()
    if _connection().features.has_select_for_update:
        return list(shards.select_for_update(skip_locked=True))
    shards.update(token=F("token"))
    return list(shards)


def update_if_current(shard_id: int, token: int, fits: Q | None = None, /, **changes: Any) -> bool:
    """Change a shard's row if its token is still `token`; never wait for who holds the row.

    To be the first statement of a transaction, or outside of any: then it commits by itself, in READ
    COMMITTED, and cannot be left half done by a process that is frozen.
    """
    fits = Q(pk=GIVEN, token=TOKEN) & (fits or Q())
    return _change_unlocked(ViewShard, fits, tuple(changes.items()), shard_id, token)


def join_unlocked(refresh_id: int) -> bool:
    """Count a request in with a refresh; False if that has ended or is to stop, or its row is locked.

    To be called as `update_if_current` is.
    """
    return _change_unlocked(Refresh, _JOINABLE, (("requests", F("requests") + 1),), refresh_id)


_JOINABLE = Q(pk=GIVEN, state=RefreshState.OPEN, stop_requested=False)


def _change_unlocked(
    model: type[ViewShard | Refresh],
    fits: Q,
    changes: tuple[tuple[str, Any], ...],
    key: int,
    token: int = 0,
) -> bool:
    database: Any = _connection()
    alone = database.get_autocommit()
    if alone and not _takes_one_statement(database):
        with short_transaction():
            return _change_unlocked(model, fits, changes, key, token)
    statements = _statements_for(alias(), model, fits, changes, alone)
    try:
        return all(statement.run(key, token) for statement in statements)
    except OperationalError as error:
        if _error_number(error) != MYSQL_LOCKED:
            raise
        return False


def _takes_one_statement(database: Any) -> bool:
    """Whether it can commit by itself; psycopg 2 tells nothing of but the last of several commands."""
    if database.vendor == "postgresql":
        database.ensure_connection()
        bound_by_server = database.settings_dict["OPTIONS"].get("server_side_binding")
        return hasattr(database.connection, "pgconn") and not bound_by_server
    return database.vendor == "sqlite" or bool(database.mysql_is_mariadb)


@lru_cache(maxsize=64)
def _statements_for(
    using: str, model: type[Any], fits: Q, changes: tuple[tuple[str, Any], ...], alone: bool
) -> tuple[CompiledSelect | CompiledUpdate, ...]:
    """The statements that change a row which nobody holds, of which each must find it.

    MySQL takes two: it can neither update a table that a subquery of the same statement reads (error
    1093), nor be told not to wait for this statement alone.
    """
    database: Any = connections[using]
    row = model.objects.using(using).filter(fits).order_by()
    locked = row.select_for_update(skip_locked=True).values_list("pk")
    with transaction.atomic(using=using):  # or Django would not compile what locks
        if database.vendor == "postgresql":
            free = model.objects.using(using).filter(pk__in=locked)
            return (CompiledUpdate(free, dict(changes), around=_COMMITTED if alone else None),)
        if database.vendor == "sqlite":
            return (CompiledUpdate(row, dict(changes)),)
        if database.mysql_is_mariadb:
            return (CompiledUpdate(row, dict(changes), around=_WITHOUT_WAITING),)
        return CompiledSelect(locked), CompiledUpdate(row, dict(changes))


_READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"
_COMMITTED = (f"{_READ_COMMITTED}; ", "; COMMIT")
_WITHOUT_WAITING = ("SET STATEMENT innodb_lock_wait_timeout = 0 FOR ", "")


class _Limits(NamedTuple):
    """Seconds after which the server ends what a transaction of ours does.

    Attributes:
        statement: a statement that runs.
        lock: one that waits for a lock.
        idle: the connection of a process that sends no statement: it may be frozen, and its locks
            would keep all others waiting.
    """

    statement: float
    lock: float
    idle: float


LONGEST_SHORT = 10.0  # seconds of silence, or of waiting for a lock, in a short transaction


def in_transaction() -> bool:
    """Whether the caller has begun a transaction; that of a test case does not count."""
    if not _connection().in_atomic_block:
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


def update_unlocked(rows: QuerySet[Any], **changes: Any) -> bool:
    """Change, in one statement, those of some rows that nobody holds; in a transaction. Whether there were any.

    MariaDB and MySQL would wait for rows that an UPDATE comes across, even for such as are not committed. A
    SELECT can skip them, and an INSERT of what is there already changes it.
    """
    vendor = _connection().vendor
    if vendor == "sqlite":
        return bool(rows.update(**changes))
    unlocked = rows.order_by().select_for_update(skip_locked=True)
    if vendor == "postgresql":
        free = rows.model._base_manager.using(rows.db).filter(pk__in=unlocked.values("pk"))
        return bool(free.update(**changes))
    fields = [field.attname for field in rows.model._meta.concrete_fields]
    selected: Any = unlocked.values_list(*fields).query
    select, parameters = selected.get_compiler(rows.db).as_sql()
    quote = _connection().ops.quote_name
    columns = ", ".join(quote(field.column) for field in rows.model._meta.concrete_fields)
    new = ", ".join(f"{quote(rows.model._meta.get_field(n).column)} = %s" for n in changes)
    with _connection().cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(rows.model._meta.db_table)} ({columns}) {select} "
            f"ON DUPLICATE KEY UPDATE {new}",
            [*parameters, *changes.values()],
        )
        return bool(cursor.rowcount)


@contextmanager
def short_transaction(*, durable: bool = True) -> Iterator[None]:
    """A transaction in READ COMMITTED that commits by itself, with limits of its own.

    Under REPEATABLE READ, on MariaDB and MySQL an `INSERT ... SELECT` locks the rows that it reads,
    and on PostgreSQL two processes that meet at one row fail instead of seeing each other's end.
    One that is not `durable` may be part of a caller's transaction, which keeps its own level and limits.
    """
    most = get_settings().STATEMENT_TIMEOUT
    least = min(most, LONGEST_SHORT)
    limits = _Limits(statement=most, lock=least, idle=least)
    with _transaction(limits, durable=durable):
        yield


@contextmanager
def batch_transaction(seconds: float) -> Iterator[None]:
    """A transaction for a batch, whose statements end within `seconds`.

    On MariaDB and MySQL it refuses values that do not fit, whatever the session's mode: cut ones would
    differ from their source for ever.
    """
    database: Any = _usable_connection()
    thread = database.connection.thread_id() if database.vendor == "mysql" else None
    try:
        with _transaction(_Limits(seconds, seconds, seconds), strict=True):
            yield
    except (KeyboardInterrupt, SystemExit):
        if (
            thread and not database.in_atomic_block
        ):  # else a test case's transaction would be lost too
            database.close()
            with suppress(Error):  # the server would finish the statement, and hold its locks
                _execute(f"KILL {thread}")
        raise


@contextmanager
def _transaction(limits: _Limits, *, strict: bool = False, durable: bool = True) -> Iterator[None]:
    database: Any = _usable_connection()
    alone = database.get_autocommit()  # else a test case's transaction is around it
    mysql = database.vendor == "mysql"
    own = alone or durable  # else it is part of a caller's, which keeps its limits
    session = (
        _mysql_session(database, limits, strict=strict, alone=alone)
        if mysql and own
        else nullcontext()
    )
    with session, transaction.atomic(using=alias(), durable=durable):
        if alone and database.vendor == "postgresql":
            _begin(database, limits)
        yield


def _begin(database: Any, limits: _Limits) -> None:
    """Begin a transaction of PostgreSQL with its level and limits, in one round trip.

    Nothing of it outlives the transaction: behind PgBouncer the session is another client's then.
    """
    settings = [f"SET LOCAL {name} = {value}" for name, value in _postgres_limits(limits).items()]
    raw = database.connection
    if not hasattr(raw, "pgconn"):  # psycopg 2, which cannot be kept from sending its own BEGIN
        _execute("; ".join(["SET TRANSACTION ISOLATION LEVEL READ COMMITTED", *settings]))
        return
    with database.wrap_database_errors:
        result = raw.pgconn.exec_("; ".join([_READ_COMMITTED, *settings]).encode())
    if result.error_message:
        raise OperationalError(result.error_message.decode(errors="replace").strip())


def _postgres_limits(limits: _Limits) -> dict[str, int]:
    return {
        "statement_timeout": _milliseconds(limits.statement),
        "lock_timeout": _milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle),
    }


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


@contextmanager
def _mysql_session(database: Any, limits: _Limits, *, strict: bool, alone: bool) -> Iterator[None]:
    """The settings of the session are those of a transaction of ours until the end.

    One statement sets them, keeps those before, and begins the transaction; another takes them back. What runs
    once a transaction has committed may begin another before they are: each keeps them by names of its own.
    """
    values = _mysql_limits(database, limits)
    if strict:
        values["sql_mode"] = "CONCAT(@@SESSION.sql_mode, ',STRICT_TRANS_TABLES')"
    if alone:
        level = "tx_isolation" if database.mysql_is_mariadb else "transaction_isolation"
        values[level] = "'READ-COMMITTED'"
    depth = _DEPTHS[database] = _DEPTHS.get(database, 0) + 1
    kept = [f"@matviews_{depth}_{name} = @@SESSION.{name}" for name in values]
    new = [f"SESSION {name} = {value}" for name, value in values.items()]
    back = [f"SESSION {name} = @matviews_{depth}_{name}" for name in values]
    raw = database.connection
    try:
        _execute(f"SET {', '.join([*kept, *new, *(['autocommit = 0'] if alone else [])])}")
        yield
    finally:
        _DEPTHS[database] = depth - 1
        if database.connection is raw:  # a session that is gone has nothing to take back
            _take_back(database, [*back, *(["autocommit = 1"] if alone else [])])


# By connection, how many of these sessions are within each other.
_DEPTHS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _take_back(database: Any, settings: list[str]) -> None:
    try:
        _execute(f"SET {', '.join(settings)}")
    except Error:
        if not database.in_atomic_block:
            database.close()


def _mysql_limits(database: Any, limits: _Limits) -> dict[str, float | str]:
    """MySQL can bound only reading statements; its other limit ends a silent connection."""
    statement, lock, idle = limits
    waits: dict[str, float | str] = {
        "innodb_lock_wait_timeout": _whole(lock),
        "lock_wait_timeout": _whole(lock),
    }
    if database.mysql_is_mariadb:
        return {"max_statement_time": statement, "idle_transaction_timeout": _whole(idle), **waits}
    return {"max_execution_time": _milliseconds(statement), "wait_timeout": _whole(idle), **waits}


def _whole(seconds: float) -> int:
    return max(1, round(seconds))


def limit_statements(seconds: float) -> None:
    """Bound the statements that follow in this batch; SQLite has no such limit."""
    database: Any = _connection()
    limits = _Limits(seconds, seconds, seconds)
    if database.vendor == "postgresql":
        _execute(
            "; ".join(f"SET LOCAL {n} = {value}" for n, value in _postgres_limits(limits).items())
        )
    elif database.vendor == "mysql":
        values = _mysql_limits(database, limits).items()
        _execute(f"SET {', '.join(f'SESSION {name} = {value}' for name, value in values)}")


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
        return _classify_postgres(error, sqlstate(error))
    if vendor == "mysql":
        return _classify_mysql(_error_number(error))
    passing = getattr(cause, "sqlite_errorname", "").startswith(SQLITE_TRANSIENT)
    return Fault.TRANSIENT if passing else Fault.FINAL


def _error_number(error: Error) -> object:
    """What MariaDB and MySQL call an error by."""
    cause = error.__cause__ or error
    return cause.args[0] if cause.args else None


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
