"""Views as of now, while others write and refreshes run: each read is as the source.

View and source are compared in the same statement. Writers leave transactions open for a while, so
that they commit in another order than they wrote; some roll back, and on PostgreSQL one has a
snapshot of its own. Meanwhile a worker refreshes in batches of one key, and is killed now and then.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, models, transaction
from django.db.models import Count, Sum

from matviews import changes, engine, untracked
from matviews.changes import WaitingSQL
from matviews.databases.base.current import Part
from matviews.databases.sql import SQL
from matviews.engine import current
from matviews.models import ViewShard
from matviews.tasks import inline
from tests.helpers.additive_views import Sales, counted, extremes
from tests.helpers.current import differences_now, reads_table
from tests.helpers.engine import let_time_pass
from tests.helpers.state_machines import Killed, killed_before_statement
from tests.helpers.tables import derived_view, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
    pytest.mark.usefixtures("alone"),
]

LONG = 100_000 if connection.vendor == "postgresql" else 20_000
SHORT = 150
PAUSE = 0.004 if connection.vendor == "sqlite" else 0.03  # while a transaction stays open
FAULTY = 2_000  # reads in which a seeded fault must show


class Regions:
    """Orders of customers of regions, and a view with the orders of each region."""

    def __init__(self) -> None:
        self.Customer = customer = model("Buyer", region=models.IntegerField(null=True))
        self.Order = order = model(
            "Purchase",
            customer=models.ForeignKey(customer, models.CASCADE, db_constraint=False),
            amount=models.IntegerField(),
        )
        self.View = derived_view(
            lambda cls: order._base_manager.values("customer__region").annotate(
                region=models.F("customer__region"), orders=Count("pk"), total=Sum("amount")
            ).values("region", "orders", "total"),
            name="RegionOrders",
            region=models.IntegerField(unique=True),
            orders=models.IntegerField(),
            total=models.IntegerField(null=True),
        )  # fmt: skip

    @contextmanager
    def tracked(self) -> Iterator["Regions"]:
        with made(self.Customer, self.Order, self.View):
            changes.install(engine.alias())
            rows = self.Customer._base_manager.bulk_create(
                self.Customer(region=number % 8) for number in range(40)
            )
            self.customers = [row.pk for row in rows]
            self.Order._base_manager.bulk_create(
                self.Order(customer_id=pk, amount=pk % 7) for pk in self.customers * 3
            )
            try:
                yield self
            finally:
                changes.remove(engine.alias())

    def write(self, chance: random.Random) -> None:
        """One statement of a writer."""
        orders, customers = self.Order._base_manager, self.Customer._base_manager
        one = chance.choice(self.customers)
        writes: list[Callable[[], object]] = [
            lambda: orders.create(customer_id=one, amount=chance.randint(0, 9)),
            lambda: orders.filter(customer=one).update(amount=chance.randint(0, 9)),
            lambda: orders.filter(customer=one).update(customer=chance.choice(self.customers)),
            lambda: orders.filter(customer=one, amount__gt=4).delete(),
            lambda: customers.filter(pk=one).update(region=chance.choice([None, 1, 2, 3, 9])),
            lambda: customers.filter(pk=one).update(region=chance.randint(0, 8)),
        ]  # fmt: skip
        chance.choice(writes)()

    def load(self, chance: random.Random) -> None:
        """Change rows without logging each."""
        with untracked(self.Order):
            self.Order._base_manager.filter(amount=chance.randint(0, 9)).update(
                amount=chance.randint(0, 9)
            )


class SalesWrites(Sales):
    """Sales of shops, and an additive view."""

    def write(self, chance: random.Random) -> None:
        """One statement of a writer."""
        sales = self.Sale._base_manager
        some = sales.filter(owner=chance.randint(0, 9))
        writes: list[Callable[[], object]] = [
            lambda: sales.create(
                shop=chance.choice([None, 1, 2, 3, 4]), qty=chance.choice([None, 1, 2, 5]),
                kind=chance.choice([1, 2, 9]), owner=chance.randint(0, 9),
            ),
            lambda: sales.create(shop=chance.randint(1, 6), qty=3, owner=chance.randint(0, 9)),
            lambda: some.update(shop=chance.choice([None, 1, 2, 5])),
            lambda: some.update(qty=chance.choice([None, 0, 7]), kind=chance.choice([1, 9])),
            lambda: some.filter(qty__gt=2).delete(),
        ]  # fmt: skip
        chance.choice(writes)()

    def load(self, chance: random.Random) -> None:
        """Change rows without logging each."""
        with untracked(self.Sale):
            self.Sale._base_manager.filter(owner=chance.randint(0, 9)).update(qty=4)


class Beside:
    """Threads that work until the end, each over and over, in a connection of its own."""

    def __init__(self, *work: Callable[[random.Random], object]) -> None:
        self.stop, self.failed = threading.Event(), list[BaseException]()
        self.threads = [
            threading.Thread(target=self._repeat, args=(each, random.Random(seed)))
            for seed, each in enumerate(work)
        ]

    def _repeat(self, work: Callable[[random.Random], object], chance: random.Random) -> None:
        try:
            while not self.stop.is_set():
                # Deadlocks, and on SQLite a writer that others have kept waiting.
                with suppress(DatabaseError, Killed):
                    work(chance)
                time.sleep(chance.random() * 0.005)
        except BaseException as error:
            self.failed.append(error)
            raise
        finally:
            connections.close_all()

    def __enter__(self) -> None:
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.failed


def transact(view: Any, chance: random.Random, *, snapshot: bool = False) -> None:
    """A transaction of a few statements that may stay open for a while, or be rolled back."""
    with transaction.atomic():
        if snapshot and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for _ in range(chance.randint(1, 3)):
            view.write(chance)
            if chance.random() < 0.2:
                time.sleep(chance.random() * PAUSE)
        if chance.random() < 0.15:
            transaction.set_rollback(True)


def refresh(view: Any, chance: random.Random) -> None:
    """A refresh whose worker may be killed, and sometimes a load that is not logged."""
    if chance.random() < 0.1:
        view.load(chance)
    requested = engine.request(view.View, batch_size=chance.choice([1, 2, 50]))
    shards = list(ViewShard.objects.filter(view=requested.view_id).values_list("pk", flat=True))
    with killed_before_statement(chance.choice([None, None, chance.randint(1, 60)])):
        inline.run_until_idle(shards)
    time.sleep(chance.random() * 0.05)


def go_on(view: Any, chance: random.Random) -> None:
    """Another worker takes over from one that was killed."""
    time.sleep(0.2)
    let_time_pass()


def reads(view: Any, count: int, *, until_wrong: bool = False) -> tuple[int, int]:
    """How many of so many reads were wrong, and how many computed not all rows."""
    wrong = from_table = 0
    refreshed(view.View)
    writers = [partial(transact, view, snapshot=number == 0) for number in range(3)]
    with Beside(*writers, partial(refresh, view), partial(go_on, view)):
        for number in range(count):
            wrong += bool(differences_now(view.View))
            if number % 10 == 0:
                from_table += reads_table(view.View)
            if wrong and until_wrong:
                break
    return wrong, from_table


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return LONG if request.config.getoption("--long") else SHORT


def test_each_read_by_keys_is_as_the_source(count: int) -> None:
    with Regions().tracked() as view:
        wrong, from_table = reads(view, count)

    assert (wrong, from_table > 0) == (0, True)


@pytest.mark.parametrize("source", [counted, extremes], ids=["sums", "extremes"])
def test_each_read_of_sums_is_as_the_source(source: Any, count: int) -> None:
    with SalesWrites(source).tracked() as view:
        wrong, from_table = reads(view, count)

    assert (wrong, from_table > 0) == (0, True)


def _no_keys(_waiting: WaitingSQL, key: Any) -> SQL:
    return SQL(f"SELECT {', '.join(['NULL'] * len(key))} WHERE 1 = 0")


def _earlier(statement: Any, view: Any, plan: Any) -> Any:
    """Whether everything is to be computed is asked one statement before; a load comes between."""
    found = statement(plan)
    with connection.cursor() as cursor:
        cursor.execute(*found.asked(SQL(f"SELECT COUNT(*) FROM {current.FINE}")))
        [fine] = cursor.fetchone()
    with suppress(DatabaseError):  # on SQLite others may keep it waiting; the next read tries again
        view.load(random.Random(fine + 1))
    decided = Part(current.FINE, ["fine"], SQL(f"SELECT 1 WHERE 1 = {fine}"))
    parts = [decided if part.name == current.FINE else part for part in found.parts]
    return found._replace(parts=parts)


@pytest.mark.finds_fault
@pytest.mark.parametrize("fault", ["dirty keys", "queue", "earlier"])
def test_the_reads_find_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, statement = WaitingSQL.entries, current.current_statement
    if fault == "dirty keys":
        monkeypatch.setattr(WaitingSQL, "dirty", _no_keys)
    elif fault == "queue":

        def of_log(waiting: WaitingSQL) -> SQL:
            text, params = entries(waiting)
            return SQL(text.partition(" UNION ALL ")[0], params)

        monkeypatch.setattr(WaitingSQL, "entries", of_log)
    with Regions().tracked() as view:
        if fault == "earlier":
            earlier = partial(_earlier, statement, view)
            monkeypatch.setattr(current, "current_statement", earlier)
        assert reads(view, FAULTY, until_wrong=True)[0]
