"""Errors that are no row's fault park no key, however few keys the statement has."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from matviews.databases import errors_of
from matviews.states import RefreshState
from tests.helpers import view_classes
from tests.helpers.database_errors import database_error
from tests.helpers.poison import Poisoned

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

# Time limits, locks and deadlocks, a lost connection, a full disk, a missing right, no memory.
CODES: dict[str, list[Any]] = {
    "postgresql": [
        "57014", "25P03", "55P03", "40P01", "40001", "08006", "57P01", "53100", "53200", "42501",
        "25006", "58030",
    ],
    "mysql": [
        1969, 3024, 1205, 1213, 2006, 2013, 3, 1021, 1024, 1026, 1028, 1041, 1114, 1142, 1197,
        1226, 1290, 1317, 1637, 1705,
    ],
    "sqlite": [
        "SQLITE_INTERRUPT", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR_WRITE",
        "SQLITE_NOMEM", "SQLITE_READONLY", "SQLITE_CANTOPEN",
    ],
}  # fmt: skip


@pytest.fixture
def source() -> Iterator[Poisoned]:
    """A view that is up to date, then some rows of its source change."""
    poisoned = Poisoned()
    with poisoned.ready():
        poisoned.fill(20)
        poisoned.refresh()
        yield poisoned


@pytest.mark.parametrize("code", [*CODES[connection.vendor], MemoryError])
def test_no_key_is_parked(source: Poisoned, code: Any) -> None:
    source.change(1, 2, 3)
    error = code() if code is MemoryError else database_error(code)
    assert not errors_of("default").may_be_data_error(error)

    table = source.View._meta.db_table

    def execute(execute: Any, sql: str, *arguments: Any) -> Any:
        if table in sql:
            raise error
        return execute(sql, *arguments)

    with connection.execute_wrapper(execute):
        refresh = view_classes.run(source.View)

    assert refresh.state == RefreshState.FAILED
    assert not source.parked()
    source.refresh()
    assert source.right() == set(range(1, 21))
