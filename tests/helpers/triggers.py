"""The triggers of the project's views: worked out once, and left from one test to the next.

To work out what they need takes longer than to create them, and to create them longer than a test.
"""

from typing import Any, NamedTuple
from unittest import mock

from django.db import connections, transaction

from matviews import changes
from matviews.changes import triggers
from matviews.changes.tracking_spec import mistyped, tracked_tables
from matviews.models import LogSecret, TrackedTable, ViewChange, ViewSums
from matviews.registry import registry
from tests.helpers import database

# What `changes.install` makes in an emptied database.
ROWS = (LogSecret, TrackedTable, ViewChange, ViewSums)

CATALOGS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": (
        "SELECT t.oid::bigint, t.tgname, t.tgenabled, p.prosrc, p.proowner::bigint, p.proacl::text "
        "FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal"
    ),
    "mysql": (
        "SELECT trigger_name, event_object_table, action_statement, definer, created "
        "FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
    ),
}


class _Known(NamedTuple):
    views: list[type[Any]]
    wanted: Any
    mistyped: dict[str, str]


class _Left(NamedTuple):
    """The triggers of an earlier test, and the rows that were made with them."""

    present: list[Any]
    inserts: list[tuple[str, Any]]


_known: dict[str, _Known] = {}
_left: dict[str, _Left] = {}


def _views() -> list[type[Any]]:
    return [each.model for each in registry]


def remember(alias: str) -> None:
    """Find out what the views that are there now want."""
    _known[alias] = _Known(_views(), tracked_tables(alias), mistyped(alias))


def install(alias: str) -> None:
    """`changes.install`, in an emptied database, of the views that are there."""
    known = _known[alias]
    if _views() != known.views:
        remove(alias)
        changes.install(alias)
    elif alias in _left and _left[alias].present == _present(alias):
        with transaction.atomic(using=alias):
            database.execute(alias, _left[alias].inserts)
    else:
        remove(alias)
        with (
            mock.patch.object(triggers, "tracked_tables", return_value=known.wanted),
            mock.patch.object(triggers, "mistyped", return_value=known.mistyped),
        ):
            changes.install(alias)
        _left[alias] = _Left(_present(alias), list(database.insert_statements(ROWS, alias)))


def are_left(alias: str) -> bool:
    """Whether there are triggers that `remove` removes."""
    return alias in _left


def leave(alias: str) -> None:
    """End of a test with triggers: the next one may need them too."""
    if alias not in _left:
        changes.remove(alias)


def remove(alias: str) -> None:
    """Remove what an earlier test has left."""
    if _left.pop(alias, None):
        changes.remove(alias)


def _present(alias: str) -> list[Any]:
    """All triggers, with what each does."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(CATALOGS[connection.vendor])
        return sorted(cursor.fetchall())
