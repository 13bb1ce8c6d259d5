"""What differs between PostgreSQL, MariaDB/MySQL and SQLite: a folder for each, the same files in each."""

from django.db import connections

from .base.dialect import ROWS, Dialect
from .base.triggers import Triggers
from .mysql.dialect import MySQL
from .mysql.triggers import MySQLTriggers
from .postgresql.dialect import PostgreSQL
from .postgresql.triggers import PostgreSQLTriggers
from .sqlite.dialect import SQLite
from .sqlite.triggers import SQLiteTriggers

__all__ = ["ROWS", "Dialect", "Triggers", "dialect_of", "triggers_of"]

DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "sqlite": SQLite,
}
TRIGGERS: dict[str, type[Triggers]] = {
    "postgresql": PostgreSQLTriggers,
    "mysql": MySQLTriggers,
    "sqlite": SQLiteTriggers,
}


def dialect_of(using: str) -> Dialect:
    """The SQL of statements in a database, by its alias."""
    return DIALECTS[connections[using].vendor](using)


def triggers_of(using: str) -> Triggers:
    """The triggers of a database, by its alias."""
    return TRIGGERS[connections[using].vendor](using)
