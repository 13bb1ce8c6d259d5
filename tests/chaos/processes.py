"""A process with its children, which can be killed, frozen and started again."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import ROOT

__all__ = ["PATIENCE", "Process", "python"]

PATIENCE = 60.0  # seconds until a process must be ready, or gone
POLL = 0.05
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Process:
    """A program in a session of its own.

    Args:
        name: what reports and its log are called by.
        command: what to run.
        environment: all of it.
        folder: of the log.
        ready: whether it is at work, by what it has written since it was started.
        user: who it runs as, if this process is root's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        ready: Callable[[str], bool] = lambda _text: True,
        user: str | None = None,
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        self.log = folder / f"{name.replace(' ', '-')}.log"
        #: Whether it is to stay dead or frozen, because a fault has it so.
        self.held = False
        #: How often it has ended by itself, by exit status.
        self.ends: list[int] = []
        self._command, self._ready, self._user = list(command), ready, user
        self._process: subprocess.Popen[bytes] | None = None
        self._starts_at = 0

    def start(self) -> None:
        """Start it unless it runs."""
        if not self.dead:
            return
        with self.log.open("ab") as log:
            self._starts_at = log.tell()
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self.environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - there is one thread
                **_as_user(self._user),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def ready(self) -> bool:
        """Whether it is at work."""
        if self.dead:
            return False
        with self.log.open("rb") as log:
            log.seek(self._starts_at)
            return self._ready(log.read().decode(errors="replace"))

    def wait_until_ready(self) -> None:
        """Wait for that.

        Raises:
            RuntimeError: it died, or did not get ready.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.ready:
            if self.dead or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start, see {self.log}")
            time.sleep(POLL)

    def revive(self) -> None:
        """Start it again if it has ended by itself, as a supervisor would."""
        if self._process is not None and not self.held and self.dead:
            self.ends.append(self._process.returncode)
            self.start()

    @property
    def children(self) -> list[int]:
        """The processes that it has started, and those that these have."""
        return [] if self.dead else list(_descendants(self.pid))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that come of it."""
        if self.dead:
            return
        others = self.children
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def ask_to_end(self, number: signal.Signals, patience: float = PATIENCE) -> None:
        """Send a signal to the process alone and wait for its end; kill it if it takes too long."""
        if self.dead or self._process is None:
            return
        os.kill(self.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill()

    def wait(self, patience: float) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(patience)

    def kill(self) -> None:
        """Kill it with all that come of it."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE)


def python(*arguments: str) -> list[str]:
    """The command of a Python program."""
    return [sys.executable, *arguments]


def _descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    direct = [int(each) for each in text.split()]
    return direct + [other for each in direct for other in _descendants(each)]


def _die_with_parent() -> None:
    """On Linux, be killed when this program ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _as_user(name: str | None) -> dict[str, Any]:
    return {"user": name, "group": name, "extra_groups": []} if name and os.geteuid() == 0 else {}
