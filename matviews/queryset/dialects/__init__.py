"""What differs between the databases in the SQL of queryset views, a file for each."""

from django.db import connections

from .base import ROWS, Dialect
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["ROWS", "Dialect", "dialect_of"]

DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "sqlite": SQLite,
}


def dialect_of(using: str) -> Dialect:
    """The dialect of a database, by its alias."""
    return DIALECTS[connections[using].vendor](using)
