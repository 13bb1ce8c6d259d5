"""Which tests run on a database, and with which files a run begins.

A test that is marked `database` can run on each of them, or on those that `only_on` names; the
others are about none, and run on SQLite. `make test` deals those that several can run: one of these
runs it, and the cases of a test go to all in turn. Every other run has all that its database can.
"""

import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence

import pytest

DATABASES = ("sqlite", "postgres", "mariadb")

# Begun first, so that none of them is what the others wait for at the end.
LONGEST_FILES = (
    "changes/test_tracking.py",
    "project/test_live.py",
    "scenarios/test_workers.py",
    "admin/test_browser.py",
    "project/test_docs.py",
    "queryset/strategy/test_choose.py",
    "engine/parking/test_splitting.py",
    "queryset/test_shapes.py",
    "management/test_command_process.py",
    "scenarios/test_kills.py",
    "tasks/test_beat.py",
    "scenarios/test_joining_processes.py",
    "histories/test_interleavings.py",
    "histories/test_tracking.py",
    "queryset/test_hostile_schemas.py",
    "admin/test_list_browser.py",
    "project/test_example_project.py",
    "queryset/sql/test_date_ranges.py",
)


def databases_of(item: pytest.Item) -> Sequence[str]:
    """The databases that can run a test.

    Raises:
        pytest.UsageError: there is none.
    """
    found: Sequence[str] = DATABASES if item.get_closest_marker("database") else DATABASES[:1]
    if item.get_closest_marker("finds_fault") and not item.config.getoption("long"):
        found = DATABASES[:1]  # it is the random test that is tested, not the database
    for marker in item.iter_markers("only_on"):
        found = [each for each in found if each in marker.args]
    if not found:
        raise pytest.UsageError(f"{item.nodeid} runs nowhere: mark it `database`, or no `only_on`.")
    return found


def share(items: Collection[pytest.Item], database: str, among: Sequence[str]) -> set[pytest.Item]:
    """Those of the tests that a database runs if each runs on one.

    Args:
        items: the tests.
        database: one of `among`.
        among: the databases that run at the same time.
    """
    functions = defaultdict[str, list[pytest.Item]](list)
    for item in sorted(items, key=lambda item: item.nodeid):
        functions[item.nodeid.partition("[")[0]].append(item)
    return {
        item
        for name, cases in functions.items()
        for turn, item in enumerate(cases, zlib.crc32(name.encode()))
        if (able := [each for each in among if each in databases_of(item)])
        and able[turn % len(able)] == database
    }


def place(file: str) -> int:
    """Where a file of `tests/` stands in the order; all that are not among the longest, last."""
    return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)
