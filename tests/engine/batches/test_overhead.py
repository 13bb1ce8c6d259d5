"""What the engine costs beside the hooks: statements per batch, and nothing that grows."""

import gc
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from celery import current_app
from django.db import connection, models

from benchmarks.hooks import NoHooksMixin
from benchmarks.statements import statements
from matviews import Batch, engine
from matviews.models import PhaseRun, Refresh
from matviews.registry import registry
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers.view_classes import make_view, ready, run

pytestmark = pytest.mark.django_db(transaction=True)

# BEGIN and COMMIT are not counted, but the statement that begins our transactions on MariaDB is:
# it sets limits in the session, and another one takes them back.
PER_BATCH = {"sqlite": 5, "postgresql": 5, "mysql": 7}
PER_IDLE_REFRESH = {"sqlite": 10, "postgresql": 10, "mysql": 14}
WARM = 100  # batches after which nothing may grow any more


@pytest.fixture
def view() -> Iterator[type[Any]]:
    """A view whose hooks do nothing, `view.batches` times."""
    with registry.preserved():
        yield ready(make_view(bases=(NoHooksMixin, models.Model)))


@pytest.fixture
def eager() -> Iterator[None]:
    before = current_app.conf.task_always_eager
    current_app.conf.task_always_eager = True
    yield
    current_app.conf.task_always_eager = before


@pytest.mark.database
def test_a_batch_costs_a_fixed_number_of_statements(view: type[Any]) -> None:
    # given a refresh of ten batches
    view.batches = 10
    refresh = engine.request(view, phases=["insert"])
    # when the statements are counted after each
    with statements() as found:
        after: list[int] = []
        inline.run_to_end(refresh, on_report=lambda _report: after.append(len(found)))
    # then from the second on, each costs the same
    counts = [later - earlier for earlier, later in pairwise(after)]
    assert counts == [PER_BATCH[connection.vendor]] * 9
    assert PER_BATCH["postgresql"] <= 6


@pytest.mark.database
def test_a_refresh_that_has_nothing_to_do_costs_a_fixed_number_of_statements(
    view: type[Any],
) -> None:
    view.batches = 0
    run(view)  # a process compiles its statements once, within a savepoint

    with statements() as found:
        refresh = run(view)

    assert refresh.state == RefreshState.SUCCEEDED
    assert refresh.runs.count() == 3
    assert len(found) == PER_IDLE_REFRESH[connection.vendor]
    assert PER_IDLE_REFRESH["postgresql"] <= 10


class Watched:
    """How deep the stack is at each batch, and how much memory is in use at two of them."""

    def __init__(self, view: type[Any], batches: int) -> None:
        self.depths: list[int] = []
        self.blocks: list[int] = []
        self._measured = (WARM, batches)
        self._do: Callable[..., Batch] = view.do_insert
        view.batches = batches
        view.do_insert = self._watched

    def _watched(self, limit: int, cursor: int | None) -> Batch:
        self.depths.append(stack_depth())
        if len(self.depths) in self._measured:
            gc.collect()
            self.blocks.append(sys.getallocatedblocks())
        return self._do(limit=limit, cursor=cursor)

    def assert_flat(self, batches: int) -> None:
        assert len(self.depths) == batches == PhaseRun.objects.get(phase="insert").batches
        assert len(set(self.depths)) == 1, "batches recurse"
        # One object a batch is the interpreter's cache of attribute names, which ends at 4,096; a
        # report that is kept would be more than ten.
        warm, end = self.blocks
        assert end - warm < 3 * (batches - WARM), "memory grows with the batches"


def stack_depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back:
        frame, depth = frame.f_back, depth + 1
    return depth


# The hooks, and so the statements, are the same everywhere: one database is enough for the count.
many_batches = pytest.mark.parametrize(
    "batches", [500, pytest.param(10_000, marks=pytest.mark.long)]
)
once = pytest.mark.only_on("sqlite", reason="runs on SQLite alone")


@once
@many_batches
def test_batches_in_this_process_neither_recurse_nor_pile_up(view: type[Any], batches: int) -> None:
    watched = Watched(view, batches)

    assert run(view).state == RefreshState.SUCCEEDED

    watched.assert_flat(batches)


@once
@many_batches
@pytest.mark.usefixtures("eager")
def test_eager_tasks_neither_recurse_nor_pile_up(view: type[Any], batches: int) -> None:
    watched = Watched(view, batches)

    view.refresh()

    assert Refresh.objects.get().state == RefreshState.SUCCEEDED
    watched.assert_flat(batches)


@pytest.mark.database
def test_bookkeeping_rows_that_are_all_there_are_found_by_three_statements(
    django_assert_num_queries: Any,
) -> None:
    engine.sync_controls()
    with django_assert_num_queries(3):
        engine.sync_controls()
