"""Databases that `pg_dump` or `mariadb-dump` has copied, whole or in part, with the real tools."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from matviews import engine
from matviews.models import Change, Refresh, TrackedTable, ViewChange
from tests.helpers import roles, services
from tests.helpers.tables import execute
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Region
from tests.shapes.models.grouped import CustomerTotal

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="the tools are the servers'"),
]

POSTGRES = connection.vendor == "postgresql"
COPY = f"matviews_copy_{roles.RUN}"

WHOLE: list[str] = []
if POSTGRES:
    DUMP, LOAD = "pg_dump", "psql"
    SCHEMA, ROWS, QUIET_ROWS = (
        ["--schema-only"],
        ["--data-only"],
        ["--data-only", "--disable-triggers"],
    )
else:
    DUMP, LOAD = "mariadb-dump", "mariadb"
    SCHEMA, ROWS = ["--no-data", "--triggers"], ["--no-create-info", "--skip-triggers"]
    QUIET_ROWS = [*ROWS, "--single-transaction"]


@pytest.fixture
def shop(tracked: None) -> None:
    """A view without a row that the bookkeeping says it has, and a request in progress."""
    region = Region.objects.create(pk=1, name="here")
    for number in (1, 2, 3):
        Customer.objects.create(pk=number, name=str(number), region=region)
        order(number)
    run(CustomerTotal)
    assert run(CustomerTotal).runs.count() == 0
    CustomerTotal.objects.filter(customer=2).delete()
    assert CustomerTotal.is_fresh()
    order(3)
    engine.move_log()
    order(3)
    assert Change.objects.exists()
    assert ViewChange.objects.exists()


def order(customer: int) -> None:
    Order.objects.create(customer_id=customer, quantity=customer, price=1, paid=True)


def tool(name: str) -> str:
    """Where a program of the server is. Without it the test is left out, or fails in CI."""
    found = shutil.which(name) or shutil.which(name.replace("mariadb", "mysql"))
    if not found:
        (pytest.fail if services.in_ci() else pytest.skip)(f"{name} is not installed.")
    assert found
    return found


def access(database: str) -> tuple[list[str], dict[str, str]]:
    settings = connection.settings_dict
    port, password = str(settings["PORT"]), settings["PASSWORD"] or ""
    if POSTGRES:
        address = ["-h", settings["HOST"], "-p", port, "-U", settings["USER"], "-w", database]
        return address, {**os.environ, "PGPASSWORD": password}
    address = ["-h", settings["HOST"], "-P", port, "-u", settings["USER"], database]
    return address, {**os.environ, "MYSQL_PWD": password}


def copied(*options: str) -> None:
    """What a dump with these options has of the test's database is loaded into the copy."""
    address, environment = access(str(connection.settings_dict["NAME"]))
    dumped = subprocess.run(
        [tool(DUMP), *options, *address], env=environment, capture_output=True, check=True
    )
    address, environment = access(COPY)
    strict = ["-q", "-v", "ON_ERROR_STOP=1"] if POSTGRES else []
    loaded = subprocess.run(
        [tool(LOAD), *strict, *address],
        env=environment, input=dumped.stdout, capture_output=True, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr.decode()[-2000:]


@contextmanager
def in_the_copy() -> Iterator[None]:
    """Within, Django's connection is to the copy."""
    name = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = COPY
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name


@pytest.fixture
def copy(shop: None) -> Iterator[None]:
    """A database with nothing in it."""
    execute(f"CREATE DATABASE {COPY}{'' if POSTGRES else ' CHARACTER SET utf8mb4'}")
    try:
        yield
    finally:
        execute(f"DROP DATABASE {COPY}{' WITH (FORCE)' if POSTGRES else ''}")


def is_rebuilt() -> None:
    """The next refresh is a full one, and right; so is what comes after it."""
    runs: list[Any] = list(run(CustomerTotal).runs.all())
    assert {each.dirty_after for each in runs} == {None}
    assert CustomerTotal.verify().equal
    incremental()
    assert CustomerTotal.verify().equal


def incremental() -> Any:
    order(1)
    return run(CustomerTotal)


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize(
    "dumps", [[WHOLE], [SCHEMA, ROWS], [SCHEMA, QUIET_ROWS]], ids=["whole", "rows", "quiet rows"]
)
def test_nothing_of_a_dump_is_believed(dumps: list[list[str]]) -> None:
    # given a copy of a database at work, made by the server's own tools
    for options in dumps:
        copied(*options)

    with in_the_copy():
        assert TrackedTable.objects.exists()
        assert Refresh.objects.exists()
        # then the next refresh finds the row that is missing
        is_rebuilt()
        # and once `migrate` has run there, changes lead to their keys as before
        call_command("migrate", verbosity=0)
        run(CustomerTotal)
        assert None not in {each.dirty_after for each in incremental().runs.all()}
        assert CustomerTotal.verify().equal
