"""The servers, workers, beats, followers and writers of a run."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

from tests.helpers.processes import FEW_MESSAGES

from .clock import Clock
from .processes import Process, python
from .servers import DATABASES, Broker, DatabaseServer
from .variables import BROKEN, CLOCK, IMPATIENT, VERSION

__all__ = ["BEATS", "FOLLOWERS", "QUEUE", "SHUTDOWN", "WORKERS", "World"]

QUEUE = "chaos"
WORKERS = ("worker 1", "worker 2", "worker 3")
BEATS = ("beat 1", "beat 2")
#: The first refreshes in its own process, the second has workers do it.
FOLLOWERS = ("follower 1", "follower 2")
WRITERS = ("writer 1", "writer 2", "writer 3")
#: Of the last worker, which has a pool; the others do their work themselves.
CHILDREN = 2
#: A warm shutdown, before it is a cold one.
SHUTDOWN = 3.0  # seconds
#: What workers, beats and followers print once they are at work.
READY = (" ready.", "beat: Starting...", "Following changes.")


class World:
    """Everything that runs.

    Args:
        folder: of the logs and the data.
        database: which one.
        lease: `MATVIEWS["LEASE"]`, and every how many seconds maintenance runs.
        kind: how the workers' engine is broken, "" if it is not.
    """

    def __init__(self, folder: Path, database: str, lease: float, kind: str) -> None:
        self.database_server: DatabaseServer = DATABASES[database](folder)
        self.broker = Broker(folder)
        #: Whether the database server is up, and can be asked.
        self.reachable = False
        #: Of the logs.
        self.folder = folder
        #: Of the code that is started from now on.
        self.version = 0
        self._environment = {
            **os.environ,
            "TMPDIR": str(folder),
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "MATVIEWS_TEST_DB": database,
            self.database_server.variable: self.database_server.url,
            "MATVIEWS_TEST_BROKER_URL": self.broker.url,
            "MATVIEWS_TEST_QUEUE": QUEUE,
            "MATVIEWS_TEST_KEY_PREFIX": "",
            "MATVIEWS_TEST_SETTINGS": json.dumps(_settings(lease)),
            BROKEN: kind,
        }
        names = (*WORKERS, *BEATS, *FOLLOWERS)
        self.clocks = {name: Clock(self._clock_of(name)) for name in names}
        self.programs = {
            **{name: self._celery(name, *_of_worker(name)) for name in WORKERS},
            **{name: self._celery(name, *_OF_BEAT) for name in BEATS},
            **{name: self._follower(name) for name in FOLLOWERS},
        }
        self.writers = [self._writer(name) for name in WRITERS]

    def _clock_of(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.clock"

    def _celery(self, name: str, *arguments: str) -> Process:
        return self._program(
            name, "tests.chaos.celery_process", "--app", "tests.chaos.celery_app", "--skip-checks",
            *arguments, "--loglevel", "INFO",
        )  # fmt: skip

    def _follower(self, name: str) -> Process:
        enqueue = ["--enqueue"] if name == FOLLOWERS[-1] else []
        return self._program(name, "tests.chaos.follow_process", *enqueue)

    def _program(self, name: str, *arguments: str) -> Process:
        environment = {**self._environment, CLOCK: str(self._clock_of(name))}
        return Process(
            name, python("-m", *arguments), environment, self.folder,
            ready=lambda text: any(sign in text for sign in READY),
        )  # fmt: skip

    def _writer(self, name: str) -> Process:
        seed = str(random.randrange(2**32))
        command = python("-m", "tests.chaos.writers", seed)
        impatient = {**self._environment, IMPATIENT: "1"}
        return Process(name, command, impatient, self.folder)

    def use_environment(self) -> None:
        """Have this process use the servers too."""
        os.environ.update(self._environment)
        os.environ[IMPATIENT] = "1"

    @property
    def all(self) -> list[Process]:
        """Whoever uses a server comes before it."""
        return [*self.writers, *self.programs.values(), self.broker, self.database_server]

    def start_programs(self) -> None:
        """Start workers, beats and followers and wait until they are at work."""
        for program in self.programs.values():
            program.held = False
            program.start()
        for program in self.programs.values():
            program.wait_until_ready()

    def restart(self, name: str) -> None:
        """Have a program end as in a deploy, and start it with the present version."""
        program = self.programs[name]
        program.ask_to_end(signal.SIGTERM, SHUTDOWN)
        program.environment[VERSION] = str(self.version)
        program.start()

    def use_version(self, version: int) -> None:
        """Have what is started from now on, and this process, run a version of the code."""
        self.version = version
        os.environ[VERSION] = str(version)
        for program in self.programs.values():
            program.environment[VERSION] = str(version)

    def revive(self) -> None:
        """Start what has ended by itself."""
        for process in (*self.writers, *self.programs.values()):
            process.revive()

    def end_writers(self) -> None:
        """Have the writers finish their transactions."""
        for writer in self.writers:
            writer.held = True
            writer.ask_to_end(signal.SIGTERM, SHUTDOWN)

    def end(self) -> None:
        """Leave no process."""
        for process in self.all:
            process.held = True
            process.kill()


def _settings(lease: float) -> dict[str, Any]:
    return {
        "LEASE": lease,
        "STATEMENT_TIMEOUT": lease,
        "MAX_RESEND_INTERVAL": 4 * lease,
        "MAX_RETRY_DELAY": 2 * lease,
        "BATCH_SIZE_INITIAL": 100,
        "BATCH_SIZE_MIN": 10,
        "BATCH_SIZE_MAX": 500,
    }


def _of_worker(name: str) -> tuple[str, ...]:
    pool = ("prefork", "--concurrency", str(CHILDREN)) if name == WORKERS[-1] else ("solo",)
    host = name.replace(" ", "")
    return ("worker", "--hostname", f"{host}@%h", "--pool", *pool, *FEW_MESSAGES)


_OF_BEAT = (
    "beat", "--pidfile=", "--max-interval", "1",
    "--scheduler", "django_celery_beat.schedulers:DatabaseScheduler",
)  # fmt: skip
