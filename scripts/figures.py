"""Print the figures of the code's structure: python scripts/figures.py [CHECKOUT].

Counts `matviews/` and `tasks/` without migrations. Compare two checkouts to see what a change did.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_COLUMNS = 100
VENDOR = re.compile(r"\.vendor\b|mysql_is_mariadb")
DATABASE_ROOMS = re.compile(r"/(databases|dialects)/")


def modules(root: Path) -> dict[str, Path]:
    """The modules by dotted name."""
    found = {}
    for package, folder in (("matviews", root / "matviews"), ("matviews.tasks", root / "tasks")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if "migrations" not in parts and parts[0] != "tasks":
                found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The known modules that a module imports, in functions and for types too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            parts = package.split(".") if node.level else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            names |= {member if member in known else base for member in members}
    return (names & known.keys()) - {name}


def largest_cycle(graph: dict[str, set[str]]) -> int:
    """The number of modules in the largest group that import each other, directly or not."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for following in graph[waiting.pop()] - seen:
                seen.add(following)
                waiting.append(following)
        return seen

    reach = {name: reached(name) for name in graph}
    sizes = [sum(name in reach[other] for other in reach[name]) for name in graph]
    return max(sizes, default=0)


def function_lengths(paths: Iterator[Path]) -> list[int]:
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def figures(root: Path) -> dict[str, float]:
    known = modules(root)
    lines = {name: path.read_text().splitlines() for name, path in known.items()}
    functions = function_lengths(iter(known.values()))
    return {
        "modules": len(known),
        "lines": sum(map(len, lines.values())),
        f"modules over {MAX_MODULE_LINES} lines": sum(
            len(each) > MAX_MODULE_LINES for each in lines.values()
        ),
        "functions": len(functions),
        "median lines of a function": median(functions),
        f"functions over {MAX_FUNCTION_LINES} lines": sum(
            length > MAX_FUNCTION_LINES for length in functions
        ),
        f"lines over {MAX_COLUMNS} columns": sum(
            len(line) > MAX_COLUMNS for each in lines.values() for line in each
        ),
        "modules in the largest import cycle": largest_cycle(
            {name: imported(name, path, known) for name, path in known.items()}
        ),
        "lines outside databases/ that ask for a vendor": sum(
            VENDOR.search(line) is not None
            for name, path in known.items()
            if not DATABASE_ROOMS.search(path.as_posix())
            for line in lines[name]
        ),
    }


if __name__ == "__main__":
    for figure, value in figures(Path(*sys.argv[1:2])).items():
        print(f"{value:>8,}  {figure}")
