"""A program that is forked behaves as one that Python has started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forked

PROBE = """
import atexit, json, multiprocessing, os, signal, sys
handlers = {each.name: str(signal.getsignal(each)) for each in signal.Signals}
print(json.dumps({
    "name": __name__, "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path,
    "environment": dict(os.environ), "input": os.read(0, 9).decode(),
    "files": os.listdir("/proc/self/fd"),
    "handlers": {name: each.partition(" at ")[0] for name, each in handlers.items()},
    "process": multiprocessing.current_process().name, "encoding": sys.stdout.encoding,
    "ours": sorted(each for each in sys.modules if each.startswith(("tests", "matviews"))),
    "main": sys.modules["__main__"].__dict__ is globals(),
}))
atexit.register(print, "exit")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(tmp_path / "more"), "MATVIEWS_TEST_MARK": "a mark",
        "PYTHONIOENCODING": "iso8859-1",
    }  # fmt: skip


def started(arguments: list[str], folder: Path, environment: dict[str, str]) -> Any:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", PROBE, "a", "-b"], ["-m", "probe", "a", "-b"], ["-m", "package", "a", "-b"],
        ["probe.py", "a", "-b"], ["package/probe.py", "a", "-b"],
    ],
    ids=["code", "module", "package", "script", "script elsewhere"],
)  # fmt: skip
def test_it_has_what_it_is_given(
    arguments: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "package").mkdir()
    for name in ("probe.py", "package/__init__.py", "package/__main__.py", "package/probe.py"):
        (tmp_path / name).write_text("" if "init" in name else PROBE)

    fork = forked.run(arguments, cwd=tmp_path, env=environment)

    assert (fork.returncode, fork.stderr) == (0, "")
    real = started(arguments, tmp_path, environment)
    told, _newline, rest = fork.stdout.partition("\n")
    expected, _newline, expected_rest = real.stdout.partition("\n")
    assert json.loads(told) == json.loads(expected)
    assert rest == expected_rest == "exit\n"


@pytest.mark.parametrize(
    "code",
    [
        "pass", "import sys; sys.exit(3)", "import sys; sys.exit('why')", "1 / 0",
        "import os; os._exit(4)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "print('out', flush=True); import os; os.write(2, b'err')",
    ],
)  # fmt: skip
def test_it_ends_as_it_would(code: str, tmp_path: Path, environment: dict[str, str]) -> None:
    fork = forked.run(["-c", code], cwd=tmp_path, env=environment)

    real = started(["-c", code], tmp_path, environment)
    assert (fork.returncode, fork.stdout) == (real.returncode, real.stdout)
    if real.returncode >= 0:
        assert fork.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_it_leads_a_group_that_can_be_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        fork = forked.Forked(
            ["-c", "import time; time.sleep(600)"],
            cwd=tmp_path,
            env=environment,
            output=output.fileno(),
            own_group=True,
        )
    assert os.getsid(fork.pid) == os.getpgid(fork.pid) == fork.pid
    assert fork.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0)

    os.killpg(fork.pid, signal.SIGKILL)

    assert fork.wait() == -signal.SIGKILL
