"""Projects whose tables are not in the default database, and that read from replicas."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.database


def test_nothing_is_done_in_the_default_database_nor_read_from_a_replica() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.other_database"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
