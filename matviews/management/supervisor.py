"""Reporting to systemd: for a unit of Type=notify, with or without a watchdog."""

import os
import socket
import time
from contextlib import suppress

__all__ = ["Supervisor"]

SECONDS_BETWEEN_SIGNS = 1.0


class Supervisor:
    """Reports to the supervisor, if there is one that wants it (`NOTIFY_SOCKET`)."""

    def __init__(self) -> None:
        self._address, self._told_at = os.environ.get("NOTIFY_SOCKET", ""), -SECONDS_BETWEEN_SIGNS
        self._ready = False

    def report_alive(self) -> None:
        """Report that the process works; the first time, that it has started."""
        if time.monotonic() < self._told_at + SECONDS_BETWEEN_SIGNS:
            return
        self._told_at = time.monotonic()
        self._tell("WATCHDOG=1" if self._ready else "READY=1\nWATCHDOG=1")
        self._ready = True

    def report_stopping(self) -> None:
        """Report that the process is about to end."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
