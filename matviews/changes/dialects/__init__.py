"""The triggers of each database, a file for each."""

from django.db import connections

from .base import MANY, MISSING, TriggerDialect, TriggerName
from .mysql import MySQLTriggers
from .postgresql import PostgreSQLTriggers
from .sqlite import SQLiteTriggers

__all__ = ["MANY", "MISSING", "TriggerDialect", "TriggerName", "dialect_of"]

DIALECTS: dict[str, type[TriggerDialect]] = {
    "postgresql": PostgreSQLTriggers,
    "mysql": MySQLTriggers,
    "sqlite": SQLiteTriggers,
}


def dialect_of(using: str) -> TriggerDialect:
    """The dialect of a database, by its alias."""
    return DIALECTS[connections[using].vendor](using)
