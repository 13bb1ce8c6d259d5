"""The roles of docs/roles.md, made by the SQL that it shows: real, on a database of their own."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests import ROOT
from tests.helpers.processes import manage
from tests.helpers.tables import execute

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no roles"),
]

DATABASE = f"made_roles_{os.getpid()}"
ROLES = ("migrator", "application", "writer")
HEADINGS = {"postgresql": "## PostgreSQL", "mysql": "## MariaDB and MySQL"}

AT_WORK = """
from django.db import transaction
from matviews import engine, tasks, untracked, verify
from matviews.models import Change
from matviews.tasks import inline
from tests.shapes.models import Order
from tests.shapes.models.grouped import CustomerTotal

def run():
    refresh = engine.request(CustomerTotal)
    inline.run_to_end(refresh)
    refresh.refresh_from_db()
    return refresh.state, refresh.error, {each.full_refresh_reason for each in refresh.runs.all()}

print(run())
Order.objects.create(price=2, paid=False)
print(run())
with untracked(Order):
    Order.objects.create(price=3, paid=False)
print([each.links for each in Change.objects.filter(table="shapes_order")])
tasks.maintain()
print(CustomerTotal.verify(repair=True).repaired)
"""


def blocks() -> list[str]:
    """The SQL that a DBA runs before `migrate`, and after it."""
    section = (ROOT / "docs/roles.md").read_text().split(HEADINGS[connection.vendor])[1]
    found = re.findall(r"```sql\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    names = {f"shop_{role}": role_name(role) for role in ROLES}
    names |= {"shop_order": "shapes_order", "shop.": f"{DATABASE}."}
    names |= {"DATABASE shop ": f"DATABASE {DATABASE} "}
    for before, after in names.items():
        found = [block.replace(before, after) for block in found]
    return found


def role_name(role: str) -> str:
    return f"made_{role}_{os.getpid()}"


def settings(role: str) -> str:
    return (
        f"DATABASES['default'] |= "
        f"{{'NAME': '{DATABASE}', 'USER': '{role_name(role)}', 'PASSWORD': ''}}\n"
    )


def owner(sql: str) -> Any:
    """Run statements of whoever owns everything in that database."""
    return _run(sql, {})


def _run(sql: str, user: dict[str, str]) -> Any:
    driver: Any = connection.Database  # type: ignore[attr-defined]
    name = {"postgresql": "dbname", "mysql": "database"}[connection.vendor]
    options = connection.get_connection_params() | {name: DATABASE} | user
    for each in ("cursor_factory", "context"):
        options.pop(each, None)
    with closing(driver.connect(**options, autocommit=True)) as session:
        cursor = session.cursor()
        for statement in filter(None, map(str.strip, sql.split(";"))):
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


@pytest.fixture
def database() -> Iterator[None]:
    execute(f"CREATE DATABASE {DATABASE}")
    try:
        yield
    finally:
        execute(f"DROP DATABASE {DATABASE}")
        at = "@'%'" if connection.vendor == "mysql" else ""
        execute(
            *(f"DROP {'USER' if at else 'ROLE'} IF EXISTS {role_name(role)}{at}" for role in ROLES)
        )


def test_each_role_has_the_rights_that_it_needs_and_no_others(
    database: None, tmp_path: Path
) -> None:
    def done(role: str, *arguments: str) -> str:
        result = manage(tmp_path, settings(role), *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    before, after = blocks()
    owner(before)
    # the migrator makes everything
    told = done("migrator", "migrate", "--run-syncdb")
    assert "matviews could not" not in told, told
    assert "were not created" not in told, told
    owner(after)
    # the application works, and nothing is lost that it writes
    full, by_key, log, repaired = done("application", "shell", "-v0", "-c", AT_WORK).splitlines()[
        -4:
    ]
    assert "succeeded" in full, full
    assert "not succeeded since tracking began" in full, full
    assert by_key.endswith("{''})"), by_key
    assert log == "[None]", log
    assert repaired == "0", repaired
    # the writer writes and is logged, and has no right on anything of ours
    user = {"user": role_name("writer"), "password": ""}
    _run(
        "INSERT INTO shapes_order (price, paid, status, note, quantity) "
        "VALUES (1, false, '', '', 1)",
        user,
    )
    assert owner("SELECT count(*) FROM matviews_change") == (
        [(1,)] if connection.vendor == "postgresql" else ((1,),)
    )
    for table in ("matviews_change", "matviews_logsecret", "matviews_trackedtable"):
        for statement in (f"SELECT * FROM {table}", f"DELETE FROM {table}"):
            with pytest.raises(Exception, match="denied"):
                _run(statement, user)
    assert "W013" not in done("migrator", "check", "--database", "default")
