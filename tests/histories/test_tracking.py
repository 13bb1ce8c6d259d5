"""Random writes to the source of tracked views: refreshes look only at dirty keys and miss none.

Unlike in `test_shapes`, what leads to a full pass, which would mend what was missed, is rare: in
some histories a round has a pinned strategy, or costs by which it chooses one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import changes, engine
from matviews.changes import change_log, log_spans, tracking_of
from matviews.engine import alias
from matviews.engine.work import costs
from matviews.json_fields import Cost
from matviews.models import PhaseRun, Refresh, TrackedTable, ViewControl, ViewShard
from matviews.phases import Phase
from matviews.queryset import plan_of
from matviews.queryset.strategy import links
from matviews.registry import registry
from matviews.states import RefreshStrategy
from tests.helpers.current import reads_table
from tests.helpers.state_machines import FOUND, refreshed_despite
from tests.histories.conftest import RunRandom
from tests.histories.test_shapes import COLUMN, MODELS, ORDERS, PARTS, QUERIES, values
from tests.shapes.models import Customer, Shape, Tag
from tests.shapes.models.grouped import (
    CustomerTotal,
    DayRegion,
    ReferredSlot,
    RegionDay,
    RegionTotal,
    SlotRegion,
    TagRegion,
)
from tests.shapes.models.rows import OwnOrReferred
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.shop import COLUMNS, RAW, TEXTS, Shop
from tests.shapes.tracking import newest_only, track_for

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("tracked_shapes"),
    # Who is killed closes nothing, nor do those who are only as good as killed.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

CHOICES = st.integers(0, 4)
SPREAD: list[type[Any]] = [RegionDay, SlotRegion, DayRegion, TagRegion, ReferredSlot]
Write = Callable[[Shop], object]


def _views() -> list[type[Any]]:
    """The views of which changes lead to keys, whatever their query."""
    found = []
    for each in registry:
        if issubclass(each.model, Shape) and each.model.__name__ != "JsonKey":
            plan = plan_of(each, alias())
            if plan.strategy.is_incremental and plan.links and not tracking_of(plan).reason:
                found.append(each.model)
    return found


def _change(shop: Shop, *, where: tuple[type[Any], str], which: int, value: int) -> None:
    model, column = where
    options = COLUMNS[model][column]
    shop.change(model, which, column, options[value % len(options)])


def _add_customer(shop: Shop, *, region: int, referrer: int, row: dict[str, Any]) -> None:
    shop.add_customer(region, referrer, **row)


def _write(
    work: Callable[..., object], **chosen: st.SearchStrategy[Any]
) -> st.SearchStrategy[Write]:
    """A write with random arguments."""
    return st.fixed_dictionaries(chosen).map(lambda given: partial(work, **given))


WRITES: st.SearchStrategy[Write] = st.one_of(
    _write(Shop.move, which=PARTS, customer=CHOICES, product=CHOICES),
    _write(Shop.move_customers, which=PARTS, region=CHOICES),
    _write(_change, where=COLUMN, which=PARTS, value=st.integers(0, 20)),
    _write(Shop.add_orders, rows=st.lists(ORDERS, min_size=1, max_size=4)),
    _write(Shop.delete, model=MODELS, which=PARTS),
    _write(Shop.run_sql, statement=st.sampled_from(RAW), which=PARTS),
    _write(
        _add_customer, region=CHOICES, referrer=CHOICES, row=st.fixed_dictionaries(values(Customer))
    ),
    _write(Shop.open_region, name=st.sampled_from(TEXTS)),
    _write(Shop.save_each, which=PARTS),
    _write(Shop.take_back, which=PARTS, savepoint=st.booleans()),
)
ROUNDS = st.lists(
    st.tuples(
        st.lists(WRITES, min_size=1, max_size=3),
        st.sampled_from([1, 2, 50]),
        st.none() | st.integers(1, 40),
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


# By the number of the round: how its refresh is done; by keys in most.
STRATEGIES: st.SearchStrategy[dict[int, str]] = st.just({}) | st.dictionaries(
    st.integers(0, 7),
    st.sampled_from([*RefreshStrategy.values, "at most 3 keys", "within a millisecond"]),
    min_size=1,
    max_size=2,
)
# By the number of the round: what becomes of a neighbour.
NEIGHBOURS = st.dictionaries(
    st.integers(0, 7),
    st.sampled_from(["refresh", "move", "definition", "mark", "checkpoints"]),
    max_size=4,
)


@pytest.fixture(autouse=True, params=[5_000, 2])
def _moved_in_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each move looks which views need an entry, and may delete the others by ranges."""
    monkeypatch.setattr(change_log, "FEW_ENTRIES", 0)
    monkeypatch.setattr(change_log, "MAX_MOVED_ENTRIES", request.param)
    monkeypatch.setattr(log_spans, "MIN_SPAN", 2)


class Histories:
    """What was seen: histories by view, and runs that looked at dirty keys alone."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.by_keys = 0
        #: How many reads as of now did not compute all rows.
        self.from_table = 0

    def run(self, examples: int, views: Sequence[type[Any]] = (), **options: Any) -> None:
        """So many histories, each from a shop with a few rows, of some of the views or of any."""
        views = views or _views()

        @settings(
            max_examples=examples, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), **options,
        )  # fmt: skip
        @given(
            view=st.sampled_from(views), query=QUERIES, neighbour=NEIGHBOURS, strategies=STRATEGIES,
            orders=st.lists(ORDERS, min_size=3, max_size=8), rounds=ROUNDS,
        )  # fmt: skip
        def history(
            view: type[Any],
            query: Query,
            neighbour: dict[int, str],
            strategies: dict[int, str],
            orders: list[Any],
            rounds: list[Any],
        ) -> None:
            self.seen[view.__name__] += 1
            shop = _begin(view, query)
            shop.add_orders(orders)
            refreshed_despite(None, view, batch_size=50)
            for number, (writes, batch_size, kill) in enumerate(rounds):
                for write in writes:
                    note(f"{write}")
                    write(shop)
                    self.read(view)
                with _refreshed_by(view, strategies.get(number, "")):
                    refresh = refreshed_despite(
                        kill, view, killed=partial(self.read, view), batch_size=batch_size
                    )
                self.by_keys += refresh.runs.exclude(dirty_after=None).filter(batches__gt=0).count()
                assert differences(view) == []
                self.read(view)
                if number in neighbour:
                    _visit(_neighbour_of(view), neighbour[number])
            _visit(_neighbour_of(view), "refresh")

        history()

    def read(self, view: type[Any]) -> None:
        """The view as of now is as its source, whatever waits."""
        assert differences(view, view.current) == []
        self.from_table += reads_table(view)


def _begin(view: type[Any], query: Query) -> Shop:
    neighbour = _neighbour_of(view)
    for model in (PhaseRun, Refresh, CustomerTotal, view, neighbour):
        model._base_manager.all().delete()
    labels = [each._meta.label for each in (view, neighbour)]
    ViewControl.objects.filter(label__in=labels).delete()
    view.query, neighbour.query = query, Query()
    registry.register(view)
    engine.sync_controls()
    track_for(view)
    both = set(ViewControl.objects.filter(label__in=labels).values_list("pk", flat=True))
    TrackedTable.objects.exclude(views=[]).update(views=sorted(both))
    changes.enqueue(both, "changes were not logged before")  # as for all views that are new
    shop = Shop()
    for name in ("b", "Ä"):
        shop.open_region(name)
        shop.add_customer(1, 1, name=name, nickname=None, active=True)
        shop.add_product(name, name=name, price=1)
        Tag.objects.create(pk=shop.key(), label=name)
    return shop


def _neighbour_of(view: type[Any]) -> type[Any]:
    """Another view of the same tables, which is not built at first."""
    return RegionDay if view is RegionTotal else RegionTotal


def _visit(neighbour: type[Any], what: str) -> None:
    """Refresh the other view; before that, something may have become of it."""
    note(f"neighbour: {what}")
    if what == "move":
        engine.move_log()
        return
    if what == "definition":
        neighbour.query = Query(money=1)
    elif what == "mark":
        engine.mark_dirty(neighbour)
        engine.move_log()
    elif what == "checkpoints":
        control = ViewControl.objects.get(label=neighbour._meta.label)
        ViewShard.objects.filter(view=control).update(checkpoints={})
    refreshed_despite(None, neighbour, batch_size=50)
    assert differences(neighbour) == []


@contextmanager
def _refreshed_by(view: type[Any], how: str) -> Iterator[None]:
    """Refreshes are done by a pinned strategy, or by costs that may make them full half-way."""
    note(f"strategy: {how or 'by keys'}")
    pinned = how if how in RefreshStrategy.values else ""
    ViewControl.objects.filter(label=view._meta.label).update(strategy=pinned)
    with pytest.MonkeyPatch.context() as patch:
        if how and not pinned:
            patch.setattr(costs, "CHEAP_SECONDS", 0.0)
            patch.setattr(costs, "MIN_BUDGET_SECONDS", 0.001)
            dear = {1: 1.0} if how == "at most 3 keys" else {}
            known = {phase: Cost(0.0005, dear) for phase in Phase}
            ViewShard.objects.filter(view__label=view._meta.label).update(costs=known)
        yield


def test_no_key_is_missed(run_random: RunRandom) -> None:
    histories = Histories()
    run_random(histories.run, long=10_000, until=lambda: histories.by_keys and histories.from_table)
    assert histories.by_keys
    assert histories.from_table


@pytest.mark.long
def test_no_key_of_several_tables_is_missed() -> None:
    histories = Histories()
    histories.run(5_000, SPREAD, phases=[Stage.explicit, Stage.generate])
    assert len(histories.seen) == len(SPREAD)


@pytest.mark.finds_fault
@pytest.mark.parametrize("_moved_in_pieces", [5_000], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [
        "old link", "queue", "way", "view", "source",
        pytest.param("alternative", marks=pytest.mark.long),  # found only after many histories
    ],
)  # fmt: skip
def test_the_histories_find_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views: Sequence[type[Any]] = ()
    if fault in ("view", "source"):
        views = [{"view": TagRegion, "source": ReferredSlot}[fault]]  # where it is found soonest
        monkeypatch.setattr(f"matviews.queryset.sql.lookups._in_{fault}", lambda *_arguments: set())
    elif fault == "queue":
        views = [RegionTotal]
        taken = changes.drain_queue
        monkeypatch.setattr(changes, "drain_queue", lambda view: taken(view)[1:])
    elif fault == "alternative":
        views = [OwnOrReferred]
        choices = links._choices
        monkeypatch.setattr(links, "_choices", lambda found: choices(found)[:1])
    elif fault == "way":
        views = [RegionTotal, TagRegion]  # of orders that are steps away from the key
        monkeypatch.setattr("matviews.queryset.sql.lookups._looked_up", lambda *_arguments: set())
    else:
        taken = changes.drain_queue
        monkeypatch.setattr(changes, "drain_queue", lambda view: newest_only(taken(view)))

    with pytest.raises(FOUND):
        Histories().run(
            1000, views, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False
        )
