"""What differs between PostgreSQL, MariaDB/MySQL and SQLite: a folder for each database.

The folders have the same files, one for each subject. A fourth database is one more folder and one
more line in `_ENGINES`. Nothing outside this package asks which database it is.
"""

from typing import NamedTuple

from django.db import connections

from .base.catalog import Catalog, MissingRight, Needs
from .base.current import CurrentSQL
from .base.dialect import ROWS, Dialect
from .base.errors import ConstraintKind, Errors, Failure, Violation
from .base.floors import Floors
from .base.load import Load, LoadReader
from .base.sessions import Compiled, Limits, Sessions
from .base.staging import Staging, StagingRefused
from .base.sums import SumTables
from .base.triggers import Triggers
from .mysql.catalog import MySQLCatalog
from .mysql.current import MySQLCurrentSQL
from .mysql.dialect import MySQL
from .mysql.errors import MySQLErrors
from .mysql.load import MySQLLoad
from .mysql.sessions import MySQLSessions
from .mysql.staging import MySQLStaging
from .mysql.sums import MySQLSumTables
from .mysql.triggers import MySQLTriggers
from .postgresql.catalog import PostgreSQLCatalog
from .postgresql.dialect import PostgreSQL
from .postgresql.errors import PostgreSQLErrors
from .postgresql.floors import PostgreSQLFloors
from .postgresql.load import PostgreSQLLoad
from .postgresql.sessions import PostgreSQLSessions
from .postgresql.staging import PostgreSQLStaging
from .postgresql.sums import PostgreSQLSumTables
from .postgresql.triggers import PostgreSQLTriggers
from .sqlite.current import SQLiteCurrentSQL
from .sqlite.dialect import SQLite
from .sqlite.errors import SQLiteErrors
from .sqlite.sessions import SQLiteSessions
from .sqlite.triggers import SQLiteTriggers

__all__ = [
    "ROWS", "Catalog", "Compiled", "ConstraintKind", "CurrentSQL", "Dialect", "Errors", "Failure",
    "Floors", "Limits", "Load", "LoadReader", "MissingRight", "Needs", "Sessions", "Staging",
    "StagingRefused", "SumTables", "Triggers", "Violation", "catalog_of", "current_of",
    "dialect_of", "errors_of", "floors_of", "is_supported", "load_reader_of", "sessions_of",
    "staging_of",
    "sums_of", "triggers_of",
]  # fmt: skip


class _Engine(NamedTuple):
    catalog: type[Catalog]
    dialect: type[Dialect]
    errors: type[Errors]
    floors: type[Floors]
    sessions: type[Sessions]
    staging: type[Staging]
    triggers: type[Triggers]
    load: type[LoadReader]
    sums: type[SumTables]
    current: type[CurrentSQL]


_ENGINES = {
    "postgresql": _Engine(
        PostgreSQLCatalog, PostgreSQL, PostgreSQLErrors, PostgreSQLFloors, PostgreSQLSessions,
        PostgreSQLStaging, PostgreSQLTriggers, PostgreSQLLoad, PostgreSQLSumTables, CurrentSQL,
    ),
    "mysql": _Engine(
        MySQLCatalog, MySQL, MySQLErrors, Floors, MySQLSessions, MySQLStaging, MySQLTriggers,
        MySQLLoad, MySQLSumTables, MySQLCurrentSQL,
    ),
    "sqlite": _Engine(
        Catalog, SQLite, SQLiteErrors, Floors, SQLiteSessions, Staging, SQLiteTriggers,
        LoadReader, SumTables, SQLiteCurrentSQL,
    ),
}  # fmt: skip


def is_supported(using: str) -> bool:
    """Whether there is a folder for the database with this alias."""
    return connections[using].vendor in _ENGINES


def _engine_of(using: str) -> _Engine:
    return _ENGINES[connections[using].vendor]


def catalog_of(using: str) -> Catalog:
    """What the database with this alias knows about its tables, rights and time."""
    return _engine_of(using).catalog(using)


def current_of(using: str) -> CurrentSQL:
    """The SQL that reads a view as of now in the database with this alias."""
    return _engine_of(using).current(dialect_of(using))


def dialect_of(using: str) -> Dialect:
    """The SQL of statements in the database with this alias."""
    return _engine_of(using).dialect(using)


def errors_of(using: str) -> Errors:
    """How errors of the database with this alias are classified."""
    return _engine_of(using).errors()


def floors_of(using: str) -> Floors:
    """Which entries of the log and of the queues are read in the database with this alias."""
    return _engine_of(using).floors(using)


def load_reader_of(using: str) -> LoadReader:
    """What reads how busy the database with this alias is."""
    return _engine_of(using).load(using)


def sessions_of(using: str) -> Sessions:
    """The limits and locks of transactions in the database with this alias."""
    return _engine_of(using).sessions(using)


def staging_of(using: str) -> Staging:
    """How staging tables are created in the database with this alias."""
    return _engine_of(using).staging(using)


def sums_of(using: str) -> SumTables:
    """The tables of additive views in the database with this alias."""
    return _engine_of(using).sums(using)


def triggers_of(using: str) -> Triggers:
    """The triggers of the database with this alias."""
    return _engine_of(using).triggers(using)
