"""The test run ends red, and soon, whatever becomes of one of its processes."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import ROOT
from tests.helpers import choice

HANGS = 600  # seconds
PLUGINS_OFF = ("-p", "no:django", "-p", "no:randomly", "-p", "no:cacheprovider")
SCRIPT = ROOT / "scripts" / "run_tests.py"
run_tests = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(autouse=True)
def _starts_processes() -> None:
    """`make quick` cannot see it: what the tests call is no module of theirs."""
    assert callable(subprocess.Popen)


@pytest.mark.parametrize(
    "fate",
    ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)", f"time.sleep({HANGS})"],
    ids=["dies", "is killed", "hangs"],
)
def test_it_ends_when_a_process_dies_or_hangs(fate: str, tmp_path: Path) -> None:
    # given a test that takes its process with it, and others that wait for their turn
    for number in range(9):
        (tmp_path / f"test_{number}.py").write_text("def test_passes(): pass\n")
    (tmp_path / "test_fate.py").write_text(
        f"import os, signal, time\n"
        f"def test_meets_its_fate(): {fate}\n"
        f"def test_comes_after(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfaulthandler_timeout = 2\nfaulthandler_exit_on_timeout = true\n"
    )
    # when
    command = [
        sys.executable,
        "-m",
        "pytest",
        *run_tests.PYTEST_OPTIONS,
        *PLUGINS_OFF,
        str(tmp_path),
    ]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS / 2, check=False
    )
    # then
    assert run.returncode != 0, run.stdout
    assert "test_meets_its_fate" in run.stdout
    assert "crashed" in run.stdout


def python(name: str, code: str) -> Any:
    return run_tests.Part(name, [sys.executable, "-c", code])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_part_that_fails_keeps_no_other_from_running(
    at_once: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [
        python("first", "raise SystemExit(3)"),
        run_tests.Part("second", problem="no server"),
        python("third", "print('here')"),
    ]

    assert run_tests.run(parts, at_once=at_once) == 1

    output, summary = capfd.readouterr().out.split("Summary")
    assert "here" in output
    assert re.sub(r"\d+ s", "0 s", summary).splitlines()[1:] == [
        "  FAILED     0 s  first",
        "  skipped      -  second: no server",
        "  passed     0 s  third",
    ]


def test_parts_that_pass_and_are_skipped_are_no_failure() -> None:
    assert run_tests.run([python("one", ""), run_tests.Part("two", problem="no server")]) == 0


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_missing_server_skips_with_its_reason_but_not_in_ci(
    ci: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("MATVIEWS_TEST_MARIADB_URL", "mysql://root@127.0.0.1:1/test")

    _sqlite, _postgres, mariadb = run_tests.database_parts([])

    absent = "mariadb does not answer at mysql://root@127.0.0.1:1/test: start it, or set"
    assert mariadb.problem == ("" if ci else f"{absent} MATVIEWS_TEST_MARIADB_URL.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_parts_and_shows_what_they_have_said(number: signal.Signals) -> None:
    # given two parts, of which one has a child
    child = (
        "subprocess.run([sys.executable, '-c', "
        "'import time; print(1, flush=True); time.sleep(600)'])"
    )
    code = f"""
import runpy
script = runpy.run_path({str(SCRIPT)!r})
parts = [
    script["Part"]("long", ["{sys.executable}", "-c", "import subprocess, sys; {child}"]),
    script["Part"]("longer", ["{sys.executable}", "-c", "import time; time.sleep(600)"]),
]
raise SystemExit(script["run"](parts))
"""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        while "longer" not in process.stdout.readline():
            pass
        # when
        os.kill(process.pid, number)
        output, _nothing = process.communicate(timeout=HANGS / 2)
    # then
    assert process.returncode == run_tests.INTERRUPTED
    assert "== long\n" in output
    assert "== longer\n" in output
    assert "Summary" not in output


ON_ONE_SERVER = sorted(file for files in choice.ON_ONE_SERVER.values() for file in files)


def left_out_on(file: str) -> list[str]:
    databases = run_tests.DATABASES
    return [each for each in databases if choice.is_left_to_another_server(file, each)]


@pytest.mark.parametrize("file", choice.LONGEST_FILES)
def test_a_file_to_begin_with_exists(file: str) -> None:
    assert (ROOT / "tests" / file).is_file()


def test_each_file_runs_on_sqlite_and_on_one_server_at_least() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        left = left_out_on(path.relative_to(ROOT / "tests").as_posix())
        assert len(left) <= 1
        assert "sqlite" not in left


@pytest.mark.parametrize("file", ON_ONE_SERVER)
def test_what_one_server_leaves_out_the_other_runs(file: str) -> None:
    assert "mark.database" in (ROOT / "tests" / file).read_text()
    assert len(left_out_on(file)) == 1
