"""Drivers of PostgreSQL: psycopg calls the code of an error `sqlstate`, psycopg 2 `pgcode`."""

import pytest
from django.db import OperationalError, ProgrammingError

from matviews import engine
from matviews.databases import Failure, errors_of, triggers_of
from matviews.queryset import is_missing

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db,
    pytest.mark.only_on("postgres", reason="PostgreSQL's own"),
    pytest.mark.parametrize("name", ["sqlstate", "pgcode"]),
]


def error(kind: type[Exception], name: str, state: str) -> Exception:
    raised = kind("as the database says it")
    raised.__cause__ = type("OfTheDriver", (Exception,), {name: state})()
    return raised


def test_a_time_limit_calls_for_a_smaller_batch(name: str) -> None:
    assert (
        errors_of("default").failure(error(OperationalError, name, "57014"))
        is Failure.RETRY_SMALLER
    )


def test_a_table_that_somebody_holds_is_waited_for(name: str) -> None:
    held = error(OperationalError, name, "55P03")
    assert isinstance(held, OperationalError)
    assert triggers_of(engine.alias()).is_locked(held)


def test_a_missing_table_is_known(name: str) -> None:
    assert is_missing(error(ProgrammingError, name, "42P01"), engine.alias())


@pytest.mark.parametrize(
    ("state", "is_data_error"),
    [
        ("22012", True),  # division by zero
        ("23505", True),  # unique
        ("P0001", True),  # RAISE
        ("40P01", False),  # deadlock
        ("57014", False),  # time limit
        ("53100", False),  # disk full
        ("42501", False),  # missing right
        ("42601", False),  # syntax
    ],
)
def test_only_what_rows_are_at_fault_for_can_park_keys(
    name: str, state: str, *, is_data_error: bool
) -> None:
    raised = error(OperationalError, name, state)
    assert errors_of("default").is_data_error(raised) is is_data_error
    assert not errors_of("default").is_data_error(MemoryError())
