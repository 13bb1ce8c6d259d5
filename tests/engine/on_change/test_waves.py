"""Views on change that read others: their order, what they wait for, and what each follows."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from matviews import engine
from matviews.engine.on_change import waves
from matviews.models import Origin, PhaseRun, Refresh
from matviews.states import RefreshState
from tests.helpers.engine import travel
from tests.helpers.view_graphs import CHAIN, DIAMOND, Views, built, label

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

SIDES = {"A": "", "B": "", "C": "AB"}
MINUTE = timedelta(minutes=1)


@pytest.fixture
def diamond() -> Iterator[Views]:
    with built(DIAMOND) as views:
        yield views


@pytest.fixture
def sides() -> Iterator[Views]:
    """Two views of the same table, and one that reads both."""
    with built(SIDES) as views:
        yield views


def open_refresh(views: Views, name: str) -> Refresh:
    return engine.request(label(name))


class TestOrder:
    def test_a_chain_follows_in_order(self) -> None:
        with built(CHAIN) as views:
            views.change()

            assert views.settle() == "ABCDE"
            assert views.is_right()

    def test_a_diamond_is_refreshed_once(self, diamond: Views) -> None:
        diamond.change()

        assert diamond.settle() == "ABCD"
        assert diamond.is_right()

    def test_one_look_has_the_views_upstream_first(self, sides: Views) -> None:
        """Whatever the order of their schedules: those that are due at once, too."""
        sides.change(1)
        sides.look_and_run()
        sides.change(2)
        travel(MINUTE)

        assert sides.look() == "ABC"

    def test_a_view_without_neighbours_is_looked_at_as_before(self) -> None:
        with built({"A": "", "B": ""}) as views:
            views.set("A", paused=True)
            views.change()

            with CaptureQueriesContext(connection) as captured:
                due = views.look()

            assert due == "B"
            assert len(captured) == 2  # the look, and the schedules


class TestWaiting:
    def test_a_view_waits_for_a_side_that_is_pending(self, sides: Views) -> None:
        sides.change()
        engine.move_log()
        views = iter([sides.poller.poll()])
        due = [each.label for each in next(views)]
        run_one(sides, "A")

        assert due == [label("A"), label("B")]
        assert sides.look() == "B"

    def test_a_view_waits_for_a_side_that_is_running(self, sides: Views) -> None:
        sides.change()
        run_one(sides, "A")
        open_refresh(sides, "B")
        waiting = sides.look()
        run_one(sides, "B")

        assert waiting == ""
        assert sides.settle() == "C"
        assert sides.is_right()

    def test_while_it_waits_a_look_is_one_statement(self, sides: Views) -> None:
        sides.change()
        run_one(sides, "A")
        open_refresh(sides, "B")
        sides.look()

        with CaptureQueriesContext(connection) as captured:
            waiting = sides.look()
        run_one(sides, "B")

        assert (waiting, len(captured)) == ("", 1)
        assert sides.look() == "C"  # at once, not when it is checked again

    def test_how_many_views_wait_changes_no_number_of_statements(self) -> None:
        counts = []
        with built({"A": "", "B": "", **dict.fromkeys("CDEF", "AB")}) as views:
            views.change()
            run_one(views, "A")
            open_refresh(views, "B")
            views.look()  # what a process learns once
            for paused in (True, False):
                for name in "DEF":
                    views.set(name, paused=paused)
                views.poller = engine.ChangePoller()
                with CaptureQueriesContext(connection) as captured:
                    assert views.look() == ""
                counts.append(len(captured))

        assert counts[0] == counts[1]
        assert counts[0] <= 7

    @pytest.mark.parametrize("delay", [0, 60])
    def test_it_waits_no_longer_than_its_delay(self, delay: int) -> None:
        with built(SIDES, delay) as views:
            views.change()
            run_one(views, "A")
            open_refresh(views, "B")
            shown = []
            for seconds in (delay + 5, max(delay, 10)):
                travel(timedelta(seconds=seconds))
                views.poller = engine.ChangePoller()  # the time of processes does not travel
                shown.append(views.look())

            assert shown == ["", "C"]

    @pytest.mark.parametrize(
        "state",
        [
            {"paused": True},
            {"enabled": False},
            {"suspended_at": "now"},
            {"failures": 1, "retry_at": "soon"},
            {"quiet_from": "00:00", "quiet_until": "23:59:59", "quiet_zone": "UTC"},
        ],
    )
    def test_a_side_that_cannot_begin_is_not_waited_for(
        self, sides: Views, state: dict[str, Any]
    ) -> None:
        sides.change()
        run_one(sides, "A")
        times = {"now": engine.now(), "soon": engine.now() + MINUTE}
        sides.set("B", **{name: times.get(str(value), value) for name, value in state.items()})

        assert sides.look() == "C"

    def test_a_side_that_goes_on_and_on_is_not_waited_for(self, sides: Views) -> None:
        """Its changes are newer than those that the view has to process."""
        sides.change()
        run_one(sides, "A")
        run_one(sides, "B")
        travel(timedelta(seconds=1))
        sides.change()
        open_refresh(sides, "B")

        assert "C" in sides.look()

    def test_a_side_that_is_not_due_for_long_is_not_waited_for(self, sides: Views) -> None:
        sides.control("B").schedules.update(every=3600)
        sides.change()
        run_one(sides, "A")

        assert sides.look() == "C"


class TestCauses:
    def test_what_a_dependent_refresh_follows(self, diamond: Views) -> None:
        diamond.change()
        diamond.settle()
        first, left, right, last = (diamond.last(name) for name in "ABCD")

        assert (first.origin, first.upstream_refreshes) == (Origin.SCHEDULE, [])
        assert {left.origin, right.origin, last.origin} == {Origin.DEPENDENCY}
        assert left.upstream_refreshes == right.upstream_refreshes == [first.pk]
        assert last.upstream_refreshes == sorted([left.pk, right.pk])
        assert not last.waits_for_upstream

    def test_a_change_of_its_own_table_is_none(self) -> None:
        with built(SIDES) as views:
            views.set("A", paused=True)
            views.change()
            views.settle()

            assert views.last("C").upstream_refreshes == [views.last("B").pk]
            assert views.last("B").origin == Origin.SCHEDULE

    def test_another_try_follows_the_same(self, diamond: Views) -> None:
        """Its changes are drained, so nothing shows any more where they came from."""
        diamond.change()
        run_one(diamond, "A")
        follow = diamond.look_and_run()
        again = diamond.last("D")
        PhaseRun.objects.filter(refresh=again).delete()
        schedule = diamond.control("D").schedules.get()

        assert follow == "BC"
        followed = Refresh.objects.filter(pk__in=again.upstream_refreshes)
        assert waves._upstream_before(schedule) == list(followed)

    @pytest.mark.parametrize(("before", "follows"), [(1, "B"), (120, "")])
    def test_a_batch_that_committed_while_the_view_was_computed_has_caused_it(
        self, sides: Views, before: int, follows: str
    ) -> None:
        """It began earlier. One that began long before cannot have: someone has written by hand."""
        sides.set("A", paused=True)
        sides.change()
        run_one(sides, "B")
        computed = sides.control("C").insert_as_of
        assert computed
        moment = computed - timedelta(seconds=before)
        PhaseRun.objects.filter(refresh__view=sides.control("B")).update(last_batch_at=moment)
        sides.settle()

        assert sides.last("C").upstream_refreshes == [sides.last(name).pk for name in follows]

    def test_the_wave_of_each_is_the_same(self, diamond: Views) -> None:
        diamond.change()
        diamond.settle()
        found = {tuple(each.pk for each in engine.wave_of(diamond.last(name))) for name in "ABCD"}

        assert found == {tuple(diamond.last(name).pk for name in "ABCD")}

    def test_a_wave_has_no_others(self, diamond: Views) -> None:
        diamond.change()
        diamond.settle()
        before = [diamond.last(name).pk for name in "ABCD"]
        diamond.change()
        diamond.settle()

        assert [each.pk for each in engine.wave_of(Refresh.objects.get(pk=before[1]))] == before
        assert [each.rows_written for each in engine.wave_of(diamond.last("A"))] == [1, 1, 1, 1]

    def test_a_wave_without_what_was_deleted(self, diamond: Views) -> None:
        diamond.change()
        diamond.settle()
        diamond.last("A").delete()
        later = [diamond.last(name).pk for name in "BCD"]

        assert [each.pk for each in engine.wave_of(diamond.last("D"))] == later


def run_one(views: Views, name: str) -> None:
    from tests.helpers.view_classes import run

    assert run(label(name)).state == RefreshState.SUCCEEDED
