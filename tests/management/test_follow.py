"""`--follow`: what it hands on to the follower, and what it tells systemd."""

import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from matviews import engine
from matviews.management import follow
from matviews.management.supervisor import Supervisor
from tests.management.test_command import command


def received(receiver: socket.socket) -> list[str]:
    """What has been told since the last call."""
    receiver.setblocking(False)
    told = list[str]()
    while True:
        try:
            told.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return told


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_of_the_start_of_life_and_of_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    name, moment = str(tmp_path / "notify"), 5.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        clock = mock.Mock(monotonic=lambda: moment)
        monkeypatch.setattr("matviews.management.supervisor.time", clock)
        supervisor = Supervisor()
        supervisor.report_alive()
        supervisor.report_alive()
        moment = 6.0
        supervisor.report_alive()
        supervisor.report_stopping()

        assert received(receiver) == ["READY=1\nWATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("address", [None, "/nowhere/notify"])
def test_it_works_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address:
        monkeypatch.setenv("NOTIFY_SOCKET", address)

    Supervisor().report_alive()


@pytest.mark.django_db(transaction=True)
class TestCommand:
    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What the follower is made with; it ends at once."""
        engine.sync_controls()
        given: dict[str, Any] = {}

        def make(**options: Any) -> mock.Mock:
            given.update(options)
            return mock.Mock()

        monkeypatch.setattr(follow, "Follower", make)
        return given

    def test_all_views_in_this_process(self, made: dict[str, Any]) -> None:
        assert command("--follow").status == 0
        assert (made["labels"], made["enqueue"]) == (None, False)

    def test_named_views_by_workers(self, made: dict[str, Any]) -> None:
        ran = command("--follow", "--enqueue", "--models", "sample.Limited")

        assert ran.status == 0
        assert (list(made["labels"]), made["enqueue"]) == (["sample.Limited"], True)

    @pytest.mark.parametrize(
        ("others", "said"),
        [
            (["--phases", "insert"], "the phases that the schedules name"),
            (["--batch-size", "5"], "leaves the size of batches to the views"),
            (["--list"], "--list and --follow"),
        ],
    )
    def test_what_cannot_be_combined(self, others: list[str], said: str) -> None:
        ran = command("--follow", *others)

        assert ran.status != 0
        assert said in ran.err
