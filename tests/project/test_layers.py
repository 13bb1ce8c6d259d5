"""Who may import whom: one way only, from the top of LAYERS down.

Imports for types alone (`if TYPE_CHECKING:`) call nobody and are not counted.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from matviews.databases.base.triggers import CHANGE_LOG, LOG_SECRET
from matviews.models import Change, LogSecret
from tests import ROOT

ROOMS = {"matviews": ROOT / "matviews", "matviews.tasks": ROOT / "tasks"}

# The bottom first. A room stands for all of its modules.
LAYERS = [
    {
        "phases",
        "presentation",
        "exceptions",
        "conf",
        "answer_cache",
        "limits",
        "logs",
        "project_locale",
        "quiet_hours",
        "redact",
        "signals",
        "sqlstate",
        "states",
        "waits",
    },
    {
        "contract",
        "definition",
        "early_checks",
        "faults",
        "hooks",
        "near_misses",
        "options",
        "registry",
    },
    {"databases"},
    {"json_fields", "models", "migrations"},
    {"queryset"},
    {"changes"},
    {"engine"},
    {"tasks"},
    # "" is matviews/__init__.py
    {"api", "current", "health", "health_check", "metrics", "mixin", "series", "testing", ""},
    {"checks", "apps", "admin", "management", "pytest_plugin", "templatetags"},
]
# The same within the room of querysets; its other modules are on top.
QUERYSET_LAYERS = ["analysis", "strategy", "sql"]
# And within that of the engine, whose own modules are below all of these.
ENGINE_LAYERS = [
    "failures",
    "graph",
    "work",
    "tracking",
    "parking",
    "batches",
    "dispatch",
    "on_change",
    "requests",
    "verification",
    "status",
]
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


@dataclass(frozen=True, kw_only=True)
class Import:
    importer: str  # dotted name of the module that imports
    imported: str  # dotted name of what it imports
    inside_function: bool

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    return module.removeprefix("matviews").lstrip(".").partition(".")[0]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(
    node: ast.AST, *, inside: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        elif isinstance(child, ast.If) and is_for_types(child):
            for other in child.orelse:
                yield from import_nodes(other, inside=inside)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from import_nodes(child, inside=inside or is_function)


def base_of(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    kept = parts[: len(parts) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def targets(module: str, path: Path, node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = base_of(module, path, node)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else base for name in names]


def imports() -> list[Import]:
    return [
        Import(importer=module, imported=target, inside_function=inside)
        for module, path in MODULES.items()
        for node, inside in import_nodes(ast.parse(path.read_text()))
        for target in targets(module, path, node)
    ]


def is_ours(module: str) -> bool:
    return module == "matviews" or module.startswith("matviews.")


def is_allowed(found: Import) -> bool:
    return LEVELS[room(found.imported)] <= LEVELS[room(found.importer)]


def test_every_module_has_a_layer() -> None:
    unknown = {room(module) for module in MODULES} - LEVELS.keys()

    assert not unknown, f"give these a place in LAYERS: {sorted(unknown)}"


def test_imports_go_down_only() -> None:
    wrong = [str(found) for found in imports() if is_ours(found.imported) and not is_allowed(found)]

    assert not wrong


def test_no_imports_form_a_cycle() -> None:
    """Neither those within functions nor those for types."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = {target for target in targets(module, path, node) if target in MODULES}
                graph.setdefault(module, set()).update(found)

    TopologicalSorter(graph).prepare()


def queryset_level(module: str) -> int:
    part = module.removeprefix("matviews.queryset").lstrip(".").partition(".")[0]
    return QUERYSET_LAYERS.index(part) if part in QUERYSET_LAYERS else len(QUERYSET_LAYERS)


def test_querysets_are_analysed_then_chosen_for_then_written() -> None:
    wrong = [
        str(found)
        for found in imports()
        if room(found.importer) == room(found.imported) == "queryset"
        and queryset_level(found.imported) > queryset_level(found.importer)
    ]

    assert not wrong


def engine_level(module: str) -> int:
    part = module.removeprefix("matviews.engine").lstrip(".").partition(".")[0]
    return ENGINE_LAYERS.index(part) if part in ENGINE_LAYERS else -1


def test_the_rooms_of_the_engine_import_those_below_them() -> None:
    wrong = [
        str(found)
        for found in imports()
        if room(found.importer) == room(found.imported) == "engine"
        and found.importer != "matviews.engine"
        and engine_level(found.imported) > engine_level(found.importer)
    ]

    assert not wrong


def test_only_tasks_know_celery() -> None:
    roots = {"celery", "kombu", "django_celery_beat"}
    wrong = [
        str(found)
        for found in imports()
        if found.imported.partition(".")[0] in roots and room(found.importer) != "tasks"
    ]

    assert not wrong


def test_only_databases_know_which_database_it_is() -> None:
    asking = [
        name
        for name, path in MODULES.items()
        if room(name) != "databases" and re.search(r"\.vendor\b|mysql_is_mariadb", path.read_text())
    ]

    assert not asking


def test_the_triggers_name_the_tables_of_the_models() -> None:
    assert Change._meta.db_table == CHANGE_LOG
    assert LogSecret._meta.db_table == LOG_SECRET


def test_importing_the_package_loads_no_models() -> None:
    reached, waiting = set(), ["matviews"]
    at_import: dict[str, list[str]] = {}
    for found in imports():
        if not found.inside_function:
            at_import.setdefault(found.importer, []).append(found.imported)
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += at_import.get(module, [])

    assert "matviews.models" not in reached


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from . import engine", ("matviews.engine", False)),
        ("from .engine import run", ("matviews.engine", False)),
        ("def f():\n    import matviews.engine", ("matviews.engine", True)),
        ("if TYPE_CHECKING:\n    from . import engine", None),
    ],
)
def test_the_reader_of_imports_sees_each_form(
    source: str, expected: tuple[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODULES, "matviews.engine", ROOT)
    path = ROOT / "matviews" / "mixin.py"

    found = [
        (target, inside)
        for node, inside in import_nodes(ast.parse(source))
        for target in targets("matviews.mixin", path, node)
    ]

    assert found == ([expected] if expected else [])
