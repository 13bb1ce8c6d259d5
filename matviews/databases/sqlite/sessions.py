"""SQLite: no timeouts and no row locks; a statement is stopped between two of its steps."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..base.sessions import Limits, Sessions

__all__ = ["SQLiteSessions"]

STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock: less than 1 ms


class SQLiteSessions(Sessions):
    """Nothing limits an ordinary statement: it holds up no other database's sessions."""

    @contextmanager
    def budget(self, seconds: float, limits: Limits) -> Iterator[None]:
        """All statements of the context together may take so long."""
        raw, end = self.connection.connection, time.monotonic() + seconds
        raw.set_progress_handler(lambda: time.monotonic() > end, STEPS)
        try:
            yield
        finally:
            with suppress(sqlite3.ProgrammingError):  # the connection was closed
                raw.set_progress_handler(None, 0)
