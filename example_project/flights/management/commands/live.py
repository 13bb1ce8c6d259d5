import fcntl
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console

from flights.live.demo import BrokerMissing, run
from flights.live.processes import Ended, Stopped
from flights.loading import DataMissing
from flights.management.databases import use_file

FOLDER = Path(__file__).resolve().parents[3]


class Command(BaseCommand):
    help = (
        "Run everything until Ctrl-C: broker, worker, beat, web server, and traffic that changes "
        "flights. Keeps its database, live.sqlite3, for the next time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port",
            type=int,
            default=8000,
            help="The port of the web server; if it is taken, the next free one.",
        )
        parser.add_argument("--fresh", action="store_true", help="Begin with an empty database.")
        parser.add_argument("--days", type=int, help="Load only the first DAYS days of 2013.")
        parser.add_argument(
            "--folder", type=Path, default=FOLDER, help="Where the database and the logs go."
        )

    def handle(
        self, *_args: Any, port: int, fresh: bool, days: int | None, folder: Path, **_options: Any
    ) -> None:
        database, logs = folder.resolve() / "live.sqlite3", folder.resolve() / "live-logs"
        logs.mkdir(parents=True, exist_ok=True)
        with locked(logs / "lock") as lock:
            use_file(database, empty=fresh)
            try:
                with suppress(Stopped):
                    run(Console(), database, logs, port=port, days=days, lock=lock)
            except (BrokerMissing, DataMissing, Ended) as error:
                raise CommandError(str(error)) from error


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock on a file, until the last process that has it open has ended."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(
                f"The live demo is running in {path.parent.parent} already: stop it with Ctrl-C in "
                f"its terminal, or start this one with --folder."
            ) from error
        yield file.fileno()
