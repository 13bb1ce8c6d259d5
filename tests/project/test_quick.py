"""`make quick` runs the tests that start no process and commit nothing, and finds them itself."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import quick
from tests.helpers.processes import Worker, manage


def by_a_module() -> None:
    subprocess.run(["true"], check=True)


def by_a_call() -> None:
    os.fork()


def by_a_helper() -> None:
    by_a_module()


def by_a_helper_of_another_module() -> None:
    manage(Path(), "", "check")


def by_a_class() -> None:
    Worker({}, Path())


def by_a_function_inside() -> list[Any]:
    return [multiprocessing.Process() for _ in range(2)]


def by_an_import_inside() -> Any:
    from tests.helpers import chromium

    return chromium.started_browser()


@pytest.fixture
def started() -> None:
    by_a_module()


def by_nothing() -> None:
    sys.exit()


@pytest.mark.parametrize(
    "way",
    [
        by_a_module, by_a_call, by_a_helper, by_a_helper_of_another_module, by_a_class,
        by_a_function_inside, by_an_import_inside,
    ],
)  # fmt: skip
def test_what_leads_to_a_process_is_found(way: Callable[[], Any]) -> None:
    assert quick.leads_to_process(way)


def test_what_leads_to_none_is_not() -> None:
    assert not quick.leads_to_process(by_nothing)


@pytest.mark.usefixtures("started")
def test_fixtures_count(request: pytest.FixtureRequest) -> None:
    assert quick.starts_process(request.node)


@pytest.mark.django_db(transaction=True)
def test_a_test_that_commits_is_none(request: pytest.FixtureRequest) -> None:
    assert not quick.starts_process(request.node)
    assert not quick.is_quick(request.node)


@pytest.mark.usefixtures("db")
def test_a_test_that_is_rolled_back_is_one(request: pytest.FixtureRequest) -> None:
    assert quick.is_quick(request.node)


@pytest.mark.parametrize(
    "start",
    [
        "subprocess.run(['true'])", "os.system('true')", "os.fork()", "os.execv('true', ['true'])",
        "multiprocessing.Process(target=print).start()",
    ],
)  # fmt: skip
def test_a_process_that_was_not_foreseen_is_a_failure(start: str) -> None:
    code = f"""
import multiprocessing, os, subprocess
from tests.helpers import quick
quick.forbid_processes()
{start}
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "Failed: a quick test starts a process" in run.stderr
