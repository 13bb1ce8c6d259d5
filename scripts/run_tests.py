"""Lint, types, tests and benchmarks in parts, whatever fails; a summary says how each part went.

`make` calls it: `python scripts/run_tests.py test [options of pytest]`. It needs only Python.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
SERVERS = ("postgres", "mariadb")
DATABASES = ("sqlite", *SERVERS)
PAIRS = (
    ("3.11", "5.2"), ("3.12", "5.2"), ("3.12", "6.0"),
    ("3.13", "6.0"), ("3.13", "6.1"), ("3.14", "6.1"),
)  # fmt: skip
# Of each of three runs at once: tests that wait for a process or a lock leave their core to others.
WORKERS = max(2, (os.cpu_count() or 2) // 2)
PYTEST_OPTIONS = (
    "--numprocesses", str(WORKERS), "--max-worker-restart", "0",
    "--dist", "loadfile", "--no-loadscope-reorder", "-p", "tests.helpers.crashes",
)  # fmt: skip
# Exit statuses of pytest: tests failed; none was chosen, as -k may do on one of the databases.
TESTS_FAILED, NO_TESTS = 1, 5
GRACE = 60.0  # seconds to drop test databases after Ctrl-C
POLL = 0.1
INTERRUPTED = 130


@dataclass(eq=False)
class Part:
    """A command and what became of it; one with a `problem` is not started."""

    name: str
    command: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    result: str = "skipped"
    code: int = 0
    seconds: float | None = None

    def start(self, output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
        print(f"Running {self.name} ...", flush=True)
        self._started = time.monotonic()
        return subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,  # so Ctrl-C reaches it once, by `_interrupt`
        )

    def end(self, code: int) -> None:
        self.code = code
        self.result = {0: "passed", NO_TESTS: "no tests"}.get(code, "FAILED")
        self.seconds = time.monotonic() - self._started

    def __str__(self) -> str:
        seconds = "-" if self.seconds is None else f"{self.seconds:.0f} s"
        problem = f": {self.problem}" if self.problem else ""
        return f"  {self.result:8}{seconds:>6}  {self.name}{problem}"


class Stop:
    """Whether Ctrl-C or SIGTERM came: what has begun is ended in its own time."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: object) -> None:
        self.requested = True


def run(parts: Iterable[Part], *, at_once: bool = True) -> int:
    """Run parts, sum up, and return the exit status.

    Args:
        parts: what to run.
        at_once: whether all run at the same time, the output of each in one piece when it ends;
            else one after the other, with their output as it comes.
    """
    parts, stop = list(parts), Stop()
    ready = [part for part in parts if not part.problem]
    if at_once:
        _run_at_once(ready, stop)
    else:
        for part in ready:
            _run({part: None}, stop)
    if stop.requested:
        return INTERRUPTED
    print("\nSummary", *parts, sep="\n")
    return int(any(part.result == "FAILED" for part in parts))


def _run_at_once(parts: list[Part], stop: Stop) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        outputs: dict[Part, IO[bytes] | None] = {
            part: files.enter_context(Path(folder, str(number)).open("w+b"))
            for number, part in enumerate(parts)
        }
        _run(outputs, stop)


def _run(outputs: Mapping[Part, IO[bytes] | None], stop: Stop) -> None:
    running: dict[Part, subprocess.Popen[bytes]] = {}
    for part, output in outputs.items():
        if not stop.requested:
            running[part] = part.start(output)
    while running:
        if stop.requested:
            _interrupt(running.values())
        for part, process in list(running.items()):
            if (code := process.poll()) is not None:
                part.end(code)
                del running[part]
                _show(part, outputs[part])
        time.sleep(POLL)


def _show(part: Part, output: IO[bytes] | None) -> None:
    if output is None:
        return
    output.seek(0)
    print(f"\n== {part.name}", flush=True)
    shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.flush()


def _interrupt(processes: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Let processes and their children end as on Ctrl-C, and kill those that do not."""
    for process in processes:
        _signal(process, signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def lint_parts() -> list[Part]:
    folder = Path(sys.executable).parent
    return [
        Part("ruff check", [str(folder / "ruff"), "check", "."]),
        Part("ruff format", [str(folder / "ruff"), "format", "--check", "."]),
        Part("mypy", [str(folder / "mypy")]),
    ]


def database_part(database: str, name: str, *arguments: str) -> Part:
    """A Python program on a database; CI also runs it if the server is missing, and fails."""
    # Without cached bytecode, each of hundreds of processes would recompile every module.
    environment = {"MATVIEWS_TEST_DB": database, "PYTHONDONTWRITEBYTECODE": ""}
    part = Part(name, [sys.executable, *arguments], environment=environment)
    part.problem = _absence("tests.helpers.services", database)
    return part


def chaos_part(database: str, *options: str) -> Part:
    """A run of chaos on a server of its own."""
    command = [sys.executable, "-m", "tests.chaos", "--database", database, *options]
    problem = _absence("tests.chaos.servers", database)
    return Part(f"chaos on {database}", command, problem=problem)


def _absence(module: str, database: str) -> str:
    """What a module says is missing; nothing in CI, where that is a failure."""
    if os.environ.get("CI"):
        return ""
    asked = subprocess.run(
        [sys.executable, "-m", module, database],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stderr.strip() if asked.returncode else ""


def pytest_part(database: str, *options: str) -> Part:
    return database_part(
        database, f"tests on {database}", "-m", "pytest", *PYTEST_OPTIONS, *options
    )


def database_parts(options: list[str]) -> list[Part]:
    return [pytest_part(each, *options) for each in DATABASES]


def share(parts: list[Part]) -> list[Part]:
    """Parts that deal the tests among the databases that are there."""
    there = [each for each, part in zip(DATABASES, parts, strict=True) if not part.problem]
    for part in parts:
        part.command += ["--share-with", ",".join(there)]
    return parts


def run_lint(_options: list[str]) -> int:
    return run(lint_parts())


def run_test(options: list[str]) -> int:
    return run([*lint_parts(), *share(database_parts(options))])


def run_databases(options: list[str]) -> int:
    return run(database_parts(options))


def run_long(options: list[str]) -> int:
    long = ["--long", "-m", "long or database", "-o", "faulthandler_timeout=0"]
    tests = [pytest_part(each, *options, *long) for each in DATABASES]
    return run([*tests, *(chaos_part(each, "--minutes", "3") for each in SERVERS)])


def run_coverage(options: list[str]) -> int:
    """Which lines and branches the tests of all databases run, also in processes that they start.

    Measured processes are slow, so tests that fail then are run once more without being measured.
    """
    for path in ROOT.glob(".coverage.*"):
        path.unlink()
    coverage = [sys.executable, "-m", "coverage"]
    parts = database_parts(options)
    for database, part in zip(DATABASES, parts, strict=True):
        part.name = f"coverage by {part.name}"
        slow = ["-o", "faulthandler_timeout=900"]
        part.command = [*coverage, "run", *part.command[1:], *own_cache(database), *slow]
    if (code := run(parts)) == INTERRUPTED:
        return code
    subprocess.run([*coverage, "combine", "--quiet"], cwd=ROOT, check=True)
    report = subprocess.run([*coverage, "report"], cwd=ROOT, check=False).returncode
    if any(part.code not in (0, NO_TESTS, TESTS_FAILED) for part in parts):
        return 1  # it ended early: nobody knows which tests it left out
    again = [
        pytest_part(database, *options, "--last-failed", *own_cache(database))
        for database, part in zip(DATABASES, parts, strict=True)
        if part.code == TESTS_FAILED
    ]
    return int(bool(report)) | (run(again, at_once=False) if again else 0)


def own_cache(database: str) -> list[str]:
    return ["-o", f"cache_dir=.pytest_cache/{database}"]


def run_bench(options: list[str]) -> int:
    parts = [
        database_part(each, f"benchmark on {each}", "-m", "benchmarks", *options)
        for each in DATABASES
    ]
    return run(parts, at_once=False)


def run_all(_options: list[str]) -> int:
    pairs = [_pair_part(python, django) for python, django in PAIRS]
    return run([*lint_parts(), *pairs], at_once=False)


def _pair_part(python: str, django: str) -> Part:
    name = f"Python {python}, Django {django}"
    found = _interpreter(python)
    if not found:
        return Part(name, problem=f"Python {python} is not installed")
    venv = f".venvs/{python}-django{django}"
    command = ["make", "--no-print-directory", "databases"]
    return Part(name, [*command, f"PYTHON={found}", f"DJANGO={django}", f"VENV={venv}"])


def _interpreter(version: str) -> str | None:
    """An interpreter that runs: pyenv's shims stand on the path without one behind them."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (f"python{version}", *map(str, pyenv)):
        try:
            subprocess.run([candidate, "-c", ""], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


TARGETS: dict[str, Callable[[list[str]], int]] = {
    "lint": run_lint,
    "test": run_test,
    "databases": run_databases,
    "test-long": run_long,
    "test-all": run_all,
    "coverage": run_coverage,
    "bench": run_bench,
}


def main(target: str, *options: str) -> int:
    return TARGETS[target](list(options))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
