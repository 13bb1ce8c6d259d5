"""Where private parts of Django are used: each use has its place here, and its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_layers import MODULES

# What Django does not document, or documents as internal.
PRIVATE_MODULES = (
    "django.db.models.sql",
    "django.db.models.query",
    "django.db.models.lookups",
    "django.db.models.functions.datetime",
    "django.db.migrations.executor",
    "django.db.migrations.loader",
    "django.db.backends",
)
PRIVATE_NAMES = {"Col", "Ref", "ResolvedOuterRef"}
PRIVATE_ATTRIBUTES = {
    "alias_map", "alias_refcount", "annotation_select", "collapse_group_by", "combinator",
    "combined_queries", "get_compiler", "group_by", "quote_name_unless_alias", "values_select",
    "where", "_iterable_class", "_proxy____cast",
}  # fmt: skip

ALLOWED = {
    "matviews.queryset.analysis": "looks inside the queries of `source()`",
    "matviews.queryset.sql": "restricts these queries to windows and keys",
    "matviews.databases": "compiles the engine's queries once, and updates rows that nobody holds",
    "matviews.changes.followed": "compiles a part of the statement that looks for changes",
    "matviews.tasks.hints": "receives `connection_created`, which Django documents",
    "matviews.queryset.unmigrated": "names the migrations that have yet to run",
}


def uses(path: Path) -> Iterator[str]:
    """The private parts that a module names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").startswith(PRIVATE_MODULES):
                yield node.module or ""
            yield from (alias.name for alias in node.names if alias.name in PRIVATE_NAMES)
        elif isinstance(node, ast.Attribute) and node.attr in PRIVATE_ATTRIBUTES:
            yield node.attr


def is_allowed(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in ALLOWED)


def test_private_parts_of_django_are_used_where_they_may_be() -> None:
    found = {module: set(uses(path)) for module, path in MODULES.items()}
    wrong = {module: names for module, names in found.items() if names and not is_allowed(module)}

    assert not wrong


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_place_that_needs_none_is_taken_off_the_list(room: str) -> None:
    assert any(
        set(uses(path))
        for module, path in MODULES.items()
        if module == room or module.startswith(f"{room}.")
    )
