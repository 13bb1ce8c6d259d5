"""What keeps messages from any worker, told by `check` and by what the broker says."""

from typing import Any

import pytest
from celery import Celery
from django.core import checks

from matviews.tasks import broker_errors
from matviews.tasks import checks as celery_checks


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.delenv("CELERY_BROKER_WRITE_URL", raising=False)
    return use(Celery("shop", set_as_current=False), monkeypatch)


def use(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr(celery_checks, "current_app", app)
    return app


def ids(problems: list[checks.CheckMessage]) -> list[str | None]:
    return [problem.id for problem in problems]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis//localhost", "name of a transport"),
        ("localhost:6379", "name of a transport"),
        ("reddis://:geheim@localhost/0", "No such transport: reddis"),
        ("redis://:geheim@localhost:port/0", "Port could not be cast"),
        (["redis://a", "amqpp://b"], "No such transport: amqpp"),
    ],
)
def test_e024_a_url_that_celery_can_make_nothing_of(app: Any, url: Any, said: str) -> None:
    app.conf.broker_url = url

    (problem,) = celery_checks.check_broker_urls()

    assert problem.id == "matviews.E024"
    assert said in problem.msg
    assert "geheim" not in problem.msg


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "rediss://:p%40ss@localhost:6379/0?ssl_cert_reqs=required",
        "redis+socket:///var/run/redis.sock",
        "sentinel://a:26379;sentinel://b:26379",
        ["amqp://guest@a//", "amqp://guest@b//"],
        "memory://",
        "filesystem://",
        None,
    ],
)
def test_a_url_that_celery_understands_is_left_alone(app: Any, url: Any) -> None:
    app.conf.broker_url = url

    assert celery_checks.check_broker_urls() == []


def test_a_transport_that_is_named_apart_is_no_fault(app: Any) -> None:
    app.conf.update(broker_url="localhost", broker_transport="redis")

    assert celery_checks.check_broker_urls() == []


def test_w028_the_projects_app_is_not_imported(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Celery("default", set_as_current=False), monkeypatch)  # as Celery makes it itself

    (problem,) = celery_checks.check_celery_app()

    assert problem.id == "matviews.W028"
    assert "not imported" in problem.msg
    assert "__init__.py" in (problem.hint or "")


def test_w028_an_app_without_a_broker(app: Any) -> None:
    (problem,) = celery_checks.check_celery_app()

    assert problem.id == "matviews.W028"
    assert "'shop' has no broker" in problem.msg


@pytest.mark.parametrize(
    "conf",
    [
        {"broker_url": "redis://here"},
        {"broker_write_url": "redis://a"},
        {"task_always_eager": True},
    ],
)
def test_an_app_that_has_a_broker_or_needs_none_is_left_alone(
    app: Any, conf: dict[str, Any]
) -> None:
    app.conf.update(conf)

    assert celery_checks.check_celery_app() == []


def test_the_broker_in_the_environment_counts(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://here")
    use(Celery("default", set_as_current=False), monkeypatch)

    assert celery_checks.check_celery_app() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (KeyError("No such transport: reddis"), "No such transport: reddis"),
        (OSError("cannot reach redis://me:se/c@ret@host:1/0.\nmore"),
         "cannot reach redis://***@host:1/0"),
        (RuntimeError(), "RuntimeError"),
    ],
)  # fmt: skip
def test_what_a_broker_says_is_one_line_without_a_password(error: Exception, words: str) -> None:
    assert broker_errors.in_words(error) == words
