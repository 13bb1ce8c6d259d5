"""Others who write in transactions of their own, beside a refresh of an additive view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connection
from hypothesis import note

__all__ = ["WRITERS", "Write", "Writer", "ending", "execute_row_by_row"]

WRITERS = 0 if connection.vendor == "sqlite" else 2  # SQLite has one at a time
Write = tuple[str, tuple[Any, ...]]  # SQL with {owner}, and its parameters


def execute_row_by_row(cursor: Any, sql: str, params: tuple[Any, ...]) -> None:
    """Row by row on MariaDB and MySQL, where a scan would wait for the rows of others."""
    if connection.vendor != "mysql" or sql.startswith("INSERT"):
        cursor.execute(sql, params)
        return
    change, condition = sql.split(" WHERE ")
    *values, part = params
    table = change.removeprefix("DELETE FROM ").removeprefix("UPDATE ")
    table = table.removeprefix("IGNORE ").split()[0]
    cursor.execute(f"SELECT id FROM {table} WHERE {condition}", [part])
    for (pk,) in cursor.fetchall():
        cursor.execute(f"{change} WHERE id = %s", [*values, pk])


class Writer:
    """Somebody who writes to sales of its own, so that nobody waits for anybody."""

    def __init__(self, owner: int, database: Any) -> None:
        self.owner, self.cursor, self.open = owner, database.cursor(), False
        if connection.vendor == "mysql":
            self.cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def write(self, writes: Sequence[Write]) -> None:
        if not self.open:
            self.cursor.execute("BEGIN")
            self.open = True
        for sql, params in writes:
            note(f"writer {self.owner}: {sql} {params}")
            execute_row_by_row(self.cursor, sql.format(owner=self.owner), params)

    def end(self, how: str) -> None:
        if self.open:
            note(f"writer {self.owner}: {how}")
            self.cursor.execute(how)
            self.open = False


@contextmanager
def ending(writers: dict[int, list[tuple[Writer, str]]]) -> Iterator[None]:
    """Transactions end before a statement on the sums or the value log, by its number."""
    number = 0

    def count(execute: Any, sql: str, *arguments: Any) -> Any:
        nonlocal number
        if "matviews_sums_" in sql or "matviews_values_" in sql:
            number += 1
            for writer, how in writers.pop(number, ()):
                writer.end(how)
        return execute(sql, *arguments)

    with connection.execute_wrapper(count):
        yield
