"""The examples of the README and of the docs, run as they stand."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Mod
from django.utils import timezone

from matviews import Batch, Share, engine
from matviews.models import Refresh
from matviews.tasks import inline
from tests.sample.models import Item, Limited, Walked

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

BASE_SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
"""

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

FIRST_ORDERS = """
from shop.models import Customer, Order
for number in range(30):
    customer, _ = Customer.objects.get_or_create(name=f"c{number % 4}")
    Order.objects.create(customer=customer, amount=number)
"""

LATER_ORDERS = """
from shop.models import Customer, Order
Order.objects.filter(customer__name="c1").first().delete()
Customer.objects.get(name="c2").delete()
Customer.objects.create(name="c9")
"""

COMPARE = """
from django.db.models import Sum
from shop.models import Customer, Spending
totals = Customer.objects.annotate(total=Sum("order__amount", default=0))
assert dict(Spending.objects.values_list("pk", "total")) == dict(totals.values_list("pk", "total"))
assert Spending.is_fresh()
print(Spending.objects.count())
"""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page, each beginning with a comment that names it."""
    text = (ROOT / page).read_text()
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def named(page: str, name: str) -> str:
    (found,) = [body for body in blocks(page, "python") if body.startswith(f"# {name}\n")]
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the README's blocks in the files that their first lines name."""
    (tmp_path / "manage.py").write_text(MANAGE)
    files = {"proj/__init__.py": "", "shop/__init__.py": "", "shop/migrations/__init__.py": ""}
    files["proj/settings.py"] = BASE_SETTINGS
    for body in blocks("README.md", "python"):
        name = body.partition("\n")[0].removeprefix("# ")
        name = "proj/settings.py" if name == "settings.py" else name
        files[name] = files.get(name, "") + body
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(project: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readmes_project_works_as_written(project: Path) -> None:
    # Given the commands that the README's first console block shows
    commands = [line.split() for line in blocks("README.md", "console")[0].splitlines()]
    assert [command[:3] for command in commands][-2:] == [
        ["$", "python", "manage.py"],
        ["$", "python", "manage.py"],
    ]
    setup, migrate, refresh, show = (command[2:] for command in commands)
    # When they are run over changing orders
    run(project, *setup)
    run(project, *migrate)
    run(project, "manage.py", "shell", "-v", "0", "-c", FIRST_ORDERS)
    printed = run(project, *refresh)
    # Then the view equals its source, and the command says what it did
    assert "shop.Spending insert: 4 rows" in printed
    assert run(project, "manage.py", "shell", "-v", "0", "-c", COMPARE).split() == ["4"]
    assert "shop.Spending" in run(project, *show)
    run(project, "manage.py", "shell", "-v", "0", "-c", LATER_ORDERS)
    printed = run(project, *refresh)
    assert run(project, "manage.py", "shell", "-v", "0", "-c", COMPARE).split() == ["4"]
    for phase in ("insert", "update", "delete"):
        assert re.search(rf"shop.Spending {phase}: 1 rows? in 1 batch", printed), printed


def test_the_readmes_celery_app_has_the_tasks_and_passes_the_checks(project: Path) -> None:
    script = (
        "from proj.celery import app; app.loader.import_default_modules(); "
        "print(*sorted(t for t in app.tasks if t.startswith('matviews.')))"
    )
    assert "matviews.insert_batch" in run(project, "-c", script).split()
    assert "no issues" in run(project, "manage.py", "check")


@pytest.mark.django_db
def test_the_periodic_tasks_of_the_production_page_are_made() -> None:
    from django_celery_beat.models import PeriodicTask

    exec(named("docs/production.md", "a data migration, or a shell"), {})
    tasks = PeriodicTask.objects.values_list("task", flat=True)
    assert set(tasks) == {"matviews.watch", "matviews.refresh"}


@pytest.mark.django_db
def test_the_production_page_deletes_old_refreshes() -> None:
    engine.sync_controls()
    old, new = (inline.run_to_end(engine.request(Limited)) for _ in range(2))
    Refresh.objects.filter(pk=old.pk).update(finished_at=timezone.now() - timedelta(days=40))
    names = {"Refresh": Refresh, "timezone": timezone, "timedelta": timedelta}
    exec(named("docs/production.md", "keep a month"), names)
    assert list(Refresh.objects.values_list("pk", flat=True)) == [new.pk]


@pytest.mark.django_db
def test_the_hook_that_walks_visits_every_key_once() -> None:
    names: dict[str, Any] = {"Batch": Batch}
    exec(named("docs/writing-views.md", "a hook that walks"), names)
    Walked.objects.bulk_create([Walked(key=key, value=0) for key in range(7)])
    windows: list[tuple[int, int]] = []

    class View:
        objects = Walked.objects
        do_update = names["do_update"]

        @classmethod
        def recompute(cls, low: int, high: int) -> int:
            windows.append((low, high))
            return cls.objects.filter(pk__gt=low, pk__lte=high).count()

    cursor, rows = None, 0
    while True:
        batch = View.do_update(limit=3, cursor=cursor)
        rows, cursor = rows + batch.rows, batch.cursor
        if cursor is None:
            break
    assert (rows, len(windows)) == (7, 3)


@pytest.mark.django_db
def test_the_hook_in_a_stripe_sees_its_share_only() -> None:
    names: dict[str, Any] = {"Mod": Mod}
    exec(named("docs/writing-views.md", "a hook in a stripe"), names)
    Item.objects.create(pk=4, value=0)

    class View:
        missing = Limited.missing
        needs_insert = names["needs_insert"]

    assert [View.needs_insert(stripe=Share(number, 2)) for number in range(2)] == [True, False]


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
