"""Chaos by itself: its plan, how it judges, and that it finds an engine that is broken."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT
from tests.chaos import faults
from tests.chaos.comparison import compare, ledger_faults
from tests.chaos.logs import batches_done_twice, tracebacks
from tests.chaos.plan import Kind, make_plan
from tests.chaos.recovery import Recoveries
from tests.chaos.servers import absence
from tests.helpers import services
from tests.helpers.processes import DEADLINE

SEED = 7
LOG = """
[2026-11-29 12:00:00,001: INFO/MainProcess] batch finished view=chaos.Ledger
[2026-11-29 12:00:00,002: ERROR/MainProcess] batch lost, maintenance re-sends it shard=3
Traceback (most recent call last):
  File "psycopg/cursor.py", line 97, in execute
psycopg.errors.AdminShutdown: terminating connection

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "batch.py", line 1, in run
django.db.utils.OperationalError: terminating connection
[2026-11-29 12:00:00,003: ERROR/MainProcess] Task matviews.refresh[f-1] raised unexpected: X()
Traceback (most recent call last):
  File "tasks.py", line 1, in refresh
ValueError
"""

on_a_server = pytest.mark.only_on("postgres", "mariadb", reason="chaos needs a server to restart")


def command(*options: str) -> list[str]:
    database = ("--database", services.selected_database())
    return [sys.executable, "-m", "tests.chaos", *database, "--seed", str(SEED), *options]


@pytest.fixture
def installed() -> None:
    if problem := absence(services.selected_database()):
        (pytest.fail if services.in_ci() else pytest.skip)(problem)


def test_a_seed_makes_the_same_plan_each_time() -> None:
    plan = make_plan(SEED, 600, faults.FAULTS)
    assert plan == make_plan(SEED, 600, faults.FAULTS)
    assert plan != make_plan(SEED + 1, 600, faults.FAULTS)
    assert all(step.at < 600 for step in plan)


@pytest.mark.parametrize("seed", range(20))
def test_at_any_time_one_fault_is_done_to_a_target_and_its_parts(seed: int) -> None:
    plan = make_plan(seed, 1800, faults.FAULTS)
    for number, step in enumerate(plan):
        for later in plan[number + 1 :]:
            if later.at > step.at + step.seconds:
                continue
            assert not later.target.startswith(step.target), (step, later)
            assert not step.target.startswith(later.target), (step, later)


def test_each_kind_of_fault_comes_before_one_comes_again() -> None:
    kinds = [Kind(name=str(number), targets=(str(number),)) for number in range(10, 30)]
    plan = make_plan(SEED, 300, kinds)
    counts = Counter(step.kind for step in plan)
    assert len(counts) == len(kinds)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_ledger_must_have_each_item_once() -> None:
    assert ledger_faults({1, 2, 3}, [3, 1, 2]) == []
    assert ledger_faults({1, 2, 3}, [3, 1, 3, 4]) == [
        "1 rows twice: a batch was done again: [3]",
        "1 rows missing: [2]",
        "1 rows of no item: [4]",
    ]


def test_a_view_must_hold_what_was_computed_from_its_source() -> None:
    expected = {1: (10, 0.5), 2: (20, 1 / 3), 3: (30, 0.0)}
    assert compare(expected, dict(expected)) == []
    assert compare(expected, {1: (10, 0.5), 2: (21, 1 / 3), 4: (1, 1.0)}) == [
        "1 rows missing, as in (key, held, expected): [(3, None, (30, 0.0))]",
        "1 rows surplus, as in (key, held, expected): [(4, (1, 1.0), None)]",
        f"1 rows wrong, as in (key, held, expected): [(2, (21, {1 / 3}), (20, {1 / 3}))]",
    ]


def test_the_longest_time_in_which_a_view_was_never_on_time_is_kept() -> None:
    recoveries = Recoveries()
    for now, late in [
        (0, {"a": "behind"}), (5, {"a": "failed", "b": "behind"}), (9, {}), (20, {"a": "parked"}),
        (22, {"a": "parked"}),
    ]:  # fmt: skip
        recoveries.note(late, now)
    assert recoveries.longest == {"a": (5, "behind, failed"), "b": (0, "behind")}


def test_tracebacks_are_counted_by_their_last_error_and_what_was_logged(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(LOG * 2)
    assert tracebacks([log]) == {
        ("batch lost, maintenance re-sends it", "OperationalError"): 2,
        ("UNHANDLED in matviews.refresh", "ValueError"): 2,
    }


def test_a_token_with_which_two_batches_were_committed_is_found(tmp_path: Path) -> None:
    line = (
        "[2026: INFO/Main] batch finished view=a.B phase=insert shard=3 token={} outcome={} rows=1"
    )
    logs = [tmp_path / "1.log", tmp_path / "2.log"]
    logs[0].write_text("\n".join([line.format(1, "DONE"), line.format(2, "FAILED")]))
    logs[1].write_text("\n".join([line.format(2, "DONE"), line.format(13, "DONE")]))
    assert batches_done_twice(logs) == []
    logs[1].write_text(line.format(1, "DONE"))
    assert batches_done_twice(logs) == ["shard 3, token 1"]


def test_a_wrong_clock_is_one_that_python_and_celery_read(tmp_path: Path) -> None:
    # given a process whose clock is a day ahead, which imports Celery after that
    offset = tmp_path / "clock"
    offset.write_text("86400")
    code = """
from tests.chaos import clock
clock.install()
import os, time
from datetime import datetime
import celery.app.base, django.utils.timezone, kombu.transport.redis
clock.shift_datetimes()
app = celery.Celery()
for read in (
    kombu.transport.redis.time(), django.utils.timezone.now().timestamp(), app.now().timestamp(),
    time.time_ns() / 1e9, celery.app.base.datetime(2000, 1, 1).year, time.monotonic(),
):
    print(read)
assert isinstance(datetime.now(), celery.app.base.datetime)
"""
    environment = {**os.environ, "MATVIEWS_CHAOS_CLOCK": str(offset)}
    # when
    read = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True,
    ).stdout.split()  # fmt: skip
    # then
    *shifted, year, monotonic = map(float, read)
    assert all(80_000 < each - time.time() < 90_000 for each in shifted)
    assert year == 2000
    assert monotonic < time.monotonic() + 80_000


@pytest.mark.long
@pytest.mark.database
@on_a_server
@pytest.mark.parametrize(
    ("broken", "found"),
    [("token", "batches were done twice"), ("changes", "is wrong"), ("claims", "open refreshes")],
)
def test_an_engine_that_is_broken_is_found(installed: None, broken: str, found: str) -> None:
    run = subprocess.run(
        command("--minutes", "1", "--break", broken), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert any(line.startswith("WRONG") and found in line for line in run.stdout.splitlines())


@pytest.mark.long
@pytest.mark.database
@on_a_server
def test_ctrl_c_leaves_no_process_and_no_folder(installed: None, tmp_path: Path) -> None:
    # given a run with faults under way
    mark = uuid.uuid4().hex
    environment = {**os.environ, "MATVIEWS_TEST_MARK": mark, "TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    output = tmp_path / "output"
    with output.open("wb") as file:
        run = subprocess.Popen(
            command("--minutes", "5"), cwd=ROOT, env=environment, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    wait_for(lambda: len(output.read_text().split("Plan of seed")[-1].split(" 3.0 s")) > 2)
    time.sleep(random.uniform(0, 10))
    assert len(marked(mark)) > 8
    # when
    run.send_signal(signal.SIGINT)
    # then
    assert run.wait(DEADLINE) == 130, output.read_text()
    wait_for(lambda: not marked(mark))
    assert list(tmp_path.glob("matviews-chaos-*")) == []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """The processes that come of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found
