"""Random histories of views with one to three shards: the number changes while they are at work.

The batches of the shards come in any order, between them rows change, and any may be killed. A
worker that has found changes may sleep before it distributes them, while others refresh the view,
in another number of shards. Releases with hooks, and so one shard, come and are rolled back.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import changes, engine
from matviews.changes import shard_queues
from matviews.engine import alias
from matviews.engine.batches import batch
from matviews.engine.requests import controls
from matviews.engine.tracking.queues import await_changes
from matviews.models import DirtyKeys, ShardChange, ViewControl, ViewShard
from matviews.queryset import one_shard_reason, plan_of, sharding
from matviews.registry import registry
from matviews.states import RefreshState
from matviews.tasks import inline
from tests.helpers.engine import delete_with_hooks, let_time_pass
from tests.helpers.state_machines import FOUND, Killed, killed_before_statement
from tests.histories.conftest import RunRandom
from tests.histories.test_shapes import ORDERS, QUERIES
from tests.histories.test_tracking import WRITES, _begin, _views
from tests.shapes.models import Order
from tests.shapes.models.grouped import CustomerTotal, OrdersOfCustomer, SlotTotal
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.shop import COLUMNS

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("tracked_shapes"),
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

#: What happens one after the other: a shard does a batch and may be killed, rows change, somebody
#: requests a refresh, or wants another number of shards.
AWAKE = st.one_of(
    st.tuples(st.just("batch"), st.integers(0, 2), st.none() | st.integers(1, 30)),
    st.tuples(st.just("batch"), st.integers(0, 2), st.none()),
    st.tuples(st.just("write"), WRITES, st.none()),
    st.tuples(st.just("request"), st.sampled_from([1, 2, 50]), st.none()),
    st.tuples(st.just("shards"), st.integers(1, 3), st.none()),
    st.tuples(st.just("mark"), st.none(), st.none()),
    st.tuples(st.just("release"), st.integers(1, 3), st.none()),
    st.tuples(st.just("distribute"), st.none(), st.none()),
)

#: What others do while a worker sleeps: at best they refresh the view in another number of shards,
#: and a row changes that was refreshed.
MEANWHILE = st.lists(AWAKE | st.tuples(st.just("idle"), st.none(), st.none()), max_size=5)
STEPS = st.lists(
    AWAKE | st.tuples(st.just("sleep"), st.integers(0, 2), MEANWHILE), min_size=4, max_size=25
)


@pytest.fixture(autouse=True)
def _few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)


def _splittable() -> list[type[Any]]:
    found = [
        view for view in _views() if not one_shard_reason(plan_of(registry.find(view), alias()))
    ]
    assert CustomerTotal in found
    return found


def _shards(view: type[Any]) -> list[ViewShard]:
    return list(ViewShard.objects.filter(view__label=view._meta.label).order_by("number"))


#: Options of a run that should find a fault.
FIRST_FOUND: Any = {
    "phases": [Stage.generate], "derandomize": True, "report_multiple_bugs": False,
}  # fmt: skip


#: A history that every run begins with, because a release is rare.
ORDER = {name: options[-1] for name, options in COLUMNS[Order].items()}
RELEASE: dict[str, Any] = {
    "view": CustomerTotal,
    "query": Query(),
    "first": 2,
    "orders": [{**ORDER, "customer": number, "product": 1, "tags": []} for number in range(4)],
    "steps": [
        ("mark", None, None),
        ("request", 1, None),
        ("batch", 0, None),
        ("release", 3, None),
    ],
}


class Histories:
    """What was seen: batches of a view with several shards, and releases that came and went."""

    def __init__(self) -> None:
        self.of_several_shards = self.released = 0

    @property
    def saw_all(self) -> bool:
        return bool(self.of_several_shards and self.released)

    def run(self, examples: int, views: Sequence[type[Any]] = (), **options: Any) -> None:
        views = views or _splittable()

        @settings(
            max_examples=examples, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), **options,
        )  # fmt: skip
        @given(
            view=st.sampled_from(views), query=QUERIES, first=st.integers(1, 3),
            orders=st.lists(ORDERS, min_size=3, max_size=8), steps=STEPS,
        )  # fmt: skip
        @example(**RELEASE)
        def history(
            view: type[Any], query: Query, first: int, orders: list[Any], steps: list[Any]
        ) -> None:
            shop = _begin(view, query)
            shop.add_orders(orders)
            self._shards(view, first)
            engine.request(view, batch_size=2)
            self._rest(view)
            for step in steps:
                self._do(view, shop, *step)
            self._rest(view)

        history()

    def _do(self, view: type[Any], shop: Any, what: str, argument: Any, more: Any) -> None:
        note(f"{what} {argument} {more}")
        if what == "write":
            argument(shop)
            assert differences(view, view.current) == []
        elif what == "batch":
            self._run_batch(view, argument, more)
        elif what == "sleep":
            self._sleep(view, shop, argument, more)
        else:
            getattr(self, f"_{what}")(view, argument)

    def _mark(self, view: type[Any], _argument: None) -> None:
        engine.mark_dirty(view)

    def _request(self, view: type[Any], batch_size: int) -> None:
        engine.request(view, batch_size=batch_size)

    def _distribute(self, view: type[Any], _argument: None) -> None:
        engine.move_log()
        changes.distribute(ViewControl.objects.get(label=view._meta.label).pk)

    def _idle(self, view: type[Any], _argument: None) -> None:
        let_time_pass()
        inline.run_until_idle(shard.pk for shard in _shards(view))

    def _shards(self, view: type[Any], count: int) -> None:
        ViewControl.objects.filter(label=view._meta.label).update(shard_count=count)
        engine.sync_shards()
        engine.collapse_long_queues()

    def _release(self, view: type[Any], count: int) -> None:
        """A release that deletes rows by hooks, and its rollback."""
        with pytest.MonkeyPatch.context() as released:
            delete_with_hooks(released, view)
            self._shards(view, count)
            self.released += 1
        registry.register(view)

    def _sleep(self, view: type[Any], shop: Any, which: int, meanwhile: Sequence[Any]) -> None:
        """A batch of a shard, whose worker sleeps for a while if it has found changes."""

        def sleep(logged: changes.ChangesLogged) -> list[str]:
            awake.undo()
            for step in meanwhile:
                self._do(view, shop, *step)
            return await_changes(logged)

        with pytest.MonkeyPatch.context() as awake:
            awake.setattr(batch, "await_changes", sleep)
            self._run_batch(view, which, None)

    def _run_batch(self, view: type[Any], which: int, kill: int | None) -> None:
        """One batch of a shard, if one is due."""
        shards = _shards(view)
        shard = shards[which % len(shards)]
        message = engine.close_finished(shard.pk).message
        if message is None:
            return
        self.of_several_shards += len(shards) > 1
        try:
            with killed_before_statement(kill):
                engine.run_batch(message)
        except Killed:
            let_time_pass()

    def _rest(self, view: type[Any]) -> None:
        """All open refreshes come to their end, and one more: then every row is right."""
        for _ in range(2):
            let_time_pass()
            inline.run_until_idle(shard.pk for shard in _shards(view))
            refresh = engine.request(view)
        let_time_pass()
        inline.run_until_idle(shard.pk for shard in _shards(view))
        refresh.refresh_from_db()
        assert (refresh.state, refresh.error) == (RefreshState.SUCCEEDED, "")
        assert differences(view) == []
        assert not ShardChange.objects.exists()
        engine.sweep_dirty_keys()  # those that were kept for a refresh still open in another shard
        assert not DirtyKeys.objects.filter(shard__view__label=view._meta.label).exists()


def test_shards_miss_no_key(run_random: RunRandom) -> None:
    histories = Histories()
    run_random(histories.run, long=5_000, until=lambda: histories.saw_all)
    assert histories.saw_all


@pytest.mark.long  # it takes many histories
@pytest.mark.finds_fault
def test_the_histories_find_that_a_late_worker_distributes_to_one_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def distribute(view_id: int) -> None:
        queued = changes.drain_queue(view_id)
        shards = ViewShard.objects.filter(view=view_id).order_by("pk")
        shard_queues.enqueue_for_shards(list(shards.values_list("pk", flat=True)), queued)

    monkeypatch.setattr(changes, "distribute", distribute)

    with pytest.raises(FOUND):
        Histories().run(3000, [CustomerTotal], **FIRST_FOUND)


@pytest.mark.long  # it takes many histories
@pytest.mark.finds_fault
def test_the_histories_find_that_a_deleted_shard_takes_changes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forget(shards: Sequence[ViewShard], gone: Sequence[ViewShard]) -> None:
        ViewShard.objects.filter(pk__in=[shard.pk for shard in gone]).delete()

    monkeypatch.setattr(controls, "forget_keys", forget)

    with pytest.raises(FOUND):
        Histories().run(3000, [CustomerTotal], **FIRST_FOUND)


@pytest.mark.long  # it takes many histories
@pytest.mark.finds_fault
def test_the_histories_find_that_one_shard_alone_gets_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    insert = shard_queues.enqueue_for_shards
    monkeypatch.setattr(
        shard_queues, "enqueue_for_shards", lambda shards, queued: insert(shards[:1], queued)
    )

    with pytest.raises(FOUND):
        Histories().run(1000, [CustomerTotal, OrdersOfCustomer, SlotTotal], **FIRST_FOUND)
