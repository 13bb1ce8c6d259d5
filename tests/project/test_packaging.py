"""The wheel and the sdist: what is in them, and that a project runs on the wheel alone."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import matviews
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ["matviews", "tasks", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: str | Path, cwd: Path) -> str:
    """Run with nothing of this repository on the path; return what was printed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is shipped, because building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("tree")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=junk)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(source: Path, kind: str, target: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", kind, "-o", target, source, cwd=target)
    return next(target.iterdir())


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "--wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "--sdist", tmp_path_factory.mktemp("sdist"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    information = f"django_matviews-{matviews.__version__}.dist-info"

    assert {name.partition("/")[0] for name in names} == {"matviews", information}
    assert names >= {
        "matviews/__init__.py",
        "matviews/engine/__init__.py",
        "matviews/management/commands/update_materialized_views.py",
        "matviews/migrations/0001_initial.py",
        "matviews/py.typed",
        "matviews/tasks/__init__.py",
        f"{information}/licenses/LICENSE",
    }


def test_the_wheel_holds_every_module_of_the_tree(wheel: Path) -> None:
    sources: set[str] = set()
    for top, folder in {"matviews": ROOT / "matviews", "matviews/tasks": ROOT / "tasks"}.items():
        sources |= {f"{top}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}

    assert {name for name in names_in(wheel) if name.endswith(".py")} == sources


def test_the_wheel_holds_every_template_static_file_and_translation_of_the_tree(
    wheel: Path,
) -> None:
    folders = [ROOT / "matviews" / name for name in ("templates", "static", "locale")]
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}

    assert {path.suffix for path in files} == {".html", ".css", ".js", ".po", ".mo"}
    assert {str(path.relative_to(ROOT)) for path in files} <= names_in(wheel)


def test_the_package_list_is_the_folders_with_modules() -> None:
    folders = {path.parent for path in (ROOT / "matviews").rglob("*.py")}
    folders |= {ROOT / "matviews" / "tasks"}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}

    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_the_link_to_tasks_is_relative() -> None:
    assert (ROOT / "matviews" / "tasks").readlink() == Path("../tasks")


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    # tarfile's own way warns or is missing, depending on the release of Python.
    run("tar", "-xzf", sdist, "-C", tmp_path, cwd=tmp_path)
    (source,) = tmp_path.iterdir()
    target = tmp_path / "wheel"
    target.mkdir()

    assert names_in(build(source, "--wheel", target)) == names_in(wheel)


def dependencies(requirements: list[str], found: dict[str, Distribution]) -> None:
    """Collect into `found` what `requirements` install here, directly or by another package."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = distribution(name)
            dependencies(found[name].requires or [], found)


def link_into(folder: Path, package: Distribution) -> None:
    tops = {path.parts[0] for path in package.files or [] if path.parts[0] != ".."}
    for top in tops - {"__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(package.locate_file(top))))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its declared dependencies, and nothing else.

    The dependencies are links to those of this environment, or the test would need the network.
    Only our own requirements are checked: a release of Django can be tested before
    django-celery-beat admits it.
    """
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    (folder,) = environment.glob("lib/python*/site-packages")
    found: dict[str, Distribution] = {}
    declared = PROJECT["project"]["dependencies"]
    dependencies(declared, found)
    for requirement in map(Requirement, declared):
        assert found[canonicalize_name(requirement.name)].version in requirement.specifier
    for package in found.values():
        link_into(folder, package)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=environment)
    return python


SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat", "matviews", "shop"]
"""

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

MODELS = """
from django.db import models
from django.db.models import F, OuterRef, Subquery, Sum

from matviews import MaterializedView


class Order(models.Model):
    customer = models.CharField(max_length=20, db_index=True)
    amount = models.IntegerField()


class CustomerTotal(MaterializedView, models.Model):
    customer = models.CharField(max_length=20, unique=True)
    total = models.IntegerField()

    @classmethod
    def missing(cls):
        return (
            Order.objects.exclude(customer__in=cls.objects.values("customer"))
            .order_by("customer").values("customer").annotate(total=Sum("amount"))
        )

    @classmethod
    def wrong(cls):
        totals = Order.objects.filter(customer=OuterRef("customer")).order_by()
        totals = totals.values("customer").annotate(total=Sum("amount")).values("total")
        return cls.objects.annotate(now=Subquery(totals[:1])).exclude(total=F("now"))

    @classmethod
    def gone(cls):
        return cls.objects.exclude(customer__in=Order.objects.values("customer"))

    @classmethod
    def needs_insert(cls):
        return cls.missing().count()

    @classmethod
    def do_insert(cls, limit):
        return len(cls.objects.bulk_create(cls(**row) for row in cls.missing()[:limit]))

    @classmethod
    def needs_update(cls):
        return cls.wrong().exists()

    @classmethod
    def do_update(cls, limit):
        rows = list(cls.wrong()[:limit])
        for row in rows:
            row.total = row.now
        return cls.objects.bulk_update(rows, ["total"])

    @classmethod
    def needs_delete(cls):
        return cls.gone().exists()

    @classmethod
    def do_delete(cls):
        return cls.gone().delete()[0]
"""

CHANGES = """
from shop.models import Order
Order.objects.bulk_create(Order(customer=f"c{n % 7}", amount=n) for n in range(70))
"""

MORE_CHANGES = """
from shop.models import Order
Order.objects.filter(customer="c0").delete()
Order.objects.filter(customer="c1").update(amount=1)
Order.objects.create(customer="c9", amount=9)
"""

COMPARE = """
from django.db.models import Sum
from shop.models import CustomerTotal, Order
view = dict(CustomerTotal.objects.values_list("customer", "total"))
source = Order.objects.order_by().values("customer").annotate(total=Sum("amount"))
assert view == dict(source.values_list("customer", "total")), view
print(len(view))
"""

CELERY = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from celery import Celery
app = Celery("shop", broker="memory://")
app.autodiscover_tasks()
app.loader.import_default_modules()
print(*sorted(name for name in app.tasks if name.startswith("matviews.")))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "manage.py").write_text(MANAGE)
    (tmp_path / "celery_app.py").write_text(CELERY)
    migrations = tmp_path / "shop" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "models.py").write_text(MODELS)
    return tmp_path


def test_a_project_refreshes_its_view_with_the_installed_wheel(python: Path, project: Path) -> None:
    def manage(*arguments: str) -> str:
        return run(python, "manage.py", *arguments, cwd=project)

    def lines(script: str) -> list[str]:
        return manage("shell", "--verbosity", "0", "-c", script).splitlines()

    manage("makemigrations", "shop")
    manage("migrate")
    lines(CHANGES)
    manage("update_materialized_views")
    assert lines(COMPARE) == ["7"]

    lines(MORE_CHANGES)
    manage("update_materialized_views", "--models", "shop.CustomerTotal")
    assert lines(COMPARE) == ["7"]


def test_celery_discovers_the_tasks_of_the_installed_wheel(python: Path, project: Path) -> None:
    assert run(python, "celery_app.py", cwd=project).split() == [
        "matviews.delete_batch",
        "matviews.insert_batch",
        "matviews.maintain",
        "matviews.pulse",
        "matviews.refresh",
        "matviews.update_batch",
        "matviews.verify",
        "matviews.verify_slice",
    ]
