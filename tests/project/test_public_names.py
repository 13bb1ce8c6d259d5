import ast
import importlib

import pytest

import matviews
from tests.project.test_layers import MODULES, room

PROMISED = [
    "Batch", "KeyFailed", "MaterializedView", "Phase", "Shard", "is_fresh", "mark_dirty",
    "parked", "refresh", "status", "untracked", "verify",
]  # fmt: skip
PUBLIC = [
    module
    for module, path in MODULES.items()
    if room(module) not in {"migrations", "management"}
    and not any(part.startswith("_") for part in module.split("."))
    and len(ast.parse(path.read_text()).body) > 1  # a package may have nothing but its docstring
]


def test_the_package_exports_what_it_promises() -> None:
    assert sorted(matviews.__all__) == PROMISED


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_module_lists_names_that_exist(name: str) -> None:
    module = importlib.import_module(name)

    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
