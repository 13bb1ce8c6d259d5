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
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=HANGS / 2, check=False,
    )  # fmt: skip
    # then
    assert run.returncode not in (0, run_tests.TESTS_FAILED), run.stdout
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
        python("fourth", f"raise SystemExit({run_tests.NO_TESTS})"),
    ]

    assert run_tests.run(parts, at_once=at_once) == 1

    output, summary = capfd.readouterr().out.split("Summary")
    assert "here" in output
    assert re.sub(r"\d+ s", "0 s", summary).splitlines()[1:] == [
        "  FAILED     0 s  first",
        "  skipped      -  second: no server",
        "  passed     0 s  third",
        "  no tests   0 s  fourth",
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


@pytest.mark.parametrize("file", choice.LONGEST_FILES)
def test_a_file_to_begin_with_exists(file: str) -> None:
    assert (ROOT / "tests" / file).is_file()


class Item:
    """As much of a `pytest.Item` as the choice of tests asks for."""

    config = SimpleNamespace(getoption=lambda _name: False)

    def __init__(self, nodeid: str, **markers: tuple[str, ...]) -> None:
        self.nodeid, self.markers = nodeid, markers

    def get_closest_marker(self, name: str) -> SimpleNamespace | None:
        return next(iter(self.iter_markers(name)), None)

    def iter_markers(self, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(args=self.markers[name])] if name in self.markers else []


def cases(name: str, count: int, **markers: tuple[str, ...]) -> list[Any]:
    return [Item(f"test_file.py::{name}[{number}]", **markers) for number in range(count)]


ANYWHERE = cases("test_anywhere", 7, database=())
ON_SERVERS = cases("test_servers", 4, database=(), only_on=("postgres", "mariadb"))
ON_SQLITE = cases("test_sqlite", 2)
FAULTS = cases("test_faults", 2, database=(), finds_fault=())
ALONE = [Item(f"test_file.py::test_{number}", database=()) for number in range(30)]
EVERYTHING: list[Any] = [*ANYWHERE, *ON_SERVERS, *ON_SQLITE, *FAULTS, *ALONE]


@pytest.mark.parametrize(
    "among", [run_tests.DATABASES, ("sqlite", "mariadb"), ("sqlite",)], ids=", ".join
)
def test_each_test_is_run_by_one_database_of_those_that_can(among: tuple[str, ...]) -> None:
    shares = {each: choice.share(EVERYTHING, each, among) for each in among}

    for test in EVERYTHING:
        found = [each for each in among if test in shares[each]]
        able = [each for each in among if each in choice.databases_of(test)]
        assert len(found) == bool(able)
        assert set(found) <= set(able)
    # and all have their part, also of the cases of one test
    for database in among:
        assert shares[database].intersection(ANYWHERE)
        assert shares[database].intersection(ALONE)


def test_a_test_that_no_database_can_run_is_refused() -> None:
    (nowhere,) = cases("test_nowhere", 1, only_on=("postgres",))

    with pytest.raises(pytest.UsageError, match=r"test_nowhere\[0\] runs nowhere"):
        choice.databases_of(nowhere)


def test_make_test_deals_the_tests_among_the_databases_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "")
    monkeypatch.setenv("MATVIEWS_TEST_MARIADB_URL", "mysql://root@127.0.0.1:1/test")
    parts = run_tests.database_parts([])
    there = [
        name for name, part in zip(run_tests.DATABASES, parts, strict=True) if not part.problem
    ]

    run_tests.share(parts)

    assert "mariadb" not in there
    assert all(part.command[-2:] == ["--share-with", ",".join(there)] for part in parts)
