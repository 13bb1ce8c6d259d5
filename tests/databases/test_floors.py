"""Reading above the floor finds what reading everything finds, in every snapshot and order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import permutations
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine
from matviews.changes.log_entries import is_logged
from matviews.databases import floors_of
from matviews.databases.postgresql.floors import PostgreSQLFloors
from matviews.engine.work.loader import load_works
from matviews.models import Change, LogFloor, RefreshSchedule, ViewChange, ViewControl
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Region
from tests.shapes.models.grouped import CustomerTotal

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgres", reason="PostgreSQL only has floors"),
]

VIEWS = (1, 2)
LOG, QUEUE = Change._meta.db_table, ViewChange._meta.db_table
FLOOR = LogFloor._meta.db_table


class Session:
    """A connection of its own, in a transaction from its first step to its last.

    Args:
        repeatable: whether it sees one snapshot, of its first step.
    """

    def __init__(self, *, repeatable: bool = False) -> None:
        self.connection: Any = connection.copy()
        self.connection.set_autocommit(False)
        if repeatable:
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    def close(self) -> None:
        self.connection.rollback()
        self.connection.close()

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def write(self) -> None:
        """Entries of the log and of both queues, one in a savepoint."""
        self.run(f"INSERT INTO {LOG} (\"table\") VALUES ('a')")
        self.run("SAVEPOINT inner_part")
        for view in VIEWS:
            self.run(f"INSERT INTO {QUEUE} (view_id, \"table\") VALUES ({view}, 'a')")
        self.run("RELEASE SAVEPOINT inner_part")

    def delete(self) -> None:
        """What it sees of the log and of the first queue, unless another is deleting it."""
        for table, condition in ((LOG, ""), (QUEUE, " WHERE view_id = 1")):
            some = f"SELECT id FROM {table}{condition} FOR UPDATE SKIP LOCKED"
            self.run(f"DELETE FROM {table} WHERE id IN ({some})")

    def look(self) -> None:
        """Compare what is above the floor with everything, in one snapshot."""
        floors = floors_of("default")
        pairs = [
            (f"SELECT id FROM {floors.log()} entry", f"SELECT id FROM {LOG}"),
            (f"SELECT id FROM {floors.queues(VIEWS)} entry", f"SELECT id FROM {QUEUE}"),
            *(
                (f"SELECT id FROM {floors.queue(f'{view}')} entry", f"{ALL} = {view}")
                for view in VIEWS
            ),
            (
                f"SELECT DISTINCT view_id FROM {floors.queued()} entry",
                f"SELECT DISTINCT view_id FROM {QUEUE}",
            ),
        ]
        columns = ", ".join(f"ARRAY({query} ORDER BY 1)" for pair in pairs for query in pair)
        [found] = self.run(f"SELECT {columns}")
        assert found[::2] == found[1::2]


ALL = f"SELECT id FROM {QUEUE} WHERE view_id"
Steps = list[tuple[str, Callable[[], object]]]


@contextmanager
def cast(
    *, raised_after: Callable[[int], bool], takes_back: bool
) -> Iterator[Callable[[Sequence[int]], None]]:
    """Two writers and somebody who deletes, in an order of their steps.

    After each step they all look, and so do readers with snapshots, old and new.

    Args:
        raised_after: whether the floor rises after a step, by its number.
        takes_back: whether the second writer rolls back.
    """
    with ExitStack() as stack:

        def session(**options: Any) -> Session:
            return stack.enter_context(closing(Session(**options)))

        early, late, mover = session(), session(), session()
        end = late.connection.rollback if takes_back else late.connection.commit
        lives: list[list[Callable[[], object]]] = [
            [early.write, early.connection.commit],
            [late.write, end],
            [mover.delete, mover.connection.commit],
        ]
        readers = [session(repeatable=True)]

        def play(order: Sequence[int]) -> None:
            now = Session()
            stack.enter_context(closing(now))
            for number, who in enumerate(order):
                lives[who].pop(0)()
                if raised_after(number):
                    changes.raise_floor()
                readers.append(session(repeatable=True))
                for reader in (readers[0], readers[-1], early, late, mover, now):
                    reader.look()
                now.connection.rollback()

        yield play


def orders() -> list[tuple[int, ...]]:
    """All orders of the two steps of three sessions."""
    return sorted(set(permutations((0, 0, 1, 1, 2, 2))))


def hold(raised_after: Callable[[int], bool], *, takes_back: bool = False, every: int = 1) -> None:
    for order in orders()[::every]:
        for table in (LOG, QUEUE, FLOOR):
            with connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM {table}")
        Session.write(session := Session())
        session.connection.commit()
        session.close()
        with cast(raised_after=raised_after, takes_back=takes_back) as play:
            play(order)


@pytest.mark.parametrize("step", [None, 0, 1, 2, 3, 4])
def test_no_order_of_steps_hides_an_entry_from_anybody(
    step: int | None, request: pytest.FixtureRequest
) -> None:
    """The floor rises after one of the steps, or after each; all 90 orders with --long."""
    every = 1 if request.config.getoption("long") else 11 if step is None else 23
    hold(lambda number: step in (None, number), takes_back=step in (None, 1), every=every)


def test_a_floor_without_the_transactions_that_are_running_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What commits late has a lower number than what it is compared with."""
    raise_floor = PostgreSQLFloors.raise_floor

    def forget(floors: PostgreSQLFloors) -> None:
        raise_floor(floors)
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {FLOOR} SET running = '{{}}', transaction = DEFAULT")

    monkeypatch.setattr(PostgreSQLFloors, "raise_floor", forget)

    with pytest.raises(AssertionError):
        hold(lambda _number: True)


def test_a_floor_by_primary_keys_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that commits late has an entry with a lower one."""
    log, mark = PostgreSQLFloors.log, 0

    def above_the_mark(floors: PostgreSQLFloors, *_arguments: Any, **_options: Any) -> str:
        return f"(SELECT * FROM {LOG} WHERE id > {mark})"

    def remember(floors: PostgreSQLFloors) -> None:
        nonlocal mark
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT coalesce((SELECT min(id) - 1 FROM {LOG}), last_value) FROM {LOG}_id_seq"
            )
            [mark] = cursor.fetchone()

    monkeypatch.setattr(PostgreSQLFloors, "log", above_the_mark)
    monkeypatch.setattr(PostgreSQLFloors, "raise_floor", remember)

    with pytest.raises(AssertionError):
        hold(lambda _number: True)
    assert log is not PostgreSQLFloors.log


def test_a_transaction_that_has_written_does_not_take_what_it_writes_next_for_seen() -> None:
    # given a transaction with a number, and a later one that has ended
    with transaction.atomic():
        Change.objects.create(table="a")
        with closing(Session()) as other:
            other.write()
            other.connection.commit()

        # when it raises the floor, and writes
        changes.raise_floor()
        Change.objects.create(table="b")

    # then what it wrote is there
    assert changes.newest_entry([]) == Change.objects.latest("pk").pk
    with closing(Session()) as other:
        other.look()


def test_a_floor_of_another_cluster_is_not_used() -> None:
    """Its numbers would mean something else here. In a dump it has the number of its writer."""
    Change.objects.create(table="a")
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {FLOOR} (transaction, next, log, running, views, least) SELECT "
            f"'4000000000', '4000000000', '4000000000', '{{}}', '{{}}', '{{}}'"
        )

    assert changes.newest_entry([])
    with closing(Session()) as other:
        other.look()


def test_entries_of_another_cluster_hide_none_that_follow() -> None:
    """Their numbers may be above those of this one for years."""
    with closing(Session()) as loading:
        loading.run(f"INSERT INTO {LOG} (\"table\", transaction) VALUES ('a', '4000000000000')")
        for view in VIEWS:
            values = f"({view}, 'a', '4000000000000')"
            loading.run(f'INSERT INTO {QUEUE} (view_id, "table", transaction) VALUES {values}')
        loading.connection.commit()
    changes.raise_floor()

    with closing(Session()) as writer, closing(Session()) as reader:
        writer.write()
        writer.connection.commit()
        reader.look()


def test_entries_that_are_loaded_below_the_floor_get_a_new_number() -> None:
    with connection.cursor() as cursor:
        for table, columns in ((LOG, '"table"'), (QUEUE, 'view_id, "table"')):
            values = "'a'" if table == LOG else "1, 'a'"
            cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})")
            cursor.execute(f"CREATE TEMPORARY TABLE aside_{table} AS SELECT * FROM {table}")
            cursor.execute(f"DELETE FROM {table}")
    changes.raise_floor()
    with connection.cursor() as cursor:
        for table in (LOG, QUEUE):
            cursor.execute(f"INSERT INTO {table} SELECT * FROM aside_{table}")
            cursor.execute(f"DROP TABLE aside_{table}")

    engine.renumber_entries()

    with closing(Session()) as reader:
        reader.look()


def test_a_floor_that_cannot_be_raised_fails_no_move(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_floors: object) -> None:
        raise DatabaseError("disk full")

    monkeypatch.setattr(PostgreSQLFloors, "raise_floor", fail)
    Change.objects.bulk_create(Change(table="a") for _ in range(101))
    engine.move_log()

    assert not is_logged()
    assert "the floor of the change log could not be raised" in caplog.text


def test_only_a_few_floors_are_kept() -> None:
    for _ in range(120):
        changes.raise_floor()

    assert LogFloor.objects.count() <= 51


@pytest.fixture
def shop(tracked: None) -> ViewControl:
    """A view on change, up to date, in a log through which thousands of entries have passed."""
    region = Region.objects.create(pk=1, name="here")
    Customer.objects.create(pk=1, name="1", region=region)
    order()
    run(CustomerTotal)
    control = ViewControl.objects.get(label=CustomerTotal._meta.label)
    RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")
    return control


def order() -> None:
    Order.objects.create(customer_id=1, quantity=1, price=1, paid=True)


def pages(work: Callable[[], object]) -> int:
    """How many pages of the server the SELECT statements of some work read, caches warm."""
    with CaptureQueriesContext(connection) as captured:
        work()
    statements = [each["sql"] for each in captured if each["sql"].startswith(("SELECT", "WITH"))]
    # the least of three: whatever empties the server's caches of its catalogs makes it read those
    return sum(min(pages_of(each) for _ in range(3)) for each in statements)


def pages_of(statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
        [[[found]]] = cursor.fetchall()
    return int(found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"])


def passed(control: ViewControl, entries: int) -> None:
    """Entries come into the log, the queue and the keys of a view, and go."""
    shard = control.shards.get().pk
    with connection.cursor() as cursor:
        for table, columns, values in (
            (LOG, '"table", links', "'shapes_order', '[[\"customer_id\"], [1]]'"),
            (QUEUE, 'view_id, "table", links', f"{control.pk}, 'shapes_order', '[[], []]'"),
            ("matviews_dirtykeys", "shard_id, drain_number, count, keys", f"{shard}, 0, 1, '[1]'"),
        ):
            cursor.execute(
                f"INSERT INTO {table} ({columns}) SELECT {values} "
                f"FROM generate_series(1, {entries})"
            )
            cursor.execute(f"DELETE FROM {table}")
    changes.raise_floor()


@pytest.mark.parametrize("kind", ["snapshot", "writer"])
def test_nobody_passes_entries_that_are_gone(shop: ViewControl, kind: str) -> None:
    """However many a transaction elsewhere keeps, that only reads or that has logged a change."""
    works: dict[str, Callable[[], object]] = {
        "look": lambda: changes.followed_changes("default"),
        "status": CustomerTotal.is_fresh,
        "empty": is_logged,
        "load": lambda: load_works(shop.pk),
        "drain": lambda: changes.drain_queue(shop.pk),
        "wait": lambda: changes.oldest_waiting([shop.pk]),
        "keys": lambda: run(CustomerTotal),
    }
    with closing(Session(repeatable=kind == "snapshot")) as other:
        other.run(f"SELECT 1 FROM {LOG}")
        if kind == "writer":
            other.write()
        changes.raise_floor()
        before = {name: pages(work) for name, work in works.items()}

        passed(shop, 60_000)

        after = {name: pages(work) for name, work in works.items()}
        assert Change.objects.count() == 0
    more = {name: after[name] - before[name] for name in works}
    # Entries in the log alone take 700 pages; the server's own statistics change some plans.
    assert {name: count for name, count in more.items() if count > 300} == {}
