"""Python programs, forked from a process that has imported Django and Celery: see `preloaded`.

To import them takes a program of the tests longer than its work. The rest is its own: arguments,
environment, folder, output, settings, apps. What shows how a program starts has a real start.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO, Any

__all__ = ["Forked", "run"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.preloaded"])


class Forked:
    """A running program, used like one of `subprocess`; its standard input is empty.

    Args:
        arguments: those of Python: a script, `-m` and a module, or `-c` and code; then the
            program's own.
        output: what takes its standard output.
        errors: what takes its standard error; None: `output`.
        own_group: whether it leads a session and a process group of its own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: int,
        errors: int | None = None,
        own_group: bool = False,
    ) -> None:
        begun, begins = _context.Pipe(duplex=False)
        standard = [_Descriptor(output), _Descriptor(output if errors is None else errors)]
        self._process = _context.Process(
            target=_be_program,
            args=(list(arguments), cwd, dict(env), standard, own_group, begins),
            daemon=True,  # ended with the tests
        )
        self._process.start()
        begins.close()
        with begun:
            begun.recv()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; minus the signal that has ended it."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` does with `capture_output` and `text`."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = Forked(
            arguments, cwd=cwd, env=env, output=output.fileno(), errors=errors.fileno()
        )
        try:
            status = started.wait(timeout)
        finally:
            started.kill()
        return subprocess.CompletedProcess(
            list(arguments), status, _written(output), _written(errors)
        )


def _written(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class _Descriptor:
    """A file descriptor that the fork is to have too."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self._number),)


def _detached(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


def _be_program(
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    standard: list[int],
    own_group: bool,
    begins: Connection,
) -> None:
    multiprocessing.current_process().name = "MainProcess"  # logs tell it
    if own_group:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _use_descriptors(standard)
    begins.send(None)
    begins.close()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for name in [each for each in sys.modules if each.partition(".")[0] == "tests"]:
        del sys.modules[name]
    try:
        _run_program(arguments)
    except KeyboardInterrupt:  # ended by it, not with a status
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        atexit._run_exitfuncs()


def _use_descriptors(standard: list[int]) -> None:
    """Have these, and an empty input, as a program has them that `subprocess` has started."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in enumerate(standard, start=1):
        os.dup2(descriptor, number)
    # New streams: those that were there believe that they are still what they were made for.
    sys.stdout = _stream(1, by_line=os.isatty(1), errors="strict")
    sys.stderr = _stream(2, by_line=True, errors="backslashreplace")


def _stream(number: int, *, by_line: bool, errors: str) -> TextIOWrapper:
    encoding = os.environ.get("PYTHONIOENCODING", sys.stdout.encoding)
    raw = bool(os.environ.get("PYTHONUNBUFFERED"))
    file = open(number, "wb", buffering=0 if raw else -1, closefd=False)  # noqa: SIM115
    return TextIOWrapper(file, encoding, errors, line_buffering=by_line, write_through=raw)


def _run_program(arguments: list[str]) -> None:
    """Run it as the main module, with the path that Python would give it."""
    first, *others = arguments
    given = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    installed = [each for each in sys.path if each.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [*given, *installed]
    if first == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv[:] = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = [first, *others[1:]]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(others[0], vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, str(Path(first).absolute().parent))
        sys.argv[:] = arguments
        runpy.run_path(first, run_name="__main__")
