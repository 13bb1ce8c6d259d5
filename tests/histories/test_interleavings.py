"""Writers that commit at any moment of a refresh: every order of their steps and its own.

Two writers have transactions open on connections of their own. A refresh stops before each of its
steps, and whoever's turn it is goes on. Whatever the order, the refresh after it finds the view's
rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import combinations_with_replacement, product
from typing import Any, NamedTuple

import pytest
from django.db import connection

from matviews import changes, engine
from matviews.changes import change_log
from matviews.changes.log_spans import Covering
from matviews.engine.batches import batch, checkpoints, derived, step
from matviews.engine.tracking import dirty_keys
from matviews.models import Change, ViewChange, ViewShard
from tests.helpers.engine import in_another_connection, shard_of, without_sqlite
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import RegionTotal, SlotRegion
from tests.shapes.oracle import differences
from tests.shapes.tracking import newest_only

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    without_sqlite,  # it has one writer at a time
]

SLOTS = ("start", "move", "take", "resolve", "apply", "end")
FEW_SLOTS = ("start", "take", "apply", "end")


class Writer(NamedTuple):
    """What a writer does in one transaction, and whether it takes that back in the end."""

    sql: str
    takes_back: bool = False
    repeatable: bool = False


MOVE_ORDER = "UPDATE shapes_order SET customer_id = 2 WHERE id = 1"
MOVE_CUSTOMER = "UPDATE shapes_customer SET region_id = 2 WHERE id = 1"
PAY = "UPDATE shapes_order SET price = price + 1 WHERE id = 3"
CLOSE = "DELETE FROM shapes_order WHERE id = 3"
RENAME = "UPDATE shapes_region SET name = '2' WHERE id = 1"
LEAVE = "UPDATE shapes_order SET customer_id = NULL WHERE id = 1"
PAIRS = {
    "a row and the row that it hangs on": (Writer(MOVE_ORDER), Writer(MOVE_CUSTOMER)),
    "a row, and one that is taken back": (
        Writer(MOVE_ORDER),
        Writer(MOVE_CUSTOMER, takes_back=True),
    ),
    "rows of several keys": (Writer(PAY, repeatable=True), Writer(MOVE_CUSTOMER, repeatable=True)),
    "two rows of one key": (Writer(CLOSE), Writer(MOVE_ORDER)),
}
# Of a view whose key is the slot of the order and the name of the customer's region.
SPREAD = {
    "two links of a key": (Writer(MOVE_ORDER), Writer(MOVE_CUSTOMER)),
    "two links of a key, of which one is gone": (Writer(LEAVE), Writer(MOVE_CUSTOMER)),
    "two links of one part": (Writer(RENAME), Writer(MOVE_CUSTOMER, repeatable=True)),
    "two links of a key, and one is taken back": (
        Writer(LEAVE, takes_back=True),
        Writer(MOVE_CUSTOMER),
    ),
}


@pytest.fixture(autouse=True)
def _shop(tracked: None) -> None:
    for number in (1, 2):
        Region.objects.create(pk=number, name=str(number))
    Product.objects.create(sku="a", name="a", price=2)


def begin(view: type[Any] = RegionTotal) -> None:
    """Three customers of two regions, with an order each, and a view that knows them."""
    Order.objects.all().delete()
    Customer.objects.all().delete()
    for number in (1, 2):
        Region.objects.filter(pk=number).update(name=str(number))
    for number, region in ((1, 1), (2, 2), (3, 1)):
        Customer.objects.create(pk=number, name=str(number), region_id=region)
        Order.objects.create(
            pk=number, customer_id=number, product_id="a", slot=number, price=1, paid=False
        )
    run(view)


class Schedule:
    """Steps of writers, each at the slot of the refresh before which it is done.

    Args:
        slots: names of the slots, in their order.
        writers: the writers.
        places: of each writer, the slots of its write and of its end.
        connections: of each writer, its own.
    """

    def __init__(
        self,
        slots: Sequence[str],
        writers: Sequence[Writer],
        places: Sequence[tuple[int, int]],
        connections: Sequence[Any],
    ) -> None:
        self.slots, self.reached, self.connections = slots, -1, connections
        self.steps: list[tuple[int, int, Callable[[], None]]] = []
        for number, (writer, (write, end)) in enumerate(zip(writers, places, strict=True)):
            self.steps.append((write, number, lambda n=number, w=writer: self._write(n, w)))  # type: ignore[misc]
            self.steps.append((end, number, lambda n=number, w=writer: self._end(n, w)))  # type: ignore[misc]

    def _write(self, number: int, writer: Writer) -> None:
        other = self.connections[number]
        other.set_autocommit(False)
        with other.cursor() as cursor:
            if writer.repeatable and connection.vendor == "postgresql":
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(writer.sql)

    def _end(self, number: int, writer: Writer) -> None:
        other = self.connections[number]
        if writer.takes_back:
            other.rollback()
        else:
            other.commit()

    def reach(self, slot: str) -> None:
        """Do all that comes before this slot."""
        self.reached = max(self.reached, self.slots.index(slot) if slot in self.slots else -1)
        due = sorted(
            (each for each in self.steps if each[0] <= self.reached), key=lambda each: each[:2]
        )
        self.steps = [each for each in self.steps if each[0] > self.reached]
        for _slot, _number, step_of_writer in due:
            step_of_writer()


@contextmanager
def stopping(schedule: Schedule) -> Iterator[None]:
    """A refresh comes to the slots of a schedule."""

    def before(slot: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **options: Any) -> Any:
            schedule.reach(slot)
            return work(*arguments, **options)

        return stopped

    with pytest.MonkeyPatch.context() as patch:
        for module, name, slot in (
            (batch, "move_log", "move"),
            (batch, "await_changes", "move"),
            (changes, "drain_queue", "take"),
            (dirty_keys, "resolve", "resolve"),
            (derived, "_do_dirty", "apply"),
            (batch, "save_changes", "save"),
        ):
            patch.setattr(module, name, before(slot, getattr(module, name)))
        yield


def every_schedule(slots: Sequence[str], writers: Sequence[Writer]) -> Iterator[Schedule]:
    each = list(combinations_with_replacement(range(len(slots)), 2))
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connection.copy())) for _ in writers]
        for places in product(each, repeat=len(writers)):
            yield Schedule(slots, writers, places, connections)


def hold(slots: Sequence[str], writers: Sequence[Writer], view: type[Any] = RegionTotal) -> int:
    """Try every schedule; how many there were.

    Raises:
        AssertionError: after one of them, a refresh left a row that is wrong.
    """
    count = 0
    for schedule in every_schedule(slots, writers):
        count += 1
        begin(view)
        with stopping(schedule):
            schedule.reach("start")
            run(view)
            schedule.reach("end")
        run(view)
        assert differences(view) == []
        assert view.is_fresh()
    return count


def test_no_order_of_commits_loses_a_key() -> None:
    assert hold(FEW_SLOTS, PAIRS["a row and the row that it hangs on"]) == 100


@pytest.mark.long
@pytest.mark.parametrize("name", list(PAIRS))
def test_no_order_of_commits_loses_a_key_at_any_step(name: str) -> None:
    assert hold(SLOTS, PAIRS[name]) == 441


def test_no_order_of_commits_loses_a_key_of_two_tables() -> None:
    assert hold(FEW_SLOTS, SPREAD["two links of a key"], SlotRegion) == 100


@pytest.mark.long
@pytest.mark.parametrize("name", list(SPREAD))
def test_no_order_of_commits_loses_a_key_of_two_tables_at_any_step(name: str) -> None:
    assert hold(SLOTS, SPREAD[name], SlotRegion) == 441


def test_no_order_of_three_commits_loses_a_key() -> None:
    writers = (Writer(MOVE_ORDER), Writer(MOVE_CUSTOMER), Writer(RENAME))
    assert hold(("take", "end"), writers, SlotRegion) == 27


@pytest.mark.long
@pytest.mark.parametrize(
    ("slots", "writers", "schedules"),
    [
        (("take", "apply", "end"), (MOVE_ORDER, MOVE_CUSTOMER, RENAME), 216),
        (("take", "end"), (MOVE_ORDER, MOVE_CUSTOMER, RENAME, CLOSE), 81),
    ],
)
def test_no_order_of_the_commits_of_several_loses_a_key(
    slots: Sequence[str], writers: Sequence[str], schedules: int
) -> None:
    assert hold(slots, [Writer(sql) for sql in writers], SlotRegion) == schedules


BUILD_SLOTS = ("start", "take", "save", "end")


def hold_while_built(monkeypatch: pytest.MonkeyPatch, moved: int) -> int:
    """Another process moves the log, by so many entries, at any moment of a view's first build.

    The view's queue says that all its keys are dirty, as for each view that was never built.
    """
    for name, value in (
        ("FEW_ENTRIES", 0), ("MAX_MOVED_ENTRIES", moved), ("MAX_DISTINCT_CHANGES", 50_000),
    ):  # fmt: skip
        monkeypatch.setattr(change_log, name, value)
    count = 0
    for slot in range(len(BUILD_SLOTS)):
        for schedule in every_schedule(BUILD_SLOTS, [Writer(MOVE_ORDER)]):
            count += 1
            begin()
            forget(RegionTotal)
            schedule.steps.append((slot, 1, lambda: in_another_connection(engine.move_log).join()))
            with stopping(schedule):
                schedule.reach("start")
                run(RegionTotal)
                schedule.reach("end")
            run(RegionTotal)
            assert differences(RegionTotal) == []
    return count


def forget(view: type[Any]) -> None:
    """The view is as before its first build, when its tables are tracked already."""
    view._base_manager.all().delete()
    shard = shard_of(view)
    ViewShard.objects.filter(pk=shard.pk).update(checkpoints={})
    changes.enqueue({shard.view_id}, "changes were not logged before")


@pytest.mark.parametrize("moved", [1, pytest.param(5_000, marks=pytest.mark.long)])
def test_no_order_of_commits_loses_a_change_during_the_first_build(
    monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    assert hold_while_built(monkeypatch, moved) == 40


class TestSeededFaults:
    """What such designs would lose is found."""

    def test_a_watermark_on_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transaction that commits late has an id below the mark."""
        copy, mark = change_log._copy, 0

        def above_the_mark(found: Sequence[int], *_without: Any) -> None:
            nonlocal mark
            copy([pk for pk in found if pk > mark])
            mark = max([mark, *found])

        monkeypatch.setattr(change_log, "_copy", above_the_mark)
        monkeypatch.setattr(changes, "move_few", lambda: (False, False))

        with pytest.raises(AssertionError):
            hold(FEW_SLOTS, PAIRS["rows of several keys"])

    def test_leaving_out_changes_for_a_view_that_is_being_built(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch that is draining the queue may have computed its rows already."""

        def lock_nothing() -> dict[int, Covering]:
            entries = ViewChange.objects.filter(table="", count=0)
            found = entries.values_list("view", "pk", "logged_at")
            return {view: Covering(pk, logged_at) for view, pk, logged_at in found}

        monkeypatch.setattr(change_log, "lock_covering", lock_nothing)

        with pytest.raises(AssertionError):
            hold_while_built(monkeypatch, 5_000)

    def test_computing_before_taking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What commits in between is taken without having been computed."""
        end = checkpoints.save_checkpoint

        def take_at_the_end(work: Any, phase_run: Any) -> None:
            end(work, phase_run)
            Change.objects.all().delete()
            ViewChange.objects.all().delete()

        monkeypatch.setattr(step, "save_checkpoint", take_at_the_end)

        with pytest.raises(AssertionError):
            hold(FEW_SLOTS, PAIRS["a row and the row that it hangs on"])

    def test_the_new_link_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody would name the key that a row has left."""
        taken = changes.drain_queue
        monkeypatch.setattr(changes, "drain_queue", lambda view: newest_only(taken(view)))

        with pytest.raises(AssertionError):
            hold(FEW_SLOTS, PAIRS["a row and the row that it hangs on"])

    def test_the_source_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody would name the region that an order had, with the order's slot."""
        monkeypatch.setattr("matviews.queryset.sql.lookups._in_view", lambda *_arguments: set())

        with pytest.raises(AssertionError):
            hold(FEW_SLOTS, SPREAD["two links of a key"], SlotRegion)


def test_the_engine_reads_only_what_is_committed() -> None:
    """Else none of the above would hold."""
    begin()
    other: Any = connection.copy()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute(MOVE_ORDER)
    run(RegionTotal)
    engine.move_log()
    other.rollback()
    other.close()

    assert differences(RegionTotal) == []
