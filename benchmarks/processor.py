"""Processor time: of this process, and of the session that its connection has on the server."""

import time
from pathlib import Path

from django.db import connection

__all__ = ["Processor"]

SESSIONS = {
    "postgresql": "SELECT pg_backend_pid()",
    "mysql": "SELECT tid FROM information_schema.processlist WHERE id = connection_id()",  # MariaDB
}


class Processor:
    """Measures from its creation, in milliseconds. It does not count what others do meanwhile."""

    def __init__(self) -> None:
        self._session = _session()
        self._own, self._server = time.process_time(), self._of_server()

    @property
    def own(self) -> float:
        """What this process took."""
        return (time.process_time() - self._own) * 1e3

    @property
    def server(self) -> float:
        """What the session took; 0 on SQLite, which has none."""
        return self._of_server() - self._server

    def _of_server(self) -> float:
        return int(self._session.read_text().split()[0]) / 1e6 if self._session else 0.0


def _session() -> Path | None:
    """Where Linux says how long the server's process or thread for this connection has run."""
    if connection.vendor not in SESSIONS:
        return None
    with connection.cursor() as cursor:
        cursor.execute(SESSIONS[connection.vendor])
        (number,) = cursor.fetchone()
    return Path(f"/proc/{number}/task/{number}/schedstat")
