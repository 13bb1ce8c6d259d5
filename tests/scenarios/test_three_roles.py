"""A deployment of three roles from `migrate` to repair: each step runs in a process of its role."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection

from tests import ROOT
from tests.helpers import forked, roles, services
from tests.helpers.processes import Worker
from tests.helpers.tables import execute

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", "mariadb", reason="SQLite has no roles"),
]

POSTGRES = connection.vendor == "postgresql"
DATABASE = f"matviews_roles_{roles.RUN}"
STAGING = f"matviews_roles_staging_{roles.RUN}"
SOURCES = ("shapes_region", "shapes_customer", "shapes_order")
VIEWS = "shapes.RegionTotal,shapes.Ranked"  # windowed and tracked; staged
ROW_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"

# Messages go where the project's Celery app says, once that is imported.
MANAGE = """
import sys, tests.celery_app
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""
WRITE = """
from tests.shapes.models import Customer, Order, Region
region = Region.objects.create(pk={pk}, name="Region {pk}")
customer = Customer.objects.create(pk={pk}, name="Customer {pk}", region=region)
Order.objects.create(
    pk={pk}, customer=customer, price=7, status="open", quantity=2, slot=1, paid=True
)
"""


class Deployment:
    """The processes of a project, each as the role that it is told."""

    def __init__(self, redis_url: str, queue: str, names: dict[str, str]) -> None:
        self.redis_url, self.queue, self.names = redis_url, queue, names

    def environment(self, role: str) -> dict[str, str]:
        service = services.selected_database()
        parts = urlsplit(services.url(service))
        place = f"{parts.hostname}:{parts.port or services.DEFAULT_PORTS[parts.scheme]}"
        login = f"{self.names[role]}:{roles.PASSWORD}"
        return {
            **services.worker_environment(self.redis_url, self.queue, f"{self.queue}."),
            services.variable(service): f"{parts.scheme}://{login}@{place}/{DATABASE}",
            "MATVIEWS_TEST_DB_NAME": DATABASE,
            "MATVIEWS_TEST_SETTINGS": json.dumps({"STAGING_SCHEMA": STAGING, "LEASE": 2.0}),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def manage(self, role: str, *arguments: str) -> str:
        ran = forked.run(
            ["-c", MANAGE, *arguments], cwd=ROOT, env=self.environment(role), timeout=300
        )
        assert ran.returncode == 0, (
            f"{role}: {arguments}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        )
        return ran.stdout

    def command(self, *options: str) -> list[dict[str, Any]]:
        """`update_materialized_views` as the role of web and workers."""
        said = self.manage(
            "application",
            "update_materialized_views",
            "--models",
            VIEWS,
            "--format",
            "json",
            *options,
        )
        found: list[dict[str, Any]] = json.loads(said)["views"]
        return found


@pytest.fixture
def deployment(redis_url: str, queue: str) -> Iterator[Deployment]:
    """An empty database with the three roles, as docs/roles.md has a DBA make them."""
    with (
        roles.database_role("migrator") as migrator,
        roles.database_role("application") as application,
        roles.database_role("writer") as writer,
    ):
        names = {"migrator": migrator, "application": application, "writer": writer}
        quoted = {role: roles.quoted(name) for role, name in names.items()}
        try:
            if POSTGRES:
                execute(f"CREATE DATABASE {DATABASE} OWNER {migrator}")
            else:
                execute(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
                execute(f"GRANT ALL ON {DATABASE}.* TO {quoted['migrator']}")
                execute(f"GRANT ALL ON {STAGING}.* TO {quoted['migrator']}")
                rights = f"{ROW_RIGHTS}, CREATE TEMPORARY TABLES"
                execute(f"GRANT {rights} ON {DATABASE}.* TO {quoted['application']}")
                rights = "CREATE, DROP, SELECT, INSERT, CREATE TEMPORARY TABLES"
                execute(f"GRANT {rights} ON {STAGING}.* TO {quoted['application']}")
            yield Deployment(redis_url, queue, names)
        finally:
            execute(f"DROP DATABASE IF EXISTS {DATABASE}{' WITH (FORCE)' if POSTGRES else ''}")
            if not POSTGRES:
                execute(f"DROP DATABASE IF EXISTS {STAGING}")


def granting(deployment: Deployment) -> str:
    """A script for the migrator, who owns the tables: what each of the others may do with them."""
    application = roles.quoted(deployment.names["application"])
    writer = roles.quoted(deployment.names["writer"])
    statements = [f"GRANT {ROW_RIGHTS} ON {table} TO {writer}" for table in SOURCES]
    if POSTGRES:
        statements.append(f"GRANT {ROW_RIGHTS} ON ALL TABLES IN SCHEMA public TO {application}")
    return f"from tests.helpers.tables import execute; execute(*{statements!r})"


def test_three_roles_from_migrate_to_repair(deployment: Deployment, tmp_path: Path) -> None:
    # given tables, triggers and the schema of staging tables, by the migrator
    deployment.manage("migrator", "migrate", "--run-syncdb", "--verbosity", "0")
    script = granting(deployment)
    owner = "migrator" if POSTGRES else None
    if owner:
        deployment.manage(owner, "shell", "-c", script)
        deployment.manage(owner, "migrate", "--run-syncdb", "--verbosity", "0")  # opens the schema
    else:
        for table in SOURCES:
            execute(
                f"GRANT {ROW_RIGHTS} ON {DATABASE}.{table} "
                f"TO {roles.quoted(deployment.names['writer'])}"
            )
    checked = deployment.manage("application", "check", "--database", "default")
    assert "W034" not in checked
    assert "W035" not in checked

    # when a writer writes, and a worker refreshes what the web has asked for
    worker = Worker(
        deployment.environment("application"), tmp_path / "worker.log", "--pool", "solo"
    )
    try:
        deployment.manage("writer", "shell", "-c", WRITE.format(pk=1))
        waiting_for(deployment, worker)
        deployment.manage("writer", "shell", "-c", WRITE.format(pk=2))
        waiting_for(deployment, worker)
    finally:
        worker.kill()

    # then the views equal their sources; the second refresh of the tracked one looked at keys alone
    assert all(view["equal"] and view["compared"] == 2 for view in deployment.command("--verify"))
    assert worker.lines("source staged", "shapes.Ranked", STAGING)
    assert not worker.lines("Traceback")
    # and what has been tampered with is repaired
    deployment.manage(
        "application", "shell", "-c",
        "from tests.shapes.models import Ranked, RegionTotal; "
        "Ranked.objects.all().delete(); RegionTotal.objects.all()[:1].get().delete()",
    )  # fmt: skip
    repaired = {
        view["view"]: view["repaired"] for view in deployment.command("--verify", "--repair")
    }
    assert repaired == {"shapes.Ranked": 2, "shapes.RegionTotal": 1}
    assert all(view["equal"] for view in deployment.command("--verify"))


def test_admin_and_maintenance_as_the_role_of_web_and_workers(
    deployment: Deployment, tmp_path: Path
) -> None:
    # given a project at work, with a history that is due to be trimmed
    deployment.manage("migrator", "migrate", "--run-syncdb", "--verbosity", "0")
    if POSTGRES:
        deployment.manage("migrator", "shell", "-c", granting(deployment))
        deployment.manage("migrator", "migrate", "--run-syncdb", "--verbosity", "0")
    deployment.manage("application", "shell", "-c", WRITE.format(pk=1))
    for _time in range(2):
        deployment.command()
        deployment.manage("application", "shell", "-c", WRITE.format(pk=_time + 2))

    # when a person uses each page of the admin, and the maintenance task runs twice
    said = deployment.manage("application", "shell", "-v0", "-c", ADMIN)

    # then each page answers, the history is shorter, and nothing failed for a right that is missing
    told = json.loads(said.splitlines()[-1])
    assert set(told["pages"].values()) == {200}, told["pages"]
    assert told["refreshes"]["after"] < told["refreshes"]["before"]
    assert told["asked"] == 1
    assert told["steered"] == [True, False]
    assert told["schedules"] == 1
    assert [each for each in told["logged"] if "could not" in each or "denied" in each] == []
    # and the triggers, which it may not make, are as they were
    assert told["problems"] == []


ADMIN = """
import json, logging
from datetime import timedelta
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
from matviews import changes, engine
from matviews.models import Refresh, RefreshSchedule, Origin, ViewControl
from matviews.tasks import maintain

setup_test_environment()
logged = []

class Kept(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())

logging.getLogger("matviews").addHandler(Kept(level=logging.WARNING))
client, pages = Client(), {}
client.force_login(User.objects.create_superuser("anna"))

def page(path, **posted):
    answer = client.post(path, posted, follow=True) if posted else client.get(path, follow=True)
    pages[path] = answer.status_code

for label in ("shapes.RegionTotal", "shapes.Ranked"):
    control = ViewControl.objects.get(label=label)
    own = f"/admin/matviews/viewcontrol/{control.pk}"
    for path in (f"{own}/change/", f"{own}/progress/"):
        page(path)
page("/admin/matviews/viewcontrol/")
page("/admin/matviews/refresh/")
page(f"/admin/matviews/refresh/{Refresh.objects.latest('pk').pk}/change/")
steered = []
for action in ("pause", "resume"):
    page(f"{own}/{action}/", sure="yes")
    steered.append(ViewControl.objects.get(pk=control.pk).paused)
page(f"{own}/refresh/", phases=["insert", "update", "delete"])
asked = Refresh.objects.filter(origin=Origin.ADMIN).count()
RefreshSchedule.objects.all().delete()
settings = {
    "enabled": "on", "include_in_refresh_all": "on", "shard_count": "1", "initial-enabled": "True",
    "initial-include_in_refresh_all": "True", "initial-shard_count": "1",
    "schedules-TOTAL_FORMS": "1", "schedules-INITIAL_FORMS": "0",
    "schedules-0-phases": ["insert", "update", "delete"],
    "schedules-0-every": "5", "schedules-0-period": "hours", "schedules-0-enabled": "on",
    "schedules-0-view": str(control.pk),
}
page(f"{own}/change/", **settings)
before = Refresh.objects.count()
Refresh.objects.exclude(state="open").update(finished_at=engine.now() - timedelta(days=60))
maintain()
maintain()
print(json.dumps({
    "pages": pages, "asked": asked, "steered": steered,
    "schedules": RefreshSchedule.objects.count(),
    "refreshes": {"before": before, "after": Refresh.objects.count()},
    "logged": logged, "problems": list(changes.find_problems("default")),
}))
"""


def waiting_for(deployment: Deployment, worker: Worker) -> None:
    """Ask for a refresh of each view, and wait for the end of the worker's work."""
    asked = {view["refresh"] for view in deployment.command("--enqueue")}
    for number in asked:
        deployment.manage("application", "shell", "-c", WAIT.format(number=number))
    assert not worker.dead


WAIT = """
import time
from matviews.models import Refresh
for _try in range(400):
    refresh = Refresh.objects.get(pk={number})
    if refresh.finished_at:
        break
    time.sleep(0.1)
assert refresh.state == "succeeded", (refresh.state, refresh.error)
"""
