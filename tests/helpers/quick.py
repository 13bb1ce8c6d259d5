"""Which tests `make quick` runs: those that start no process and commit nothing.

Nobody lists them. A test starts processes where its function, one of its fixtures, or a helper that
they name leads to a module that can; one that does it by another way fails in a quick run.
"""

import functools
import inspect
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any

import pytest

STARTERS = frozenset({"subprocess", "multiprocessing", "playwright"})  # packages
CALLS = (os.fork, os.system)
EVENTS = frozenset(
    {"subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system"}
)
COMMITTING = frozenset({"transactional_db", "live_server"})
OURS = "tests"
HELPERS = "tests.helpers"


def is_quick(item: pytest.Item) -> bool:
    return not commits(item) and not starts_process(item)


def commits(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    marker = item.get_closest_marker("django_db")
    is_marked = marker is not None and marker.kwargs.get("transaction", False)
    return is_marked or not COMMITTING.isdisjoint(item.fixturenames)


def starts_process(item: pytest.Item) -> bool:
    """Whether a test's code, as far as it belongs to our tests, names what starts a process."""
    assert isinstance(item, pytest.Function)
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(each.func for several in fixtures for each in several)]
    return any(leads_to_process(each) for each in functions)


@functools.cache
def leads_to_process(start: object) -> bool:
    found, left = set(), [start]
    while left:
        each = left.pop()
        if id(each) in found:
            continue
        found.add(id(each))
        if _package(each) in STARTERS or each in CALLS:
            return True
        left += _named_by(each)
    return False


def _package(each: Any) -> str:
    """The one that a name, a module, a function or a class belongs to."""
    if not isinstance(each, str):
        each = each.__name__ if isinstance(each, ModuleType) else getattr(each, "__module__", None)
    return str(each).partition(".")[0]


def _named_by(each: Any) -> Iterator[object]:
    """What the code of a function, or of a class's methods, names."""
    each = inspect.unwrap(each) if callable(each) else each
    if _package(each) != OURS:
        return
    if inspect.isclass(each):
        yield from each.__mro__[1:]
        for member in vars(each).values():
            yield getattr(member, "fget", None) or getattr(member, "__func__", member)
        return
    function = getattr(each, "__func__", each)
    if inspect.isfunction(function):
        for names in _names(function.__code__):
            yield from _resolve(names, function.__globals__)


def _names(code: CodeType) -> Iterator[tuple[str, ...]]:
    yield code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _resolve(names: tuple[str, ...], where: dict[str, Any]) -> Iterator[object]:
    """The names, and what they stand for: globals, and parts of modules.

    A name may be of what is imported within a function.
    """
    modules = []
    for name in names:
        value = where.get(name)
        own = f"{HELPERS}.{name}"
        if (
            HELPERS in names and name.isidentifier() and find_spec(own)
        ):  # imported within a function
            value = import_module(own)
        yield from (name, value)
        if value is os or (isinstance(value, ModuleType) and _package(value) == OURS):
            modules.append(value)
    for module in modules:
        yield from (vars(module)[name] for name in names if name in vars(module))


def forbid_processes() -> None:
    """From now on, a test of this process that starts another one fails."""
    sys.addaudithook(refuse)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS:
        pytest.fail(f"a quick test starts a process: {event} {arguments[:2]}")
