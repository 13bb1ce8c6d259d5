"""Counting the statements that reach the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

TRANSACTION = ("BEGIN", "COMMIT", "ROLLBACK", "START TRANSACTION")


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that run inside, in order, without those that begin and end transactions."""
    found: list[str] = []

    def note(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if sql not in TRANSACTION:
            found.append(sql)
        return execute(sql, *arguments)

    with connection.execute_wrapper(note):
        yield found
