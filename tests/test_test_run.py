"""The test run ends red, and soon, whatever becomes of one of its processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS_OFF = ("-p", "no:django", "-p", "no:randomly", "-p", "no:cacheprovider")


def options() -> list[str]:
    """Those that `make test` gives to pytest."""
    found = re.search(r"-m pytest (.*?) \$\(PYTEST_ARGS\)", (ROOT / "Makefile").read_text())
    assert found
    return found[1].split()


@pytest.mark.parametrize("fate", ["os._exit(1)", "time.sleep(600)"], ids=["dies", "hangs"])
def test_it_ends_when_a_process_dies_or_hangs(fate: str, tmp_path: Path) -> None:
    # given a test that takes its process with it, and others that wait for their turn
    for number in range(9):
        (tmp_path / f"test_{number}.py").write_text("def test_passes(): pass\n")
    (tmp_path / "test_fate.py").write_text(
        f"import os, time\ndef test_meets_its_fate(): {fate}\ndef test_comes_after(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfaulthandler_timeout = 2\nfaulthandler_exit_on_timeout = true\n"
    )
    # when
    command = [sys.executable, "-m", "pytest", *options(), *PLUGINS_OFF, str(tmp_path)]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    # then
    assert run.returncode != 0, run.stdout
    assert "test_meets_its_fate" in run.stdout
    assert "crashed" in run.stdout
