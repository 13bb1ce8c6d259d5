import importlib

import pytest

import matviews
from tests.test_layers import MODULES, room

PROMISED = [
    "Batch", "MaterializedView", "Phase", "Shard", "is_fresh", "mark_dirty", "refresh",
    "untracked", "verify",
]  # fmt: skip
PUBLIC = [
    module
    for module in MODULES
    if room(module) not in {"migrations", "management"}
    and not any(part.startswith("_") for part in module.split("."))
]


def test_the_package_exports_what_it_promises() -> None:
    assert sorted(matviews.__all__) == PROMISED


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_module_lists_names_that_exist(name: str) -> None:
    module = importlib.import_module(name)

    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
