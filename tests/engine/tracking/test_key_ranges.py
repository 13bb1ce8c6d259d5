"""Splitting the keys of a view among shards: ranges, what is forgotten, and who gets a change."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from matviews import changes, engine
from matviews.changes import ChangesLogged, change_log, long_queues
from matviews.engine.batches import batch
from matviews.engine.messages import Outcome
from matviews.engine.tracking import dirty_keys, key_ranges
from matviews.engine.tracking.queues import await_changes
from matviews.engine.work import costs
from matviews.models import (
    DirtyKeys,
    ParkedKey,
    PhaseRun,
    Refresh,
    ShardChange,
    ViewChange,
    ViewControl,
    ViewShard,
)
from matviews.phases import Phase
from matviews.queryset import (
    BatchRunner,
    Plan,
    Ranges,
    key_order,
    keys_within,
    one_shard_reason,
    plan_of,
    sharding,
)
from matviews.registry import registry
from matviews.states import RefreshState, RefreshStrategy
from matviews.tasks import inline
from tests.helpers import services
from tests.helpers.engine import (
    delete_with_hooks,
    due,
    held_by_another_worker,
    let_time_pass,
    shards_of,
)
from tests.helpers.view_classes import run
from tests.shapes.models import Customer, Order, Product, Region
from tests.shapes.models.grouped import CustomerStatus, CustomerTotal
from tests.shapes.oracle import differences

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LABEL = CustomerTotal._meta.label
SLEEP = {
    "postgres": "SELECT pg_sleep(20)",
    "mariadb": "SELECT SLEEP(20)",
    "sqlite": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) "
        "SELECT COUNT(*) FROM n"
    ),
}[services.selected_database()]


@pytest.fixture(autouse=True)
def _shop(tracked: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sharding, "MIN_ROWS", 1)
    Region.objects.create(pk=1, name="1")
    Product.objects.create(sku="a", name="a", price=2)
    for number in range(1, 10):
        Customer.objects.create(pk=number, name=str(number), region_id=1)
        Order.objects.create(
            pk=number, customer_id=number, product_id="a", slot=number, price=1, paid=False
        )
    yield
    ViewControl.objects.filter(label=LABEL).update(shard_count=1, strategy="")
    engine.sync_shards()


def control() -> ViewControl:
    return ViewControl.objects.get(label=LABEL)


def want(count: int) -> list[ViewShard]:
    """Want a number of shards; the shards that there are then."""
    ViewControl.objects.filter(label=LABEL).update(shard_count=count)
    engine.sync_shards()
    return shards()


def shards() -> list[ViewShard]:
    return list(ViewShard.objects.filter(view__label=LABEL).order_by("number"))


def refresh() -> Refresh:
    found = run(CustomerTotal)
    assert (found.state, found.error) == (RefreshState.SUCCEEDED, "")
    assert differences(CustomerTotal) == []
    return found


def strategies(found: Refresh) -> set[tuple[int, str]]:
    return set(found.runs.exclude(strategy="").values_list("shard__number", "strategy"))


class TestRanges:
    def test_they_follow_each_other_and_hold_as_many_rows(self) -> None:
        ranges = [shard.keys_within for shard in want(3)]

        assert ranges == [(None, (4,)), ((4,), (7,)), ((7,), None)]

    def test_a_source_with_few_rows_has_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sharding, "MIN_ROWS", 4)

        (shard,) = want(3)

        assert shard.key_range is None

    def test_rows_without_a_key_count_for_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(20, 32):
            Order.objects.create(
                pk=number, customer_id=None, product_id="a", slot=number, price=1, paid=False
            )

        assert [shard.keys_within for shard in want(2)] == [(None, (5,)), ((5,), None)]
        refresh()
        monkeypatch.setattr(sharding, "MIN_ROWS", 4)
        assert len(want(3)) == 1

    def test_a_key_of_many_rows_may_leave_a_range_empty(self) -> None:
        Order.objects.update(customer_id=5)

        ranges = [shard.keys_within for shard in want(3)]
        refresh()

        assert ranges == [(None, (5,)), ((5,), (5,)), ((5,), None)]

    def test_a_key_is_in_the_range_that_ends_with_it(self) -> None:
        plan = plan_of(registry.find(CustomerTotal), engine.alias())
        keys = [(number,) for number in range(1, 10)]

        found = [keys_within(plan, keys, shard.keys_within) for shard in want(2)]

        assert found == [{(n,) for n in range(1, 6)}, {(n,) for n in range(6, 10)}]

    def test_a_view_that_is_pinned_to_staging_has_one(self) -> None:
        assert len(want(2)) == 2
        ViewControl.objects.filter(label=LABEL).update(strategy=RefreshStrategy.FULL_STAGED)

        found = refresh()

        assert len(shards()) == 1
        assert strategies(found) == {(0, "full_staged")}

    def test_a_refresh_that_has_begun_ends_in_several(self) -> None:
        want(2)
        found = engine.request(CustomerTotal, batch_size=1)
        engine.run_batch(due(CustomerTotal))
        ViewControl.objects.filter(label=LABEL).update(strategy=RefreshStrategy.FULL_STAGED)

        let_time_pass()
        inline.run_until_idle(shards_of(found.view_id))

        found.refresh_from_db()
        assert (found.state, found.error) == (RefreshState.SUCCEEDED, "")
        assert strategies(found) == {(0, "full")}  # the other shard went after its end
        assert differences(CustomerTotal) == []
        engine.mark_dirty(CustomerTotal)
        assert strategies(refresh()) == {(0, "full_staged")}
        assert len(shards()) == 1

    @pytest.mark.parametrize("why", ["pinned", "another order"])
    def test_a_batch_waits_while_somebody_holds_another_shard(self, why: str) -> None:
        want(2)
        refresh()
        if why == "pinned":
            ViewControl.objects.filter(label=LABEL).update(strategy=RefreshStrategy.FULL_STAGED)
        else:
            _compare_otherwise()
        engine.mark_dirty(CustomerTotal)
        found = engine.request(CustomerTotal)
        engine.move_log()

        with held_by_another_worker(shards()[1]):
            assert engine.run_batch(due(CustomerTotal)).outcome in (Outcome.WAITING, Outcome.LOST)

        assert not found.runs.exists()
        let_time_pass()
        inline.run_until_idle(shards_of(found.view_id))
        found.refresh_from_db()
        assert (found.state, found.error) == (RefreshState.SUCCEEDED, "")
        assert differences(CustomerTotal) == []

    def test_a_shard_that_is_gone_has_no_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        want(2)
        refresh()
        ViewControl.objects.filter(label=LABEL).update(strategy=RefreshStrategy.FULL_STAGED)
        engine.mark_dirty(CustomerTotal)
        found = engine.request(CustomerTotal)
        message = engine.close_finished(shards()[1].pk).message
        assert message

        def split_late(shard_id: int) -> key_ranges.Split:
            assert key_ranges.split_keys(control()) is key_ranges.Split.DONE
            return key_ranges.split_for_batch(shard_id)

        with monkeypatch.context() as late:
            late.setattr(batch, "split_for_batch", split_late)
            assert engine.run_batch(message).outcome is Outcome.UNKNOWN

        inline.run_until_idle(shards_of(found.view_id))
        assert strategies(found) == {(0, "full_staged")}

    def test_a_source_that_has_grown_before_the_first_build_is_split_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want(2)
        ViewShard.objects.filter(view__label=LABEL).update(key_range=None)
        monkeypatch.setattr(key_ranges, "has_other_order", lambda work: False)
        monkeypatch.setattr(key_ranges, "known_rows", lambda plan: 9)

        refresh()

        assert [shard.keys_within for shard in shards()] == [(None, (5,)), ((5,), None)]

    def test_another_order_of_keys_splits_them_again(self) -> None:
        want(2)
        refresh()
        _compare_otherwise()
        Order.objects.filter(pk__in=[1, 9]).update(price=7)

        found = refresh()

        plan = plan_of(registry.find(CustomerTotal), engine.alias())
        assert [shard.key_order for shard in shards()] == [key_order(plan)] * 2
        assert strategies(found) == {(0, "full"), (1, "full")}

    def test_ranges_of_another_order_that_cannot_be_cut_anew_give_way_to_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want(2)
        refresh()
        _compare_otherwise()
        monkeypatch.setattr(key_ranges, "cut_ranges", _time_out)
        Order.objects.filter(pk__in=[1, 9]).update(price=7)

        assert strategies(refresh()) == {(0, "full")}

        assert [shard.key_range for shard in shards()] == [None]

    def test_ranges_that_cannot_be_cut_anew_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        want(2)
        refresh()
        monkeypatch.setattr(key_ranges, "cut_ranges", _time_out)
        Order.objects.filter(pk=9).update(price=7)

        assert len(want(3)) == 2

        assert strategies(refresh()) == {(1, "by_keys")}

    def test_shards_that_hooks_had_are_given_ranges_before_any_batch(self) -> None:
        want(2)
        refresh()
        ViewShard.objects.filter(view__label=LABEL).update(key_range=None)
        Order.objects.filter(pk__in=[1, 9]).update(price=7)

        found = refresh()

        assert strategies(found) == {(0, "full"), (1, "full")}
        assert [shard.keys_within for shard in shards()] == [(None, (5,)), ((5,), None)]


def _compare_otherwise() -> None:
    """Have the keys of two shards split in another order than that of their column."""
    for shard, ends in zip(shards(), ([None, ["5"]], [["5"], None]), strict=True):
        ViewShard.objects.filter(pk=shard.pk).update(key_range=[*ends, ["text "], 9])


def _time_out(plan: Plan, count: int) -> Ranges:
    raise OperationalError("canceling statement due to statement timeout")


class TestRefreshes:
    def test_the_first_full_one_splits_the_keys(self) -> None:
        ViewControl.objects.filter(label=LABEL).update(shard_count=2)

        found = engine.request(CustomerTotal)
        inline.run_until_idle(shards_of(found.view_id))  # of the one shard that is there

        found.refresh_from_db()
        assert found.state == RefreshState.SUCCEEDED
        assert strategies(found) == {(0, "full"), (1, "full")}
        assert differences(CustomerTotal) == []

    def test_each_shard_writes_its_own_keys(self) -> None:
        want(2)
        run_of = {each.shard.number: each for each in refresh().runs.filter(phase="insert")}

        assert {number: each.rows for number, each in run_of.items()} == {0: 5, 1: 4}

    def test_a_change_leads_to_keys_of_the_shards_that_have_them(self) -> None:
        want(2)
        refresh()
        Order.objects.filter(pk=1).update(customer_id=9)

        found = refresh()

        assert strategies(found) == {(0, "by_keys"), (1, "by_keys")}
        assert found.runs.filter(phase="delete", rows=1).get().shard.number == 0
        assert found.runs.filter(phase="update", rows=1).get().shard.number == 1

    def test_a_shard_without_a_dirty_key_does_nothing(self) -> None:
        want(2)
        refresh()
        Order.objects.filter(pk=9).update(price=7)

        found = refresh()

        assert strategies(found) == {(1, "by_keys")}
        assert not ShardChange.objects.exists()
        assert not ViewChange.objects.filter(view=found.view_id).exists()

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ([1, 2, 8, 9], {(0, "by_keys"), (1, "by_keys")}),
            ([1, 7, 8, 9], {(0, "by_keys"), (1, "full")}),
            ([1, 2, 3, 4, 9], {(0, "full"), (1, "full")}),
        ],
    )
    def test_the_limit_of_keys_is_for_those_of_the_shard(
        self,
        changed: list[int],
        expected: set[tuple[int, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        want(2)
        refresh()
        monkeypatch.setattr(dirty_keys, "max_worthwhile_keys", lambda work: 2)
        Order.objects.filter(pk__in=changed).update(price=7)

        assert strategies(refresh()) == expected

    def test_keys_that_take_too_long_make_the_refresh_of_their_shard_full(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want(2)
        refresh()
        monkeypatch.setattr(costs, "MIN_BUDGET_SECONDS", 0.3)
        run_keys = BatchRunner.run_keys

        def slow(self: Any, phase: Phase, keys: Any, *others: Any) -> int:
            if (9,) in keys:
                with connection.cursor() as cursor:
                    cursor.execute(SLEEP)
            return run_keys(self, phase, keys, *others)

        monkeypatch.setattr(BatchRunner, "run_keys", slow)
        Order.objects.filter(pk__in=[1, 9]).update(price=7)

        assert strategies(refresh()) == {(0, "by_keys"), (1, "full")}

    def test_what_waits_in_the_queue_of_a_shard_is_pending(self) -> None:
        want(2)
        refresh()
        assert CustomerTotal.is_fresh()
        Order.objects.filter(pk=9).update(price=7)
        engine.move_log()
        changes.distribute(control().pk)

        status = engine.data_status(CustomerTotal)

        assert not CustomerTotal.is_fresh()
        assert status.pending
        assert control().pk in changes.oldest_waiting()
        assert differences(CustomerTotal, CustomerTotal.current) == []
        refresh()
        assert CustomerTotal.is_fresh()

    def test_triggers_are_looked_at_once_and_only_where_no_shard_has_changes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want(3)
        refresh()
        seen: list[bool] = []
        module = import_module("matviews.changes.change_status")
        read = module.row_to_tracked

        def reading(values: Any) -> Any:
            record, triggers = read(values)
            seen.append(bool(triggers))
            return record, triggers

        monkeypatch.setattr(module, "row_to_tracked", reading)
        assert CustomerTotal.is_fresh()
        tables = len(seen)
        assert seen == [True] * tables

        Order.objects.filter(pk=9).update(price=7)
        engine.move_log()
        changes.distribute(control().pk)
        ShardChange.objects.exclude(shard__number=2).delete()

        assert not CustomerTotal.is_fresh()
        assert seen == [True] * tables + [False] * tables

    def test_a_queue_of_very_many_changes_is_one_for_all_keys(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want(2)
        refresh()
        monkeypatch.setattr(change_log, "MAX_DISTINCT_CHANGES", 1)
        Order.objects.filter(pk__in=[8, 9]).update(price=7)

        found = refresh()

        assert strategies(found) == {(0, "full"), (1, "full")}
        reasons = found.runs.values_list("full_refresh_reason", flat=True)
        assert set(reasons) == {"more than 1 changes were pending"}

    def test_a_queue_is_emptied_in_as_many_statements_as_a_view_s(self) -> None:
        (first, _second), view = want(2), control()
        refresh()
        entry = {"table": "", "links": [[1]], "count": 1, "logged_at": timezone.now()}
        ShardChange.objects.create(shard=first, **entry)
        ViewChange.objects.create(view=view, **entry)

        with CaptureQueriesContext(connection) as of_shard, transaction.atomic():
            drained = changes.drain_shard(first.pk)
        with CaptureQueriesContext(connection) as of_view, transaction.atomic():
            assert changes.drain_queue(view.pk) == drained

        assert drained[0].links == [[1]]
        assert len(of_shard) == len(of_view)
        assert not ShardChange.objects.exists()

    def test_one_shard_fails_and_keeps_its_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        want(2)
        refresh()
        Order.objects.filter(pk__in=[1, 9]).update(price=7)
        found, [first, second] = engine.request(CustomerTotal), shards_of(control().pk)
        inline.run_until_idle([first])  # it distributes the changes
        assert ShardChange.objects.filter(shard=second).exists()
        assert not ShardChange.objects.filter(shard=first).exists()

        engine.request_stop(found.pk)
        engine.close_finished_in_view(found.view_id)

        found.refresh_from_db()
        assert found.state == RefreshState.STOPPED
        refresh()

    def test_verify_finds_what_differs_and_nothing_that_waits(self) -> None:
        want(2)
        refresh()
        Order.objects.filter(pk=9).update(price=7)
        assert CustomerTotal.verify(leave_out_pending=True).differing == 0
        refresh()
        CustomerTotal.objects.filter(customer=1).delete()

        result = CustomerTotal.verify(repair=True)

        assert result.missing == 1
        assert differences(CustomerTotal) == []


class TestAnotherNumber:
    def test_dirty_keys_parked_keys_and_queues_are_forgotten(self) -> None:
        first, _second = want(2)
        refresh()
        Order.objects.filter(pk__in=[1, 9]).update(price=7)
        refresh_of_inserts = run(CustomerTotal, phases=["insert"])
        assert refresh_of_inserts.state == RefreshState.SUCCEEDED
        assert DirtyKeys.objects.exists()
        changes.enqueue({first.view_id}, [["1"]])
        changes.distribute(first.view_id)

        left = want(3)

        assert not DirtyKeys.objects.exists()
        assert not ShardChange.objects.exists()
        assert not ParkedKey.objects.exists()
        assert len(left) == 3
        assert {number for number, how in strategies(refresh()) if how == "full"} == {0, 1, 2}

    def test_a_change_that_waits_is_in_the_full_refreshes(self) -> None:
        _change_hands()

        refresh()

    @pytest.mark.finds_fault
    def test_without_them_it_would_be_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_ranges, "_begin", _move_only)
        _change_hands()

        assert run(CustomerTotal).state == RefreshState.SUCCEEDED
        assert differences(CustomerTotal) != []

    def test_it_waits_for_the_end_of_a_refresh_that_has_begun(self) -> None:
        want(2)
        found = engine.request(CustomerTotal, batch_size=1)
        engine.run_batch(due(CustomerTotal))

        assert len(want(3)) == 2

        let_time_pass()
        inline.run_until_idle(shards_of(found.view_id))
        assert len(want(3)) == 3
        refresh()

    def test_claims_never_decrease(self) -> None:
        want(3)
        refresh()
        before = sum(shard.claims for shard in shards())

        (shard,) = want(1)

        assert shard.claims == before
        refresh()

    def test_many_entries_are_replaced_by_one_even_if_they_count_for_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, _second = want(2)
        refresh()
        monkeypatch.setattr(long_queues, "MAX_QUEUED_CHANGES", 2)
        for _ in range(3):
            changes.enqueue({first.view_id}, "whatever the reason")
        changes.distribute(first.view_id)
        assert set(ShardChange.objects.values_list("count", flat=True)) == {0}

        engine.collapse_long_queues()

        assert ShardChange.objects.count() == 2
        assert strategies(refresh()) == {(0, "full"), (1, "full")}

    def test_entries_that_come_late_are_swept(self) -> None:
        _first, second = want(2)
        refresh()
        want(1)
        ShardChange.objects.create(
            shard_id=second.pk, links=[[1]], count=1, logged_at=timezone.now()
        )

        engine.collapse_long_queues()

        assert not ShardChange.objects.exists()

    def test_a_worker_that_distributes_late_leaves_a_lone_shard_its_changes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It found them while there were two, and slept until there was one, after its refresh."""
        want(2)
        refresh()
        Order.objects.filter(pk=1).update(price=7)
        found = engine.request(CustomerTotal)
        message = engine.close_finished(shards()[1].pk).message
        assert message

        def sleep(logged: ChangesLogged) -> list[str]:
            monkeypatch.setattr(batch, "await_changes", await_changes)
            want(1)
            inline.run_until_idle(shards_of(found.view_id))
            assert differences(CustomerTotal) == []
            Order.objects.filter(pk=1).update(price=70)
            return await_changes(logged)

        monkeypatch.setattr(batch, "await_changes", sleep)

        assert engine.run_batch(message).outcome is Outcome.UNKNOWN
        assert not ShardChange.objects.exists()
        assert ViewChange.objects.filter(view=found.view_id).exists()
        engine.collapse_long_queues()
        assert strategies(refresh()) == {(0, "by_keys")}

    def test_the_history_of_shards_that_stay_is_kept(self) -> None:
        want(2)
        found = refresh()

        want(3)

        assert PhaseRun.objects.filter(refresh=found).count() == 6


class TestOtherCode:
    """A release whose view has a phase with hooks, and so one shard; it is rolled back, too."""

    @pytest.mark.parametrize("rolls_back", [False, True])
    def test_the_shard_that_is_left_processes_what_another_had(
        self, monkeypatch: pytest.MonkeyPatch, rolls_back: bool
    ) -> None:
        want(2)
        refresh()
        Order.objects.filter(pk=9).update(price=7)
        assert run(CustomerTotal, phases=["insert"]).state == RefreshState.SUCCEEDED
        Order.objects.filter(pk=8).update(price=7)
        engine.move_log()
        changes.distribute(control().pk)
        assert set(DirtyKeys.objects.values_list("shard__number", flat=True)) == {1}
        claims = sum(shard.claims for shard in shards())

        with registry.preserved(), monkeypatch.context() as released:
            delete_with_hooks(released, CustomerTotal)
            engine.sync_shards()
            (shard,) = shards()
            assert shard.claims == claims
            assert not ShardChange.objects.exists()
            if not rolls_back:
                refresh()
        if rolls_back:
            assert {how for _number, how in strategies(refresh())} == {"full"}


def _change_hands() -> None:
    """A change waits in the queues of two shards, and another in dirty keys; then there are three.

    Each key is that of another shard then.
    """
    want(2)
    refresh()
    Order.objects.filter(pk=5).update(price=7)
    assert run(CustomerTotal, phases=["insert"]).state == RefreshState.SUCCEEDED
    Order.objects.filter(pk=6).update(price=7)
    engine.move_log()
    changes.distribute(control().pk)
    assert DirtyKeys.objects.exists()
    assert ShardChange.objects.exists()
    want(3)


def _move_only(shard: ViewShard, key_range: list[object] | None) -> None:
    """A shard gets another range, and keeps what it knew of the one before."""
    shard.key_range = key_range
    shard.checkpoints = shard.view.shards.get(number=0).checkpoints
    shard.save()


def test_keys_with_texts_are_split_where_no_session_decides_their_order() -> None:
    reason = one_shard_reason(plan_of(registry.find(CustomerStatus), engine.alias()))

    assert ("key field status is text" in reason) == (connection.vendor == "mysql")
