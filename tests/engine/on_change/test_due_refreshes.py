"""Which refreshes are due on change."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import Value
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine
from matviews.changes import followed
from matviews.databases.clock import UtcNow
from matviews.engine import ChangePoller, DueRefresh
from matviews.models import (
    Change,
    ParkedKey,
    Refresh,
    RefreshSchedule,
    ViewChange,
    ViewControl,
    ViewShard,
    intervals_of,
)
from matviews.phases import Phase
from matviews.registry import registry
from matviews.states import RefreshState
from tests.helpers.engine import held_open, shard_of, travel, without_sqlite
from tests.helpers.source_views import LABEL, sourced, sourced_up_to_date
from tests.helpers.view_classes import run
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

ALL = tuple(Phase)
DUE = [DueRefresh(LABEL, ALL)]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def view(own_views: None) -> Iterator[type[Any]]:
    """A tracked view that is up to date, without schedules."""
    view = sourced_up_to_date()
    yield view
    changes.remove(engine.alias())


def on_change(view: type[Any], seconds: int | None = 0, **others: Any) -> RefreshSchedule:
    return RefreshSchedule.objects.create(
        view=control_of(view), on_change=True, every=seconds, period="seconds", **others
    )


def control_of(view: type[Any]) -> ViewControl:
    return ViewControl.objects.get(label=view._meta.label)


def look() -> list[DueRefresh]:
    return ChangePoller().poll()


class TestPendingChanges:
    def test_nothing_pending_is_found_by_one_statement(self, view: type[Any]) -> None:
        on_change(view)
        look()

        with CaptureQueriesContext(connection) as captured:
            found = look()

        assert found == []
        assert len(captured) == 1

    @pytest.mark.only_on("postgres", reason="only its planner would inline it")
    def test_what_is_pending_is_found_once_and_not_for_each_view(self, view: type[Any]) -> None:
        """Otherwise 300 idle views take 30 ms, and 1,000 ten times as long."""
        on_change(view)
        with CaptureQueriesContext(connection) as captured:
            look()
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {captured[-1]['sql']}")
            plan = "\n".join(line for (line,) in cursor.fetchall())

        assert plan.count("CTE pending") == 1
        assert "CTE Scan on pending" in plan

    def test_a_change_is_due_wherever_it_waits(self, view: type[Any]) -> None:
        """In the log, in the queue, and as the dirty keys of the phases that lack it."""
        on_change(view)
        Item.objects.create(value=7)
        in_log = look()
        engine.move_log()
        in_queue = look()
        run(view, phases=["delete"])
        drained = look()
        run(view)

        assert (in_log, in_queue, drained) == (DUE, DUE, DUE)
        assert look() == []

    def test_only_phases_that_lack_the_change_are_due(self, view: type[Any]) -> None:
        on_change(view, phases=["delete"])
        on_change(view, phases=["insert"])
        Item.objects.create(value=7)
        both = look()
        run(view, phases=["delete"])

        assert both == [DueRefresh(LABEL, (Phase.DELETE,)), DueRefresh(LABEL, (Phase.INSERT,))]
        assert look() == [DueRefresh(LABEL, (Phase.INSERT,))]

    def test_other_views_and_schedules_are_left_alone(self, view: type[Any]) -> None:
        RefreshSchedule.objects.create(view=control_of(view), every=1, period="hours")
        on_change(view, enabled=False)
        Item.objects.create(value=7)

        assert look() == []
        assert ChangePoller(["sample.Another"]).poll() == []

    def test_a_view_with_an_open_refresh_is_due_after_it(self, view: type[Any]) -> None:
        on_change(view)
        Item.objects.create(value=7)
        requested = engine.request(view)
        meanwhile = look()
        Refresh.objects.filter(pk=requested.pk).update(state=RefreshState.STOPPED)

        assert meanwhile == []
        assert look() == DUE

    @pytest.mark.parametrize(
        "state",
        [
            {"enabled": False},
            {"paused": True},
            {"suspended_at": "now"},
            {"retry_at": "soon"},
            {"quiet_from": "00:00", "quiet_until": "23:59:59", "quiet_zone": "UTC"},
        ],
    )
    def test_a_view_that_must_not_begin_is_left_out(
        self, view: type[Any], state: dict[str, Any]
    ) -> None:
        on_change(view)
        Item.objects.create(value=7)
        times = {"now": engine.now(), "soon": engine.now() + MINUTE}
        values = {name: times.get(str(value), value) for name, value in state.items()}

        ViewControl.objects.filter(label=LABEL).update(**values)

        assert look() == []

    def test_a_failing_view_is_due_once_it_may_try_again(self, view: type[Any]) -> None:
        on_change(view)
        Item.objects.create(value=7)
        ViewControl.objects.filter(label=LABEL).update(failures=1, retry_at=engine.now() + MINUTE)
        travel(2 * MINUTE)

        assert look() == DUE

    def test_a_parked_key_is_due_when_it_is_to_be_tried_again(self, view: type[Any]) -> None:
        on_change(view, phases=["insert"])
        shard, moment = shard_of(view), engine.now()
        ViewShard.objects.filter(pk=shard.pk).update(parked_count=1)
        ParkedKey.objects.create(
            shard=shard, phase="insert", key=[1], fingerprint="", message="", error_class="",
            first_seen=moment, last_seen=moment, retry_at=moment + MINUTE,
        )  # fmt: skip
        parked = look()
        ParkedKey.objects.update(retry_at=moment)

        assert parked == []
        assert look() == [DueRefresh(LABEL, (Phase.INSERT,))]

    def test_a_long_log_of_other_tables_hides_no_change(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_change(view)
        monkeypatch.setattr(followed, "MAX_READ", 3)
        followed._statement.cache_clear()
        Change.objects.bulk_create(Change(table="elsewhere", links=None) for _ in range(5))
        Item.objects.create(value=7)

        found = look()
        followed._statement.cache_clear()

        assert found == DUE


class TestDelay:
    def test_a_refresh_is_due_so_long_after_the_first_change(self, view: type[Any]) -> None:
        on_change(view, 60)
        Item.objects.create(value=7)
        at_once = look()
        travel(timedelta(seconds=50))
        Item.objects.create(value=8)
        before = look()
        travel(timedelta(seconds=11))

        assert (at_once, before) == ([], [])
        assert look() == DUE

    @without_sqlite
    def test_it_counts_from_when_the_change_could_be_seen(self, view: type[Any]) -> None:
        """Not from when a long transaction logged it."""
        on_change(view, 60)

        def change() -> None:
            Item.objects.create(value=7)
            Change.objects.update(logged_at=engine.now() - 30 * MINUTE)

        with held_open(change):
            Item.objects.create(value=8)
            run(view)
        found = look()
        travel(2 * MINUTE)

        assert found == []
        assert look() == DUE

    def test_what_is_not_due_yet_takes_no_more_statements(self, view: type[Any]) -> None:
        on_change(view, 60)
        Item.objects.create(value=7)
        poller = ChangePoller()
        poller.poll()

        with CaptureQueriesContext(connection) as captured:
            assert poller.poll() == []

        assert len(captured) == 1

    @pytest.mark.parametrize("seconds", [0, 60])
    def test_many_views_are_judged_by_as_many_statements_as_one(
        self, view: type[Any], seconds: int
    ) -> None:
        """However many changes wait for them, and wherever."""
        on_change(view, seconds)
        counts, dues = [], []
        for others in ([], ["Second", "Third"]):
            for name in others:
                another = sourced(name=name)
                changes.install(engine.alias())
                run(another)
                on_change(another, seconds)
            Item.objects.create(value=7)
            run(view, phases=["delete"])
            Item.objects.create(value=8)
            travel(timedelta(seconds=61))
            look()  # what a process learns once
            with CaptureQueriesContext(connection) as captured:
                dues.append(len(look()))
            counts.append(len(captured))

        assert dues == [1, 3]
        assert counts[0] == counts[1]
        assert counts[0] <= 7

    def test_of_what_waits_only_the_queues_of_these_views_are_read(self, view: type[Any]) -> None:
        control = control_of(view)
        ViewChange.objects.create(view_id=control.pk + 1_000, table="", links="marked", count=0)
        ViewChange.objects.create(view_id=control.pk, table="", links="marked", count=0)

        assert changes.oldest_waiting([control.pk]).keys() == {control.pk}
        assert changes.oldest_waiting().keys() == {control.pk, control.pk + 1_000}

    def test_a_change_is_due_at_once_though_another_phase_has_some_left(
        self, view: type[Any]
    ) -> None:
        on_change(view, phases=["insert"])
        Item.objects.create(value=7)
        run(view, phases=["insert"])
        poller = ChangePoller()
        before = poller.poll()
        Item.objects.create(value=8)

        assert before == []
        assert poller.poll() == [DueRefresh(LABEL, (Phase.INSERT,))]

    @override_settings(USE_TZ=False, TIME_ZONE="America/New_York")
    def test_a_view_that_failed_is_looked_at_again_when_its_wait_is_over(
        self, view: type[Any]
    ) -> None:
        on_change(view)
        Item.objects.create(value=7)
        shown = []
        for wait in (MINUTE, -MINUTE):
            ViewControl.objects.update(retry_at=UtcNow() + Value(wait))
            shown.append(look())

        assert shown == [[], DUE]


@pytest.mark.parametrize(
    ("schedules", "promised"),
    [
        ([(5, "seconds", True, []), (1, "days", False, ["delete"])], [timedelta(seconds=30)]),
        ([(0, "seconds", True, ["insert"]), (None, "", False, [])], [timedelta(seconds=30), None]),
        ([(2, "minutes", True, []), (None, "", True, [])], [2 * MINUTE, None]),
    ],
)
def test_what_schedules_promise(schedules: Any, promised: Any) -> None:
    assert intervals_of(schedules) == promised


class TestTarget:
    def test_a_refresh_is_due_while_it_can_still_be_in_time(self, view: type[Any]) -> None:
        """By what the last refreshes took, twice."""
        ViewControl.objects.filter(label=LABEL).update(freshness_target=10 * MINUTE)
        on_change(view, None)
        _took(view, 2 * MINUTE)
        Item.objects.create(value=7)
        travel(5 * MINUTE)
        before = look()
        travel(2 * MINUTE)

        assert before == []
        assert look() == DUE

    def test_how_long_refreshes_take_is_not_read_at_each_look(self, view: type[Any]) -> None:
        ViewControl.objects.filter(label=LABEL).update(freshness_target=10 * MINUTE)
        on_change(view, None)
        Item.objects.create(value=7)
        poller, counts = ChangePoller(), []
        for _look in range(2):
            poller._again.clear()
            with CaptureQueriesContext(connection) as captured:
                poller.poll()
            counts.append(len(captured))

        assert counts[0] == counts[1] + 1

    def test_a_view_without_a_target_is_never_due(self, view: type[Any]) -> None:
        on_change(view, None)
        Item.objects.create(value=7)
        travel(60 * MINUTE)

        assert look() == []


def _took(view: type[Any], time: timedelta) -> None:
    for refresh in Refresh.objects.filter(view=control_of(view)):
        end = refresh.requested_at + time
        Refresh.objects.filter(pk=refresh.pk).update(finished_at=end)


class TestUntracked:
    def test_an_untracked_view_is_never_due(self, own_views: None) -> None:
        view = sourced(options={"tracking": False})
        on_change(view)
        engine.mark_dirty(view)

        assert look() == []
        assert engine.on_change_obstacle(registry.find(view)) == "MatviewMeta.tracking is False"
