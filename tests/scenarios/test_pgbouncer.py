"""Workers behind a PgBouncer that passes a server connection on after each transaction."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from django.db import connection

from matviews.models import Refresh
from matviews.states import RefreshState
from tests import ROOT
from tests.helpers import forked, processes, services
from tests.helpers.ledger import add_items
from tests.sample.models import Item, Limited
from tests.shapes.models import Customer, CustomerTotal, Order, Ranked, Region

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", reason="PgBouncer is PostgreSQL's"),
]

CONNECTIONS = 3
CONFIG = """
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 100
ignore_startup_parameters = options
"""
# Whatever a session may keep from the transactions of another.
KEPT = (
    "SELECT pg_backend_pid(), "
    "(SELECT string_agg(concat(name, '=', setting), ' ' ORDER BY name) FROM pg_settings "
    "WHERE source = 'session' AND name NOT IN ('client_encoding', 'TimeZone', "
    "'application_name', 'DateStyle', 'standard_conforming_strings')), "
    "current_setting('matviews.suppressed', true), pg_sleep(0.2)"
)


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[str]:
    """The address of a PgBouncer in front of the server."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        (pytest.fail if services.in_ci() else pytest.skip)("pgbouncer is not installed.")
    assert program
    server = urlsplit(services.url("postgres"))
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        CONFIG.format(
            host=server.hostname, port=server.port or 5432, user=unquote(server.username or ""),
            password=f" password={unquote(server.password)}" if server.password else "",
            listen=port, size=CONNECTIONS,
        )
    )  # fmt: skip
    config.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        if folder.owner() == config.owner():
            folder.chmod(0o755)
    as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    log = (tmp_path / "pgbouncer.log").open("w")
    process = subprocess.Popen([program, *as_user, str(config)], stdout=log, stderr=log)
    address = server._replace(
        netloc=f"{server.username}:{server.password or 'none'}@127.0.0.1:{port}"
    ).geturl()
    try:
        for _try in range(100):
            if services.answers(address):
                break
            assert process.poll() is None, Path(log.name).read_text()
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def test_workers_share_its_connections_and_leave_nothing_on_them(
    pooled: str, redis_environment: dict[str, str], tmp_path: Path, tracked: None
) -> None:
    # given rows to work on, and two workers behind PgBouncer
    region = Region.objects.create(pk=1, name="here")
    for number in range(1, 40):
        Customer.objects.create(pk=number, name=str(number), region=region)
        Order.objects.create(customer_id=number, quantity=1, price=1, paid=True, slot=1)
    add_items(60)
    environment = {**redis_environment, services.variable("postgres"): pooled}
    limits = {"STATEMENT_TIMEOUT": 20.0, "LEASE": 2.0}
    environment["MATVIEWS_TEST_SETTINGS"] = json.dumps(limits)
    workers = [
        processes.Worker(environment, tmp_path / f"worker-{number}.log", "--pool", "solo")
        for number in (1, 2)
    ]
    views = (CustomerTotal, Ranked, Limited)
    try:
        # when views are asked for again and again while rows change, by way of PgBouncer too
        for number in range(6):
            ran = forked.run(
                ["-c", ASK.format(number=number)], cwd=ROOT, env=environment, timeout=120
            )
            assert ran.returncode == 0, ran.stderr[-2000:]
        deadline = time.monotonic() + processes.DEADLINE
        while Refresh.objects.filter(state=RefreshState.OPEN).exists():
            assert time.monotonic() < deadline, [each.lines("") for each in workers]
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()

    # then each refresh has succeeded, and the rows are right
    assert set(Refresh.objects.values_list("state", flat=True)) == {RefreshState.SUCCEEDED}
    assert all(view.verify().equal for view in views[:2])
    assert Limited.objects.count() == Item.objects.count()
    # and no connection of the server has a limit, a level or a mute left of what the workers did
    assert left_on_connections(pooled) == {(None, None)}


ASK = """
import django
django.setup()
import tests.celery_app
from matviews.tasks import maintain
from tests.helpers.ledger import add_items
from tests.shapes.models import Customer, CustomerTotal, Order, Ranked
from tests.sample.models import Limited
Order.objects.filter(customer_id__lt={number} * 5).update(quantity={number} + 2)
Customer.objects.filter(pk=39 - {number}).delete() if {number} % 2 else add_items(5)
for view in (CustomerTotal, Ranked, Limited):
    view.refresh()
maintain.delay()
"""


def left_on_connections(address: str) -> set[tuple[str | None, str | None]]:
    """What new clients find on as many connections as there are at once."""
    name = connection.settings_dict["NAME"]
    place = urlsplit(address)
    clients = [
        psycopg.connect(
            host=place.hostname, port=place.port, user=place.username, dbname=name,
            autocommit=False, prepare_threshold=None,
        )
        for _client in range(CONNECTIONS)
    ]  # fmt: skip
    try:
        found = [client.execute(KEPT).fetchone() for client in clients]  # each in a transaction
    finally:
        for client in clients:
            client.close()
    assert len({pid for pid, *_rest in filter(None, found)}) == CONNECTIONS
    return {(settings, muted or None) for _pid, settings, muted, _slept in filter(None, found)}
