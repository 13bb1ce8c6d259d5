"""The dead man's switch: the address is called, and whatever it does, nothing is held up."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest import mock

import pytest

from matviews import tasks
from matviews.tasks import alarms, check_in, time_limits
from tests.helpers.hanging import until_the_end
from tests.helpers.http_server import Answer, serving

SECRET = "3f2a"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What waits for this hangs until the test ends; nobody waits long for it."""
    monkeypatch.setattr(check_in, "MAX_SECONDS", 0.1)
    with until_the_end() as event:
        yield event


def called(settings: Any, answer: Answer | None = None, path: str = f"/{SECRET}") -> list[Any]:
    """Check in at a server that answers so; what it was asked."""
    with serving(answer) if answer else serving() as served:
        settings.MATVIEWS = {"CHECK_IN_URL": f"{served.url}{path}"}
        check_in.check_in()
        return served.requests


def test_the_address_is_asked_once(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert called(settings, path="/ping/3f2a?status=ok") == [("GET", "/ping/3f2a?status=ok", "")]
    assert caplog.text == ""


def test_off_by_default(settings: Any) -> None:
    settings.MATVIEWS = {}
    check_in.check_in()

    assert "check-in" not in time_limits._running or (
        not time_limits._running["check-in"].is_alive()
    )


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_is_a_warning_without_the_secret(
    settings: Any, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(status)

    called(settings, refuse)

    assert f'check-in failed error="HTTPError {status}"' in caplog.text
    assert SECRET not in caplog.text


def test_nobody_answers(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving() as served:
        url = served.url
    settings.MATVIEWS = {"CHECK_IN_URL": f"{url}/{SECRET}"}
    check_in.check_in()

    assert "check-in failed error=URLError" in caplog.text
    assert SECRET not in caplog.text


def test_a_redirect_is_followed(settings: Any) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302 if SECRET in handler.path else 200)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()

    assert [path for _method, path, _body in called(settings, redirect)] == [
        f"/{SECRET}", "/elsewhere",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/"])
def test_a_redirect_leads_nowhere_but_to_the_web(
    settings: Any, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    assert len(called(settings, redirect)) == 1
    assert "check-in failed" in caplog.text


def test_an_answer_that_drips_holds_nothing_up(
    settings: Any, caplog: pytest.LogCaptureFixture, hanging: threading.Event
) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while not hanging.wait(0.02):
                handler.wfile.write(b"X-Drop: 1\r\n")
                handler.wfile.flush()
        except OSError:
            pass

    called(settings, drip)

    assert "check-in failed error=TimeoutError" in caplog.text


def test_while_one_hangs_no_other_is_begun(
    settings: Any, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
) -> None:
    asked: list[str] = []

    def hang(url: str) -> None:
        asked.append(url)
        hanging.wait(60)

    monkeypatch.setattr(check_in, "_get", hang)
    settings.MATVIEWS = {"CHECK_IN_URL": "https://hc.example.org/"}
    for _time in range(3):
        check_in.check_in()

    assert len(asked) == 1


@pytest.mark.django_db(transaction=True)
def test_maintenance_checks_in_at_its_end(settings: Any) -> None:
    with serving() as served:
        settings.MATVIEWS = {"CHECK_IN_URL": served.url}
        tasks.maintain()

        assert len(served.requests) == 1


@pytest.mark.django_db(transaction=True)
def test_maintenance_that_cannot_tell_of_alarms_does_not_check_in(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "check_health", mock.Mock(side_effect=ValueError("no")))
    with serving() as served:
        settings.MATVIEWS = {"CHECK_IN_URL": served.url}
        tasks.maintain()

        assert served.requests == []
