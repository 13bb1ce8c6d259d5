"""Processes that end together, and with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

__all__ = ["Ended", "Process", "Processes", "Stopped"]

STOPPER = Path(__file__).with_name("stopper.py")
PATIENCE = 60.0  # seconds until a process must be ready
POLL = 0.05


class Stopped(Exception):
    """A person or the system asked for the end: Ctrl-C, a closed terminal, SIGTERM."""


class Ended(Exception):
    """A process ended by itself, or did not get ready."""


class Process:
    """A process in a session of its own, so that a terminal's Ctrl-C does not reach it directly."""

    def __init__(
        self, name: str, command: tuple[str, ...], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._log = name, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.group = self._process.pid

    def has_written(self, words: str) -> bool:
        return words in self._log.read_text(errors="replace")

    def reap(self) -> int | None:
        """Its exit status, or None while it runs; until it is asked for, a zombie stays."""
        return self._process.poll()

    def check(self) -> None:
        status = self.reap()
        if status is not None:
            raise self.failure(f"ended by itself with exit status {status}")

    def failure(self, what: str) -> Ended:
        with self._log.open(errors="replace") as lines:
            end = "".join(deque(lines, maxlen=15)) or "(empty)\n"
        return Ended(
            f"The {self.name} {what}. Everything has been stopped. The end of {self._log}:\n{end}"
        )


class Processes:
    """A context that starts processes, watches them, and leaves none.

    Signals are only noted, and looked at by `check`: none comes between a start and its being
    noted. The stopper ends the processes, also when this one is killed.

    Args:
        folder: where their logs go.
        environment: what they all get.
        keep_open: a file that stays open, and locked if it is, until the last one has ended.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], keep_open: int) -> None:
        self._folder, self._environment = folder, environment
        self._keep_open = keep_open
        self._started: list[Process] = []
        self._signalled = False
        self._on_terminal = os.isatty(0)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        self._stopper = subprocess.Popen(
            [sys.executable, STOPPER], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, pass_fds=[self._keep_open],
        )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stopper.stdin is not None
        self._stopper.stdin.close()
        while self._stopper.poll() is None:
            for process in self._started:
                process.reap()
            time.sleep(POLL)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    def start(self, name: str, *command: str, **environment: str) -> Process:
        """Start `python command`."""
        process = Process(
            name, (sys.executable, *command), {**self._environment, **environment},
            self._folder / f"{name.replace(' ', '-')}.log",
        )  # fmt: skip
        self._started.append(process)
        assert self._stopper.stdin is not None
        print(process.group, file=self._stopper.stdin, flush=True)
        return process

    def wait_until(self, process: Process, ready: Callable[[], bool]) -> None:
        """Wait until a process is ready; raises as `check` does."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > deadline:
                raise process.failure(f"was not ready after {PATIENCE:.0f} seconds")
            self.check()
            time.sleep(POLL)

    def check(self) -> None:
        """Look at what has happened since the last look.

        Raises:
            Ended: one of the processes has.
            Stopped: by a signal.
        """
        # Where make leads the session, it keeps the signal of a closed terminal to itself.
        if self._signalled or (self._on_terminal and not os.isatty(0)):
            raise Stopped
        for process in self._started:
            process.check()

    def wait(self) -> NoReturn:
        """Go on until something ends it; raises as `check` does."""
        while True:
            self.check()
            time.sleep(POLL)
