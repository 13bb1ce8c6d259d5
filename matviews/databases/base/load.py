"""How busy a database is, as far as it reports it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from django.db import connections

__all__ = ["Load", "LoadReader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How busy a database is at one moment. Values that it does not report are None."""

    #: Seconds by which the slowest replica is behind.
    replication_lag: float | None = None
    #: Sessions that run a statement, this one apart.
    active_sessions: int | None = None
    #: Seconds since the oldest open transaction of another session began.
    transaction_age: float | None = None
    #: The tables that are being vacuumed.
    vacuumed: frozenset[str] = frozenset()


class LoadReader:
    """Reads the load of a database. This one finds nothing, as on SQLite."""

    #: The fields of `Load` that the database can fill.
    known: ClassVar[frozenset[str]] = frozenset()
    #: The right without which it hides other sessions; "" if none is needed.
    right: ClassVar[str] = ""

    def __init__(self, using: str) -> None:
        self.connection: Any = connections[using]

    def read(self) -> Load:
        """The load now, in one statement."""
        return Load()

    def may_see(self) -> bool:
        """Whether this connection has `right`."""
        return True

    def row(self, sql: str) -> tuple[Any, ...]:
        """The only row of a query."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            found: tuple[Any, ...] = cursor.fetchone()
        return found
