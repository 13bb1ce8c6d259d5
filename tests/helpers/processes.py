"""Real `celery worker` and `celery beat` processes for tests, and waiting for what they do.

`python -m tests.helpers.processes LABEL COUNT` requests a refresh in many processes at once.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import ROOT
from tests.helpers import forked
from tests.helpers.forked import Forked

DEADLINE = 240.0  # seconds until a test gives up waiting, on a machine that does other things too
POLL = 0.05
MAINTAIN_EVERY = 1.0
FEW_MESSAGES = ("--without-gossip", "--without-mingle", "--without-heartbeat")


class Program:
    """A `celery` process and its children, in a process group of their own."""

    def __init__(self, environment: dict[str, str], log: Path, ready: str, *arguments: str) -> None:
        self._environment, self._log, self._ready = environment, log, ready
        self._command = (
            "-m", "celery", "--app", "tests.celery_app", "--skip-checks",
            *arguments, "--loglevel", "INFO",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        self._starts_at = len(self.lines())
        with self._log.open("ab") as log:
            self._process = Forked(
                self._command,
                cwd=ROOT,
                env=self._environment,
                output=log.fileno(),
                own_group=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    @property
    def ready(self) -> bool:
        """Whether it has been at work since its last start."""
        return not self.dead and any(
            line.rstrip().endswith(self._ready) for line in self.lines()[self._starts_at :]
        )

    @property
    def stopped(self) -> bool:
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    @property
    def children(self) -> list[int]:
        return [
            int(pid)
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        ]

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait(timeout=DEADLINE)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        if not self.dead:
            os.killpg(self.pid, number)

    def lines(self, *words: str) -> list[str]:
        """The lines of its log that hold all `words`."""
        if not self._log.exists():
            return []
        text = self._log.read_text(errors="replace")
        return [line for line in text.splitlines() if all(word in line for word in words)]


class Worker(Program):
    """A `celery worker` process."""

    def __init__(self, environment: dict[str, str], log: Path, *options: str) -> None:
        name = ("--hostname", f"{log.stem}-{os.getpid()}@%h")  # brokers are shared
        super().__init__(environment, log, " ready.", "worker", *name, *FEW_MESSAGES, *options)


class Beat(Program):
    """A `celery beat` process that takes its schedule from the database, and looks each second."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        super().__init__(
            environment, log, "beat: Starting...", "beat", "--pidfile=", "--max-interval", "1",
            "--scheduler", "django_celery_beat.schedulers:DatabaseScheduler",
        )  # fmt: skip


class Workers:
    """The worker processes of one test on one broker, and its beats. This one can send to them.

    Workers run with the `MATVIEWS` settings that are in force when they are started.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder
        self._maintained = 0.0
        self.all: list[Worker] = []
        self.beats: list[Beat] = []

    def __enter__(self) -> Self:
        import celery

        from matviews import engine

        engine.sync_controls()
        self._app_before: Any = celery.current_app._get_current_object()
        # Tasks send through the current app; this one knows the broker of the test.
        self._app = celery.Celery("sender", broker=self._environment["MATVIEWS_TEST_BROKER_URL"])
        self._app.conf.task_default_queue = self._environment["MATVIEWS_TEST_QUEUE"]
        if prefix := self._environment["MATVIEWS_TEST_KEY_PREFIX"]:
            self._app.conf.broker_transport_options = {"global_keyprefix": prefix}
        self._app.set_default()  # in other threads too
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for program in (*self.all, *self.beats):
            program.kill()
        self._app.close()
        self._app_before.set_current()
        self._app_before.set_default()

    def start(self, count: int = 1, *, children: int = 0) -> list[Worker]:
        """Start workers and wait until they listen; with `children`, each has a pool of these."""
        started = [self._start(children) for _ in range(count)]
        self.wait_for(lambda: all(worker.ready for worker in started))
        return started

    def start_beat(self) -> Beat:
        """Start a beat and wait until it works."""
        beat = Beat(self._settings(), self._folder / f"beat{len(self.beats)}.log")
        self.beats.append(beat)
        self.wait_for(lambda: beat.ready)
        return beat

    def _settings(self) -> dict[str, str]:
        from django.conf import settings

        # The next request after a failure is tried at once.
        ours = {"MAX_RETRY_DELAY": 0.001, **settings.MATVIEWS}
        return {**self._environment, "MATVIEWS_TEST_SETTINGS": json.dumps(ours)}

    def _start(self, children: int) -> Worker:
        pool = (
            ("--pool", "prefork", "--concurrency", str(children))
            if children
            else ("--pool", "solo")
        )
        worker = Worker(self._settings(), self._folder / f"worker{len(self.all)}.log", *pool)
        self.all.append(worker)
        return worker

    def revive(self) -> None:
        """Start dead workers again, as a supervisor would."""
        for worker in self.all:
            if worker.dead:
                worker.start()

    def send_by_name(self, task: str, *arguments: object) -> None:
        """Send a task as beat does: by its name, from an app that need not know it."""
        self._app.send_task(task, arguments)

    def maintain(self) -> None:
        """Run the maintenance task in this process, at most every `MAINTAIN_EVERY` seconds."""
        from matviews import tasks

        self._every(tasks.maintain)

    def send_maintain(self) -> None:
        """Send the maintenance task to the workers, as often and as beat does."""
        self._every(lambda: self.send_by_name("matviews.maintain"))

    def _every(self, work: Callable[[], object]) -> None:
        if time.monotonic() - self._maintained >= MAINTAIN_EVERY:
            self._maintained = time.monotonic()
            work()

    def wait_for(
        self,
        condition: Callable[[], object],
        *,
        seconds: float = DEADLINE,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> float:
        """Wait until `condition` holds, calling `meanwhile` again and again.

        Returns:
            The seconds that it took.

        Raises:
            AssertionError: `seconds` are over; with the bookkeeping and the ends of the logs.
        """
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                raise AssertionError(f"still waiting after {seconds} s\n{self._state()}")
            meanwhile()
            time.sleep(POLL)
        return time.monotonic() - started

    def wait_until_quiet(
        self, *, seconds: float = DEADLINE, meanwhile: Callable[[], object] = lambda: None
    ) -> float:
        """Wait until no refresh is open; see `wait_for`."""
        from matviews.models import Refresh
        from matviews.states import RefreshState

        still_open = Refresh.objects.filter(state=RefreshState.OPEN)
        return self.wait_for(lambda: not still_open.exists(), seconds=seconds, meanwhile=meanwhile)

    def lines(self, *words: str) -> list[str]:
        """The lines of all logs that hold all `words`, worker by worker."""
        return [line for worker in self.all for line in worker.lines(*words)]

    def _state(self) -> str:
        from matviews.models import PhaseRun, Refresh, ViewShard

        rows = [
            str(row)
            for model in (ViewShard, Refresh, PhaseRun)
            for row in model._base_manager.values()
        ]
        logs = [
            f"--- {program.pid} dead={program.dead}\n" + "\n".join(program.lines()[-100:])
            for program in (*self.all, *self.beats)
        ]
        return "\n".join([*rows, *logs])


def manage(folder: Path, settings: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with settings that change those of the tests."""
    (folder / "other_settings.py").write_text(f"from tests.settings import *\n{settings}")
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "other_settings",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    return forked.run(["-m", "django", *arguments], cwd=ROOT, env=environment)


def ask_at_once(
    label: str, count: int, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Let `count` processes ask for a refresh of a view at the same moment."""
    return subprocess.run(
        [sys.executable, "-m", "tests.helpers.processes", label, str(count)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip


def _ask(label: str, barrier: Any) -> None:
    from matviews import refresh

    barrier.wait(DEADLINE)
    refresh(label)


def _main(label: str, count: int) -> int:
    import django

    django.setup()
    from tests import celery_app  # noqa: F401 - the app that they send through

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)
    askers = [context.Process(target=_ask, args=(label, barrier)) for _ in range(count)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return sum(asker.exitcode != 0 for asker in askers)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2])))
