"""Turning errors and values into text that may be stored, logged and shown.

Databases put values of rows into their errors. What `MATVIEWS["VALUES_IN_ERRORS"]` does not allow
is left out by building a new text from parts known to hold no values, never by cutting values out
of the database's text. The length of every text is bounded.
"""

import re
import reprlib
import traceback
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import Error

from .conf import get_settings
from .exceptions import MatviewsError

__all__ = [
    "OMITTED", "bounded", "brief", "cause", "error_text", "error_words", "has_place",
    "in_one_line", "loggable", "may_show_keys", "pattern", "raised_by_routine",
    "recorded_exception", "traceback_text",
]  # fmt: skip

MAX_TEXT_LENGTH = 20_000  # of an error or a traceback
MAX_LINE_LENGTH = 1_000  # of an error in a log line
MAX_VALUE_LENGTH = 100
MAX_CHAIN_LENGTH = 20  # of exceptions, each the cause of the next
OMITTED = "values left out, see MATVIEWS['VALUES_IN_ERRORS']"

# Their messages are about code, not about rows.
OF_CODE = (
    AttributeError, FieldDoesNotExist, FieldError, ImportError, MemoryError, NameError,
    NotImplementedError, RecursionError,
)  # fmt: skip
DRIVERS = {"psycopg", "psycopg2", "MySQLdb", "pymysql", "sqlite3"}

# Classes of SQLSTATE whose messages name objects, sizes and processes, but no values.
POSTGRES_SAFE = {
    "08", "0A", "21", "25", "26", "28", "2D", "34", "3B", "3D", "3F", "40", "42",
    "53", "54", "55", "57", "58",
}  # fmt: skip
POSTGRES_NAMES = {
    "constraint": "constraint_name", "column": "column_name", "table": "table_name",
    "type": "datatype_name",
}  # fmt: skip
# Error numbers of MariaDB and MySQL whose messages name objects, users and limits, but no values.
MYSQL_SAFE = {
    1020, 1040, 1044, 1045, 1046, 1048, 1049, 1053, 1054, 1099, 1100, 1104, 1114, 1142, 1143,
    1146, 1152, 1153, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1213, 1226, 1227, 1242, 1264,
    1265, 1267, 1290, 1305, 1317, 1356, 1364, 1365, 1370, 1406, 1412, 1419, 1436, 1451, 1452, 1701,
    1792, 1836, 1927, 1969, 2002, 2003, 2006, 2013, 2055, 3024, 3819, 4025, 4031,
}  # fmt: skip
MYSQL_KINDS = {
    1062: "duplicate entry", 1064: "syntax error", 1292: "incorrect value", 1366: "incorrect value",
    1411: "incorrect value", 1525: "incorrect value", 1690: "value out of range",
}  # fmt: skip
# The value precedes the name, so the text ends with the name.
MYSQL_NAMES = (
    re.compile(r" for key '(?P<constraint>[\w$.-]+)'\Z"),
    re.compile(r" for column [`']?(?P<column>[\w$.`-]+?)[`']? at row \d+\Z"),
)
SQLITE_SAFE = (
    "SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_CONSTRAINT_CHECK", "SQLITE_CONSTRAINT_FOREIGNKEY",
    "SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE",
    "SQLITE_CORRUPT", "SQLITE_FULL", "SQLITE_INTERRUPT", "SQLITE_IOERR", "SQLITE_LOCKED",
    "SQLITE_MISMATCH", "SQLITE_NOMEM", "SQLITE_READONLY", "SQLITE_SCHEMA", "SQLITE_TOOBIG",
)  # fmt: skip
SQLITE_NAMES = re.compile(
    r"no such [a-z]+: [\w.]+|too many [a-zA-Z ]+"
    r"|interrupted|integer overflow|malformed JSON|user-defined function raised exception"
)
DUPLICATE = re.compile(r"Key \((?P<columns>[\w, \"]+)\)=\(.*\) already exists\.", re.DOTALL)


def may_show_keys() -> bool:
    """Whether texts may name the keys of rows."""
    return get_settings().VALUES_IN_ERRORS != "none"


def error_text(
    error: BaseException, *, trusted: bool = True, key: frozenset[str] = frozenset()
) -> str:
    """The class and message of an error, without what must not be stored.

    Args:
        error: the error.
        trusted: whether the message comes from the project or this package. If not, only the
            database's own messages and ours are known to hold no values.
        key: the columns of the view's key, whose values may be shown if keys may.
    """
    words = error_words(error, trusted=trusted, key=key)
    return bounded(f"{type(error).__name__}: {words}".strip())


def traceback_text(
    error: BaseException, *, trusted: bool = True, key: frozenset[str] = frozenset()
) -> str:
    """The traceback as Python prints it, with each error as in `error_text`."""
    return bounded("".join(_formatted(error, trusted, key)))


def loggable(
    error: BaseException, *, trusted: bool = True, key: frozenset[str] = frozenset()
) -> BaseException:
    """An exception for a log record: the error itself, if its texts may be logged as they are.

    If not, one of the same name and traceback that says what `error_text` does; so do its causes.
    """
    chain = list(_chain(error))
    words = [bounded(error_words(each, trusted=trusted, key=key)) for each in chain]
    grouped = any(isinstance(each, BaseExceptionGroup) for each in chain)
    if not grouped and all(map(str.__eq__, words, map(_message, chain))):
        return error
    shown = [_namesake(each, word) for each, word in zip(chain, words, strict=True)]
    for each, source, following in zip(shown, chain, [*shown[1:], None], strict=True):
        each.__traceback__, each.__cause__ = source.__traceback__, following
    return shown[0]


def _namesake(error: BaseException, words: str) -> BaseException:
    name, module = type(error).__name__, type(error).__module__
    made: BaseException = type(name, (Exception,), {"__module__": module})(words)
    return made


class RecordedTraceback(Exception):
    """The traceback of an exception that was raised in another process, as text."""


def recorded_exception(error: str, traceback: str) -> BaseException | None:
    """An exception for a log record, rebuilt from what `error_text` and `traceback_text` returned.

    Its class has the original name, and it has the original message. The traceback is the message
    of its cause.

    Returns:
        None if there is no traceback: then no exception was the cause.
    """
    if not traceback:
        return None
    name, _colon, words = error.partition(":")
    known = name.isidentifier()
    members = {"__module__": "builtins"}
    made: BaseException = type(name if known else "Exception", (Exception,), members)(
        words.strip() if known else error
    )
    made.__cause__ = RecordedTraceback(f"\n{traceback.rstrip()}")
    return made


def cause(error: str) -> str:
    """What kind of error a stored text is about: the class of the exception, or its first words."""
    kind = error.strip().partition("\n")[0].partition(":")[0]
    return re.sub(r"\d[\d,.]*", "N", kind)[:MAX_VALUE_LENGTH]


def pattern(error: str) -> str:
    """The first line of a stored error without what differs from one time to the next.

    That is the words that hold digits, except the numbers by which databases tell errors apart, and
    the values of a key.
    """
    line = re.sub(r"=\(.*\)", "=(...)", error.strip().partition("\n")[0])
    return re.sub(r"(?<!SQLSTATE )(?<!error \()\b\w*\d[\w,.:-]*", "N", line)


def in_one_line(text: str) -> str:
    """A text as part of a log line."""
    return " ".join(bounded(text, MAX_LINE_LENGTH).split())


def bounded(text: str, limit: int = MAX_TEXT_LENGTH) -> str:
    """A text that every database accepts: no NUL, no lone surrogates, about `limit` characters."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n...\n{text[-limit // 2 :]}"
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


class _Brief(reprlib.Repr):
    """A `repr` that reads no more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_VALUE_LENGTH
        self.maxlevel = 3

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value[: self.maxother])

    repr_bytearray = repr_memoryview = repr_bytes

    def repr_int(self, value: int, level: int) -> str:
        bits = value.bit_length()
        return super().repr_int(value, level) if bits < 4_000 else f"<a number of {bits} bits>"


def brief(value: object) -> str:
    """A value of any type and size in one short line, for what a message or a caller passed."""
    try:
        text = _Brief().repr(value)
    except Exception:  # noqa: BLE001 - whatever a class does in __repr__
        text = f"<{type(value).__name__}>"
    return in_one_line(text)[: 4 * MAX_VALUE_LENGTH]


def error_words(
    error: BaseException, *, trusted: bool = True, key: frozenset[str] = frozenset()
) -> str:
    """The message of an error, without its class; otherwise as `error_text`."""
    driver = _driver_error(error)
    allowed = get_settings().VALUES_IN_ERRORS
    harmless = trusted or isinstance(error, (MatviewsError, Error, *OF_CODE))
    key = key if allowed == "keys" else frozenset()
    if allowed == "all" or (driver is None and harmless):
        return f"{_message(error)} {_reworded_values(error, key)}".strip()
    if driver is None:
        return f"({OMITTED})"
    return " ".join((_database_words(driver, key), *getattr(error, "__notes__", ())))


def _reworded_values(error: BaseException, key: frozenset[str]) -> str:
    """The allowed values from a database message that was reworded."""
    cause: Any = error.__cause__
    if not (isinstance(error, Error) and _is_of_driver(cause)) or error.args == cause.args:
        return ""
    everything = get_settings().VALUES_IN_ERRORS == "all"
    return f"({_message(cause)})" if everything else _duplicate_key(cause, key)


def _message(error: BaseException) -> str:
    try:
        return "\n".join((str(error).strip(), *getattr(error, "__notes__", ())))
    except Exception:  # noqa: BLE001 - an exception may be of any make
        return "its message cannot be read"


def _driver_error(error: BaseException) -> Any:
    """The driver's error, if the message is the database's and was not reworded."""
    if _is_of_driver(error):
        return error
    cause = error.__cause__
    same = isinstance(error, Error) and cause is not None and error.args == cause.args
    return cause if same and _is_of_driver(cause) else None


def _is_of_driver(error: BaseException | None) -> bool:
    return any(each.__module__.partition(".")[0] in DRIVERS for each in type(error).__mro__)


def _database_words(error: Any, key: frozenset[str]) -> str:
    if hasattr(error, "diag"):
        return _postgres_words(error, key)
    if type(error).__module__.startswith("sqlite3"):
        return _sqlite_words(error)
    return _mysql_words(error)


def _postgres_words(error: Any, key: frozenset[str]) -> str:
    state = error.diag.sqlstate
    if state is None:  # raised by the client: a lost connection, a value it cannot convert
        of_connection = type(error).__name__ in ("OperationalError", "InterfaceError")
        return _message(error) if of_connection else f"({OMITTED})"
    by_routine = raised_by_routine(error)
    # Without a place, what is no table, query or configuration may be the value of a row.
    of_value = state[:2] == "42" and state != "42501" and not has_place(error)
    if state[:2] in POSTGRES_SAFE and not by_routine and not of_value:
        return error.diag.message_primary or ""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    named = {} if by_routine else POSTGRES_NAMES
    names = {what: getattr(error.diag, attribute) for what, attribute in named.items()}
    text = _with_names(f"{kind} (SQLSTATE {state})", names)
    return f"{text}: {detail}" if (detail := _duplicate_key(error, key)) else f"{text} ({OMITTED})"


def _duplicate_key(error: Any, key: frozenset[str]) -> str:
    """PostgreSQL's detail about a duplicate key, if it is about columns of `key` only."""
    state = error.diag.sqlstate if hasattr(error, "diag") else None
    if state != "23505" or raised_by_routine(error):
        return ""
    found = DUPLICATE.fullmatch(error.diag.message_detail or "")
    columns = {name.strip(' "') for name in found["columns"].split(",")} if found else set()
    return found[0] if found and columns <= key else ""


def raised_by_routine(error: Any) -> bool:
    """Whether a routine of the project raised it on PostgreSQL, with a message of its own."""
    file = error.diag.source_file or ""
    return file.startswith("pl") and not file.startswith("pla")  # planner.c, for example


def has_place(error: Any) -> bool:
    """Whether an error of PostgreSQL points to a part of the statement, or of a routine's."""
    return bool(error.diag.statement_position or error.diag.internal_position)


def _mysql_words(error: Any) -> str:
    number = error.args[0] if error.args else None
    message = str(error.args[1]) if len(error.args) > 1 else ""
    if not isinstance(number, int):
        return f"({OMITTED})"
    if number in MYSQL_SAFE:
        return f"({number}) {message}"
    found = [match.groupdict() for pattern in MYSQL_NAMES if (match := pattern.search(message))]
    kind = f"{MYSQL_KINDS.get(number, 'error')} ({number})"
    return f"{_with_names(kind, found[0] if found else {})} ({OMITTED})"


def _sqlite_words(error: Any) -> str:
    message = _message(error)
    safe = getattr(error, "sqlite_errorname", "").startswith(SQLITE_SAFE)
    return message if safe or SQLITE_NAMES.fullmatch(message) else f"({OMITTED})"


def _with_names(text: str, names: dict[str, str | None]) -> str:
    return ", ".join((text, *(f"{what} {name}" for what, name in names.items() if name)))


def _formatted(error: BaseException, trusted: bool, key: frozenset[str]) -> Iterator[str]:
    """The lines of a traceback, the first exception first."""
    for place, each in enumerate(reversed(list(_chain(error)))):
        if place:
            yield "\nDuring the handling of this exception, or because of it:\n\n"
        if each.__traceback__:
            yield "Traceback (most recent call last):\n"
            yield from traceback.format_tb(each.__traceback__)
        yield f"{error_text(each, trusted=trusted, key=key)}\n"
        if isinstance(each, BaseExceptionGroup):
            for member in each.exceptions[:MAX_CHAIN_LENGTH]:
                yield f"{error_text(member, trusted=trusted, key=key)}\n"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause's cause and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < MAX_CHAIN_LENGTH:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
