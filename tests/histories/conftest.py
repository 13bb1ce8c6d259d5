import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import pytest
from django.db import connection

from matviews.changes import change_log
from matviews.models import Change
from matviews.registry import registry
from tests.shapes.models import Shape
from tests.shapes.query import Query
from tests.shapes.tracking import everything_tracked

SECONDS = 2.0  # that a random test of an ordinary run goes on
FEWEST = 5  # examples that it runs, however long they take
PATIENCE = 60.0  # seconds until it ends, even if what it waits for has not happened


class RunRandom(Protocol):
    def __call__(
        self, run: Callable[[int], object], *, long: int, until: Callable[[], object] = ...
    ) -> int: ...


@pytest.fixture
def run_random(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> RunRandom:
    """Call `run` with numbers of random examples until time is up; with --long, once with `long`.

    On a busy machine there is time for few, in which little may happen: it continues `until` enough
    has happened or `PATIENCE` runs out. Returns the number of examples in all.
    """

    def run_some(
        run: Callable[[int], object], *, long: int, until: Callable[[], object] = lambda: True
    ) -> int:
        if request.config.getoption("--long"):
            run(long)
            return long
        begun, count, examples = time.monotonic(), 0, FEWEST
        while examples:
            run(examples)
            count += examples
            elapsed = time.monotonic() - begun
            examples = int(0.8 * (SECONDS - elapsed) * count / elapsed) if elapsed < SECONDS else 0
        while not until() and time.monotonic() - begun < PATIENCE:
            run(2 * FEWEST)
            count += 2 * FEWEST
        with capsys.disabled():
            print(f"\n{count} histories of {request.node.name}")
        return count

    return run_some


@pytest.fixture
def tracked_shapes(transactional_db: None) -> Iterator[None]:
    """Triggers log the changes of all shapes; at the end, each has its first query again."""
    with everything_tracked(), registry.preserved():
        yield
    for view in registry:
        if issubclass(view.model, Shape):
            view.model.query = Query()


@pytest.fixture(autouse=True)
def _beside_long_transactions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The floor of the log rises with each move; a snapshot and a writer are older than the test.

    Only PostgreSQL has a floor.
    """
    if connection.vendor != "postgresql" or not request.node.get_closest_marker("django_db"):
        yield
        return
    request.getfixturevalue("transactional_db")
    monkeypatch.setattr(change_log, "FLOOR_EVERY", 1)
    with closing(connection.copy()) as reader, closing(connection.copy()) as writer:
        for other in (reader, writer):
            other.set_autocommit(False)
            with other.cursor() as cursor:
                if other is reader:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    cursor.execute(f"SELECT 1 FROM {Change._meta.db_table}")
                else:
                    cursor.execute(
                        f"INSERT INTO {Change._meta.db_table} (\"table\") VALUES ('elsewhere')"
                    )
        yield
        writer.rollback()
        reader.rollback()


@pytest.fixture(autouse=True)
def _one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the phases can share an evaluation, they do, however quick it is."""
    monkeypatch.setattr("matviews.engine.work.costs.TEMPORARY_TABLE_SECONDS", 0.0)
