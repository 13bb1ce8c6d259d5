"""Workers that freeze themselves, once, before a statement of a transaction that a file names."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

__all__ = ["VARIABLE", "Freezer", "install"]

VARIABLE = "MATVIEWS_TEST_FREEZE"


class Freezer:
    """The file through which a test tells its workers where to freeze; the first one there does.

    Args:
        path: of the file, as in the environment of the workers.
    """

    def __init__(self, path: Path) -> None:
        self._orders, self._taken = path, path.with_suffix(".taken")

    def order(self, function: str, statement: int) -> None:
        """Have a worker freeze before a statement of a transaction in a function; COMMIT counts."""
        self._taken.unlink(missing_ok=True)
        draft = self._orders.with_suffix(".draft")
        draft.write_text(f"{function} {statement}")
        draft.rename(self._orders)

    def withdraw(self) -> None:
        """Have no worker freeze from now on."""
        self._orders.unlink(missing_ok=True)

    @property
    def frozen(self) -> int | None:
        """The process that has frozen itself by the last order."""
        text = self._taken.read_text() if self._taken.exists() else ""
        return int(text) if text.isdecimal() else None

    def given(self) -> tuple[str, int] | None:
        """The order in force."""
        try:
            function, _space, statement = self._orders.read_text().rpartition(" ")
        except FileNotFoundError:
            return None
        return function, int(statement)

    def take(self) -> bool:
        """Take the order; false if another process was faster."""
        try:
            self._orders.rename(self._taken)
        except FileNotFoundError:
            return False
        self._taken.write_text(str(os.getpid()))
        return True


def install(freezer: Freezer) -> None:
    """Follow the orders of a test in this process."""
    counter = _Counter(freezer)

    def before(execute: Callable[..., Any], *arguments: Any) -> Any:
        counter.pass_statement(arguments[-1]["connection"])
        return execute(*arguments)

    def follow(*, connection: BaseDatabaseWrapper, **_kwargs: Any) -> None:
        if before not in connection.execute_wrappers:
            connection.execute_wrappers.append(before)

    connection_created.connect(follow, weak=False)
    commit = BaseDatabaseWrapper.commit

    def commit_after(database: BaseDatabaseWrapper) -> None:
        counter.pass_statement(database)
        commit(database)

    BaseDatabaseWrapper.commit = commit_after  # type: ignore[method-assign,assignment]


class _Counter:
    """The statements of the transactions within the function that is ordered."""

    def __init__(self, freezer: Freezer) -> None:
        self._freezer, self._count = freezer, 0
        self._frame: FrameType | None = None

    def pass_statement(self, database: Any) -> None:
        order = self._freezer.given()
        frame = _frame_of(order[0]) if order and database.in_atomic_block else None
        if order is None or frame is None:
            return
        self._count = self._count + 1 if frame is self._frame else 1
        self._frame = frame
        if self._count == order[1] and self._freezer.take():
            os.kill(os.getpid(), signal.SIGSTOP)


def _frame_of(function: str) -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame and frame.f_code.co_qualname != function:
        frame = frame.f_back
    return frame
