"""A server whose packets are smaller than an entry of the log can be.

MariaDB has no text larger than `max_allowed_packet`, one value for all users of a server; so these
tests start a server of their own.
"""

import getpass
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from django.db import connection

from matviews import engine
from matviews.databases import triggers_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import Change, LogSecret
from tests.helpers import services
from tests.helpers.tables import defined

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("mariadb", reason="a setting of MariaDB and MySQL"),
]

PACKET = 16 * 1024  # bytes
PATIENCE = 60  # seconds until a server that does not answer is given up


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """A connection to a MariaDB server of its own that takes small packets alone."""
    if not (shutil.which("mariadbd") and shutil.which("mariadb-install-db")):
        missing = "mariadbd and mariadb-install-db are not installed here"
        (pytest.fail if services.in_ci() else pytest.skip)(missing)
    data, address = tmp_path / "data", str(tmp_path / "socket")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # A starting server empties its temporary directory of tables, those of other servers too.
    common = [
        "--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}", f"--user={getpass.getuser()}"
    ]  # fmt: skip
    subprocess.run(
        ["mariadb-install-db", *common, "--auth-root-authentication-method=normal",
         "--skip-test-db"],
        check=True, capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["mariadbd", *common, f"--socket={address}", "--skip-networking",
         f"--pid-file={tmp_path}/pid", f"--max-allowed-packet={PACKET}"],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "log", process)
        with pymysql.connect(unix_socket=address, user="root", autocommit=True) as own:
            yield own
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
        log.close()


def wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while b"ready for connections" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"The server did not start: {log.read_text()}")
        time.sleep(0.1)


def test_an_entry_beyond_the_packet_says_that_any_row_may_have_changed(server: Any) -> None:
    run = server.cursor()
    run.execute("CREATE DATABASE small DEFAULT CHARACTER SET utf8mb4")
    run.execute("USE small")
    with (
        defined(
            "CREATE TABLE made_rows (label varchar(10000) CHARACTER SET utf8mb4)",
            undone="DROP TABLE made_rows",
        ),
        connection.cursor() as cursor,
    ):
        for table in ("made_rows", Change._meta.db_table, LogSecret._meta.db_table):
            cursor.execute(f"SHOW CREATE TABLE {table}")
            run.execute(cursor.fetchone()[1])
        spec = TriggerSpec(frozenset({"label"}), frozenset({"label"}))
        for statement in triggers_of(engine.alias()).create("made_rows", spec):
            run.execute(statement)

    # JSON writes \x01 as six bytes, so 9,000 of them are more than a packet holds.
    run.execute("INSERT INTO made_rows VALUES (REPEAT('\x01', 9000)), (REPEAT('x', 1000)), ('a')")
    run.execute("SELECT links FROM matviews_change ORDER BY id")
    found = [links and json.loads(links) for (links,) in run.fetchall()]
    assert found == [None, [["label"], ["x" * 1000]], [["label"], ["a"]]]

    run.execute("DELETE FROM matviews_change")
    assert run.execute("UPDATE made_rows SET label = CONCAT(REPEAT('\x01', 9000), 'b')") == 3
    run.execute("SELECT COUNT(*), SUM(links IS NULL) FROM matviews_change")
    assert run.fetchone() == (6, 4)  # of each row what it was and what it is
