"""The examples of the README and of the docs, run as they stand."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from django.db.models.functions import Mod
from django.utils import timezone

from matviews import Batch, KeyFailed, Shard, engine
from matviews.models import Alarm
from matviews.tasks.check_in import check_in
from tests import ROOT
from tests.helpers import forked, services, view_classes
from tests.helpers.http_server import serving
from tests.sample.models import Item, Limited, Walked

PAGES = [
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "example_project/README.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
]  # fmt: skip
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

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
moved = Order.objects.filter(customer__name="c0").first()
moved.customer = Customer.objects.get(name="c3")
moved.save()
Order.objects.create(customer=Customer.objects.create(name="c9"), amount=1)
"""

COMPARE = """
from collections import Counter
from shop.models import Order, Spending
totals = Counter()
for order in Order.objects.all():
    totals[order.customer_id] += order.amount
assert dict(Spending.objects.values_list("pk", "total")) == totals
assert Spending.is_fresh()
print(Spending.objects.count())
"""

PAST_CUSTOMERS = """

class PastCustomer(models.Model):
    customer_id = models.BigIntegerField(primary_key=True)
    total = models.IntegerField()
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
    """The README's project: made by its commands, with its blocks in the files that they name."""
    _pip, *makers = commands("README.md", 0)
    for maker in makers:
        run(tmp_path, *maker)
    for body in blocks("README.md", "python"):
        heading = body.partition("\n")[0].removeprefix("# ")
        name, _, at_its_end = heading.partition(", ")
        if name == "in the shell":
            continue
        path = tmp_path / name
        path.write_text((path.read_text() if at_its_end else "") + body)
    return tmp_path


def migrate(project: Path) -> None:
    setup, migrate, _superuser = commands("README.md", 1)
    run(project, *setup)
    run(project, *migrate)


def commands(page: str, number: int) -> list[list[str]]:
    """The commands of a console block, as arguments of this Python."""
    lines = blocks(page, "console")[number].splitlines()
    words = [line.removeprefix("$ ").split() for line in lines]
    scripts = {"django-admin": ["-m", "django"], "celery": ["-m", "celery"], "pip": ["-m", "pip"]}
    return [[*scripts.get(first, []), *rest] for first, *rest in words]


def run(project: Path, *arguments: str) -> str:
    done = forked.run(arguments, cwd=project, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    return {**clean, "PYTHONPATH": str(ROOT)}


def shell(project: Path, script: str) -> str:
    return run(project, "manage.py", "shell", "-v", "0", "-c", script)


@pytest.mark.parametrize("page", ["README.md", "docs/writing-views.md"])
def test_a_project_with_the_models_of_the_page_works_as_written(project: Path, page: str) -> None:
    # Given the commands that the README shows, and a view with a source, or one with hooks
    models = project / "shop" / "models.py"
    models.write_text(named(page, "shop/models.py"))
    migrate(project)
    refresh, show, prove, explain = commands("README.md", 2)
    # When they are run over changing orders
    shell(project, named("README.md", "in the shell"))
    assert "shop.Spending insert: 1 row" in run(project, *refresh)
    shell(project, FIRST_ORDERS)
    printed = run(project, *refresh)
    # Then the view equals its source, and the command says what it did
    assert "shop.Spending insert: 4 rows" in printed
    assert "shop.Spending" in run(project, *show)
    assert shell(project, COMPARE + LATER_ORDERS).split() == ["5"]
    printed = run(project, *refresh)
    assert shell(project, COMPARE).split() == ["5"]
    for phase, rows in (("insert", 1), ("update", 3), ("delete", 1)):
        assert re.search(rf"shop.Spending {phase}: {rows} rows? in 1 batch", printed), printed
    # And where it has a source, it can be verified and explained, and says how recent it is
    if page == "README.md":
        assert "equal" in run(project, *prove)
        assert "windowed" in run(project, *explain)
        assert_it_is_told_how_recent_rows_are(project)
        shell(project, named("docs/current.md", "as of now"))


def assert_it_is_told_how_recent_rows_are(project: Path) -> None:
    """By the view function and the template of the page."""
    view = named("docs/writing-views.md", "data as of, in views.py")
    [template] = blocks("docs/writing-views.md", "html")
    script = (
        f"from django.http import JsonResponse\nfrom django.template import engines\n"
        f"from shop.models import Spending\n{view}\n"
        f"import json\nanswer = json.loads(spending(None).content)\n"
        f"print(answer['as_of'] is not None, answer['pending'], len(answer['rows']))\n"
        f"print(engines['django'].from_string({template!r}).render())"
    )
    told = shell(project, script)
    assert told.splitlines()[0] == "True False 5"
    assert re.search(r"Data as of \d\d:\d\d", told)


def test_a_hook_beside_source_wins_over_the_derived_one(project: Path) -> None:
    # Given the README's view, with the hook that the docs show and the model that it writes
    hook = named("docs/writing-views.md", "a hook beside source()")
    with (project / "shop" / "models.py").open("a") as models:
        models.write("\n" + textwrap.indent(hook, "    ") + PAST_CUSTOMERS)
    migrate(project)
    shell(project, FIRST_ORDERS)
    run(project, "manage.py", "update_materialized_views")
    # When a customer goes
    shell(project, LATER_ORDERS)
    printed = run(project, "manage.py", "update_materialized_views")
    # Then the hook has kept the row, and the other phases are the derived ones
    assert "shop.Spending delete: 1 row in 1 batch" in printed
    kept = "from shop.models import PastCustomer\nprint(*PastCustomer.objects.values_list('total'))"
    told = shell(project, COMPARE + kept).splitlines()
    assert told == ["4", f"({sum(range(2, 30, 4))},)"]


def test_the_source_that_is_shown_is_that_of_the_example() -> None:
    heading, shown = named("docs/writing-views.md", "the source of CarrierDay").split("\n", 1)
    example = ROOT / "example_project" / "flights" / "models" / "carrier_day.py"
    assert textwrap.indent(shown, "    ") in example.read_text(), heading


def test_the_readmes_worker_and_beat_build_the_view_on_its_schedule(
    project: Path, own_redis: str
) -> None:
    # Given the project on a Redis of its own, migrated, with orders
    settings = project / "proj" / "settings.py"
    address = "redis://127.0.0.1:6379/0"
    assert address in settings.read_text()
    settings.write_text(settings.read_text().replace(address, own_redis))
    migrate(project)
    shell(project, FIRST_ORDERS)
    # When worker and beat are started as it says
    worker, beat, _server = commands("README.md", 3)
    started = [
        subprocess.Popen(
            [sys.executable, *command], cwd=project, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for command in (worker, beat)
    ]  # fmt: skip
    try:
        # Then the view is built without anybody asking
        wait_for_rows(project / "db.sqlite3", "shop_spending", 4)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
    assert shell(project, COMPARE).split() == ["4"]
    assert "every minute" in run(project, "manage.py", "update_materialized_views", "--schedules")


def wait_for_rows(database: Path, table: str, rows: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    found = None
    while found != rows:
        assert time.monotonic() < deadline, f"{table} has {found} rows"
        time.sleep(0.2)
        with closing(sqlite3.connect(database)) as connection:
            ((found,),) = connection.execute(f"SELECT count(*) FROM {table}")


@pytest.fixture
def own_redis() -> Iterator[str]:
    """A Redis that nobody else uses: the README's project has no prefix for its keys."""
    with services.started_redis() as address:
        yield address


def test_the_readmes_celery_app_has_the_tasks_and_passes_the_checks(project: Path) -> None:
    script = (
        "from proj.celery import app; app.loader.import_default_modules(); "
        "print(*sorted(t for t in app.tasks if t.startswith('matviews.')))"
    )
    assert "matviews.insert_batch" in run(project, "-c", script).split()
    assert "no issues" in run(project, "manage.py", "check")


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
def test_the_hooks_that_park_a_key_name_it_and_then_leave_it_out() -> None:
    names: dict[str, Any] = {"KeyFailed": KeyFailed}
    exec(named("docs/writing-views.md", "hooks that park a key"), names)
    Walked.objects.bulk_create([Walked(key=key, value=0) for key in range(3)])
    bad = Walked.objects.get(key=1).pk

    class View:
        missing = Walked.objects.order_by
        objects = Mock(bulk_create=list)
        needs_insert, do_insert = names["needs_insert"], names["do_insert"]

        def __init__(self, customer_id: int, total: int) -> None:
            self.key = customer_id

    def total(self: Walked) -> float:
        return 1 / (self.pk - bad)

    with patch.object(Walked, "compute_total", total, create=True):
        with pytest.raises(KeyFailed) as failed:
            View.do_insert(limit=3, parked=[])
        assert failed.value.key == bad
        assert View.do_insert(limit=3, parked=[bad]) == 2
        assert View.needs_insert(parked=[bad])


@pytest.mark.django_db
def test_the_hook_in_a_shard_sees_its_share_only() -> None:
    names: dict[str, Any] = {"Mod": Mod}
    exec(named("docs/writing-views.md", "a hook in a shard"), names)
    Item.objects.create(pk=4, value=0)

    class View:
        missing = Limited.missing
        needs_insert = names["needs_insert"]

    assert [View.needs_insert(shard=Shard(number, 2)) for number in range(2)] == [True, False]


def test_the_examples_of_the_page_on_testing_pass(project: Path) -> None:
    # Given the README's project with the page's tests
    examples = blocks("docs/testing.md", "python")
    for body in examples:
        (project / body.partition("\n")[0].removeprefix("# ")).write_text(body)
    setup, _migrate, _superuser = commands("README.md", 1)
    run(project, *setup)
    # When they are run by Django's runner and by pytest
    run(project, "manage.py", "test", "--verbosity", "0")
    printed = run(
        project, "-m", "pytest", "-q",
        "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly",
        "--rootdir", str(project), "--ds", "proj.settings", "-o", "python_files=test*.py",
    )  # fmt: skip
    # Then each of them has passed
    tests = sum(len(re.findall(r"def test_", body)) for body in examples)
    assert f"{tests} passed" in printed


def test_the_hooks_for_alarms_tell_slack_and_pagerduty(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the hooks as the page shows them, and a server in the place of both
    names: dict[str, Any] = {}
    for body in blocks("docs/production.md", "python"):
        if body.startswith("# proj/alarms.py"):
            exec(body, names)
    raised = Alarm(pk=7, event="raised", text="shop.Spending: it fails", since=timezone.now())
    ended = Alarm(pk=8, event="ended", text="No worker", ended_at=timezone.now())
    with serving() as served:
        for name in ("SLACK_URL", "PAGERDUTY_URL"):
            monkeypatch.setenv(name, served.url)
        monkeypatch.setenv("PAGERDUTY_KEY", "secret")
        # When they are called as the maintenance task does
        names["to_slack"]([raised, ended])
        names["to_pagerduty"]([raised, ended])
    # Then each has got what it reads
    slack, trigger, resolve = (json.loads(body) for _method, _path, body in served.requests)
    assert slack == {"text": "raised: shop.Spending: it fails\nended: No worker"}
    assert (trigger["event_action"], trigger["dedup_key"]) == ("trigger", "matviews-7")
    assert trigger["payload"]["summary"] == "shop.Spending: it fails"
    assert (resolve["event_action"], resolve["dedup_key"]) == ("resolve", "matviews-8")


def test_the_check_in_of_the_page_is_accepted(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    (body,) = [
        body
        for body in blocks("docs/production.md", "python")
        if body.startswith("# proj/settings.py, at its end") and "CHECK_IN_URL" in body
    ]
    with serving() as served:
        monkeypatch.setenv("CHECK_IN_URL", f"{served.url}/ping")
        names: dict[str, Any] = {"os": os}
        exec(body, names)
        settings.MATVIEWS = names["MATVIEWS"]
        check_in()
    assert served.requests == [("GET", "/ping", "")]


# Where the README's links lead: PyPI shows it without the repository around it.
BLOB = "https://github.com/django-matviews/django-matviews/blob/main/"
RAW = "https://raw.githubusercontent.com/django-matviews/django-matviews/main/"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for target in targets(page):
        path, _, anchor = target.partition("#")
        linked = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page} links to {target}"


def test_the_readme_has_no_relative_link() -> None:
    links = re.findall(r"\]\(([^)]+)\)|^\[[^\]]+\]:\s+(\S+)", prose("README.md"), re.M)

    assert links
    assert [
        link for pair in links for link in pair if link and not link.startswith("https://")
    ] == []


def test_every_reference_link_of_the_readme_is_defined_and_used() -> None:
    text = prose("README.md")
    used = set(re.findall(r"\]\[([^\]]+)\]", text))

    assert used == set(re.findall(r"^\[([^\]]+)\]: ", text, re.M))


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = re.findall(r"^## (.+)$", prose("docs/glossary.md"), re.M)

    assert terms == sorted(terms, key=str.lower)


def targets(page: str) -> Iterator[str]:
    """The files of the repository that a page links to, relative to the page, with anchors."""
    links = re.findall(r"\]\(([^)]+)\)|^\[[^\]]+\]:\s+(\S+)", prose(page), re.M)
    for link in (link for pair in links for link in pair if link):
        path = link.removeprefix(BLOB).removeprefix(RAW)
        if not path.startswith("https://"):
            yield path


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def prose(page: str | Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)


class ListAPIView:
    """What the example needs of Django REST framework: a response with the data of a queryset."""

    queryset: Any

    def list(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(data=list(self.queryset.all().values("key", "value")))


@pytest.mark.django_db(transaction=True)
def test_the_example_for_rest_framework_adds_as_of_when_the_rows_are() -> None:
    engine.sync_controls()
    Item.objects.create(value=7)
    view_classes.run(Limited)
    of_the_page = {"ListAPIView": ListAPIView, "Spending": Limited, "SpendingSerializer": None}
    example = named("docs/writing-views.md", "data as of, with Django REST framework")
    exec(compile(example, "docs", "exec"), of_the_page)

    page: Any = of_the_page["SpendingList"]
    data = page().list(None).data

    assert data["rows"] == list(Limited.objects.values("key", "value")) != []
    assert data["as_of"] == Limited.status().as_of is not None
    assert data["state"] == Limited.status().state
