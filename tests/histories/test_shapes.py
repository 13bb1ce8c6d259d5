"""Random histories of views with `source()`: whatever the query, the end is the source's rows.

A history takes one view of `tests.shapes`, chooses its query, and mixes changes of the source,
requests, batches, lost messages, kills before any statement, rows of the view that somebody spoils,
and definitions that change under way.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, models
from hypothesis import Phase as Stage
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from matviews import engine
from matviews.changes import tracking_of
from matviews.engine import alias
from matviews.models import PhaseRun, Refresh, ViewControl
from matviews.phases import Phase
from matviews.queryset import plan_of
from matviews.queryset.sql.statements import Statements
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers.engine import let_time_pass, shards_of
from tests.helpers.state_machines import FOUND, MailboxMachine, run_machine
from tests.histories.conftest import RunRandom
from tests.shapes.models import Customer, Order, Product, Region, Shape, Tag
from tests.shapes.models.grouped import CustomerTotal, ViewOfView
from tests.shapes.models.rows import JsonKey
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.shop import COLUMNS, RAW, TEXTS, Shop
from tests.shapes.tracking import everything_tracked, track_for

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    # Who is killed closes nothing, nor do those who are only as good as killed.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

VIEWS: list[type[Any]] = [
    each.model
    for each in registry
    if issubclass(each.model, Shape)
    and (each.model is not JsonKey or connection.vendor != "sqlite")
]
BATCH_SIZES = st.sampled_from([1, 2, 3, 50])
KILLS = st.none() | st.integers(1, 25)
PHASES = st.lists(st.sampled_from(list(Phase)), min_size=1, unique=True)

CHOICES = st.integers(0, 4)
PARTS = st.integers(0, 3)  # thirds of a table, or all of it
COLUMN = st.sampled_from([(model, name) for model in COLUMNS for name in COLUMNS[model]])
MODELS = st.sampled_from([Region, Customer, Product, Tag, Order])
QUERIES = st.builds(
    Query,
    rows=st.just(0) | st.integers(0, 10),
    count=st.integers(0, 5),
    total=st.integers(0, 3),
    money=st.integers(0, 4),
    mean=st.integers(0, 3),
    bound=st.integers(0, 2),
    form=st.integers(0, 4),
)


def values(model: type[models.Model]) -> dict[str, st.SearchStrategy[Any]]:
    """Values of each column, the first ones the plainest."""
    return {name: st.sampled_from(given) for name, given in COLUMNS[model].items()}


ORDERS = st.fixed_dictionaries(
    {
        **values(Order),
        "customer": CHOICES,
        "product": CHOICES,
        "tags": st.lists(CHOICES, max_size=2),
    }
)


class History(MailboxMachine):
    """One view, its source, and a mailbox of messages."""

    seen: Counter[str] = Counter()

    @initialize(
        view=st.sampled_from(VIEWS),
        query=QUERIES,
        last_size=BATCH_SIZES,
        orders=st.lists(ORDERS, min_size=3, max_size=12),
        built=st.booleans(),
        tracked=st.booleans(),
    )
    def begin(
        self,
        view: type[Any],
        query: Query,
        last_size: int,
        orders: list[dict[str, Any]],
        built: bool,
        tracked: bool,
    ) -> None:
        self.seen[view.__name__] += 1
        for model in (PhaseRun, Refresh, CustomerTotal, view):
            model._base_manager.all().delete()
        # Of this view alone: to recreate those of all views takes longer than a history.
        ViewControl.objects.filter(label=view._meta.label).delete()
        engine.sync_controls()
        self.shop = Shop()
        self.view, self.last_size = view, last_size
        self.define(query)
        self.control = ViewControl.objects.get(label=view._meta.label)
        self.tracked = tracked
        track_for(view if tracked else None, whatever_it_reads=True)
        for name in ("b", "Ä"):
            self.open_region(name)
            self.add_customer(1, 1, {"name": name, "nickname": None, "active": True})
            self.add_product(name, {"name": name, "price": 1})
            Tag.objects.create(pk=self.shop.key(), label=name)
        self.shop.add_orders(orders)
        if built:
            self.refresh_without_trouble(last_size)

    # What users of the source do.

    @rule(name=st.sampled_from(TEXTS))
    def open_region(self, name: str) -> None:
        self.shop.open_region(name)

    @rule(region=CHOICES, referrer=CHOICES, row=st.fixed_dictionaries(values(Customer)))
    def add_customer(self, region: int, referrer: int, row: dict[str, Any]) -> None:
        self.shop.add_customer(region, referrer, **row)

    @rule(sku=st.sampled_from(TEXTS), row=st.fixed_dictionaries(values(Product)))
    def add_product(self, sku: str, row: dict[str, Any]) -> None:
        self.shop.add_product(sku, **row)

    @rule(rows=st.lists(ORDERS, min_size=1, max_size=6), gap=st.integers(0, 1000))
    def add_orders(self, rows: list[dict[str, Any]], gap: int) -> None:
        if gap > 100:
            self.shop.skip(gap)
        self.shop.add_orders(rows)

    @rule(where=COLUMN, which=PARTS, value=st.integers(0, 20))
    def change(self, where: tuple[type[Any], str], which: int, value: int) -> None:
        model, column = where
        options = COLUMNS[model][column]
        self.shop.change(model, which, column, options[value % len(options)])

    @rule(which=PARTS, customer=CHOICES, product=CHOICES)
    def move(self, which: int, customer: int, product: int) -> None:
        self.shop.move(which, customer, product)

    @rule(which=PARTS, region=CHOICES)
    def move_customers(self, which: int, region: int) -> None:
        self.shop.move_customers(which, region)

    @rule(which=PARTS)
    def save_each(self, which: int) -> None:
        self.shop.save_each(which)

    @rule(model=MODELS, which=PARTS)
    def delete(self, model: type[Any], which: int) -> None:
        self.shop.delete(model, which)

    @rule(statement=st.sampled_from(RAW), which=PARTS)
    def run_sql(self, statement: str, which: int) -> None:
        self.shop.run_sql(statement, which)

    @rule(which=PARTS, savepoint=st.booleans())
    def take_back(self, which: int, savepoint: bool) -> None:
        self.shop.take_back(which, savepoint)

    @precondition(lambda self: self.view is ViewOfView)
    @rule(customer=st.integers(-4, 4), orders=st.integers(0, 3))
    def change_the_view_below(self, customer: int, orders: int) -> None:
        CustomerTotal.objects.update_or_create({"orders": orders}, customer_id=customer)

    # What happens to the view.

    @rule(which=st.integers(0, 2), delete=st.booleans())
    def spoil(self, which: int, delete: bool) -> None:
        keys = list(self.view._base_manager.values_list("pk", flat=True))[which::3]
        rows = self.view._base_manager.filter(pk__in=keys)
        if delete:
            rows.delete()
        else:
            rows.update(**{field.attname: None for field in self._columns() if field.null})
        self.view.mark_dirty()

    @rule(query=QUERIES)
    def define(self, query: Query) -> None:
        """What a new release of the project does."""
        self.view.query = query
        registry.register(self.view)

    def _columns(self) -> list[Any]:
        return [field for field in self.view._meta.concrete_fields if not field.unique]

    # What operators, brokers and workers do.

    @rule(phases=PHASES, batch_size=BATCH_SIZES, kill=KILLS)
    def ask(self, phases: list[Phase], batch_size: int, kill: int | None) -> None:
        with self.mortal(kill):
            engine.request(self.view, phases=phases, batch_size=batch_size)
            for shard_id in shards_of(self.control.pk):
                self.send(engine.close_finished(shard_id).message)

    @precondition(lambda self: self.mailbox)
    @rule(position=st.integers(0, 100), again=st.booleans(), kill=KILLS)
    def deliver(self, position: int, again: bool, kill: int | None) -> None:
        self.work_on(position, again=again, kill=kill)

    @precondition(lambda self: self.mailbox)
    @rule(count=st.integers(2, 8))
    def deliver_some(self, count: int) -> None:
        for _ in range(count):
            if self.mailbox:
                self.deliver(position=0, again=False, kill=None)

    @rule(batch_size=BATCH_SIZES)
    def refresh_without_trouble(self, batch_size: int) -> None:
        self.work_until_quiet()
        self._refresh_to_the_end(batch_size)
        assert differences(self.view) == []

    @rule(kill=KILLS)
    def maintain(self, kill: int | None) -> None:
        let_time_pass()
        self.send_again(kill)

    def send_again(self, kill: int | None) -> None:
        """As the task does: a worker killed after closing a refresh leaves the stage to this."""
        super().send_again(kill)
        engine.sweep_stages()

    # At rest.

    def teardown(self) -> None:
        if not hasattr(self, "control"):
            return
        self.work_until_quiet()
        assert self._verified() or not differences(self.view)
        self.refresh_without_trouble(self.last_size)
        again = self._refresh_to_the_end(self.last_size)
        assert not any(run.rows for run in again.runs.all())
        if self.tracked and not tracking_of(plan_of(registry.find(self.view), alias())).reason:
            assert not again.runs.exists()
            assert self.view.is_fresh()
        assert self._verified() == 0
        assert _staging_tables() == []

    def _verified(self) -> int:
        """How many keys differ, in the words of the engine."""
        found = engine.verify(self.view)
        note(f"{found}")
        return found.missing + found.differing + found.surplus

    def _refresh_to_the_end(self, batch_size: int) -> Refresh:
        refresh = engine.request(self.view, batch_size=batch_size)
        self.work_until_quiet()
        refresh.refresh_from_db()
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        return refresh


def _staging_tables() -> list[str]:
    tables = connection.introspection.table_names()
    return [table for table in tables if table.startswith("matviews_stage")]


@pytest.fixture(autouse=True)
def _triggers(transactional_db: None) -> Iterator[None]:
    with everything_tracked():
        yield


@pytest.fixture(autouse=True)
def _definitions() -> Iterator[None]:
    with registry.preserved():
        yield
    for view in VIEWS:
        view.query = Query()
    History.seen.clear()


def run(examples: int, **options: Any) -> None:
    run_machine(History, examples, **options)


def test_any_history_of_any_source_ends_with_its_rows(run_random: RunRandom) -> None:
    run_random(run, long=10_000)
    assert History.seen


@pytest.mark.finds_fault
def test_the_machine_finds_rows_that_are_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Statements, "delete", lambda *_args: [])

    with pytest.raises(FOUND):
        run(500, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False)
