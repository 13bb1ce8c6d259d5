"""Views on change that need a refresh although nothing was logged."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from matviews import changes, engine
from matviews.engine import ChangePoller, DueRefresh
from matviews.engine.on_change import unlogged_work
from matviews.json_fields import UNTRACKED
from matviews.models import (
    ParkedKey,
    PhaseRun,
    Refresh,
    RefreshSchedule,
    TrackedTable,
    ViewChange,
    ViewControl,
    ViewShard,
)
from matviews.phases import Phase
from tests.helpers.engine import due, shard_of, travel
from tests.helpers.source_views import LABEL, sourced, sourced_up_to_date, windowed
from tests.helpers.view_classes import run
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

ALL = tuple(Phase)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def view(own_views: None) -> Iterator[type[Any]]:
    """A tracked view that is up to date, on change at once."""
    view = sourced_up_to_date()
    follow(view)
    yield view
    changes.remove(engine.alias())


def follow(view: type[Any]) -> None:
    control = ViewControl.objects.get(label=view._meta.label)
    RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")


def found() -> list[DueRefresh]:
    return list(engine.due_without_change())


def few() -> Any:
    return windowed().filter(value__gt=1000)


def never_built(view: type[Any]) -> None:
    ViewControl.objects.update(last_update=None)


def another_definition(view: type[Any]) -> None:
    ViewControl.objects.update(fingerprints=dict.fromkeys(Phase, "another"))
    set_checkpoints(view, lambda old: old._replace(fingerprint="another"))


def rows_of_several_definitions(view: type[Any]) -> None:
    """As after a refresh that was stopped in its middle."""
    set_checkpoints(view, lambda old: old._replace(fingerprint=None))


def tracked_only_now(view: type[Any]) -> None:
    ViewShard.objects.update(checkpoints={})


def untracked_when_it_ran(view: type[Any]) -> None:
    set_checkpoints(view, lambda _old: UNTRACKED)


def all_to_be_recomputed(view: type[Any]) -> None:
    """As after a batch by keys that the database could not read."""
    number = shard_of(view).drain_number + 1
    ViewShard.objects.update(
        drain_number=number, full_refresh_after=number, full_refresh_reason="unreadable"
    )


def failed(view: type[Any]) -> None:
    ViewControl.objects.update(failures=1, failed_phases=["update"])


def failed_in_a_phase_that_is_gone(view: type[Any]) -> None:
    ViewControl.objects.update(failures=1, failed_phases=["another"])


def parked_but_may_not_be(view: type[Any]) -> None:
    park(view, engine.now() + 60 * MINUTE)


def park(view: type[Any], retry_at: Any) -> None:
    shard, moment = shard_of(view), engine.now()
    ViewShard.objects.filter(pk=shard.pk).update(parked_count=1)
    ParkedKey.objects.create(
        shard=shard, phase="insert", key=[1], fingerprint="", message="", error_class="",
        first_seen=moment, last_seen=moment, retry_at=retry_at,
    )  # fmt: skip


def set_checkpoints(view: type[Any], change: Callable[[Any], Any]) -> None:
    shard = shard_of(view)
    shard.checkpoints = {phase: change(old) for phase, old in shard.checkpoints.items()}
    shard.save()


WITHOUT_CHANGE: list[tuple[Callable[[type[Any]], None], dict[str, Any]]] = [
    (never_built, {}),
    (another_definition, {}),
    (rows_of_several_definitions, {}),
    (tracked_only_now, {}),
    (untracked_when_it_ran, {}),
    (all_to_be_recomputed, {}),
    (failed, {}),
    (failed_in_a_phase_that_is_gone, {}),
    (parked_but_may_not_be, {"MAX_PARKED_KEYS": 0}),
]


def change(view: type[Any]) -> None:
    Item.objects.create(value=7)


def keys_marked(view: type[Any]) -> None:
    engine.mark_dirty(view, [Item.objects.all()[0].pk])


def all_marked(view: type[Any]) -> None:
    engine.mark_dirty(view)


def truncated(view: type[Any]) -> None:
    """As `mark_truncated` does; so do triggers that are installed or back."""
    changes.enqueue([ViewControl.objects.get(label=LABEL).pk], "it was truncated")


def parked_key_due(view: type[Any]) -> None:
    park(view, engine.now() - MINUTE)


LOGGED = [change, keys_marked, all_marked, truncated, parked_key_due]


class TestKinds:
    """Whatever a request would find to do, somebody who looks finds as well."""

    @pytest.mark.parametrize(("happens", "settings"), WITHOUT_CHANGE)
    def test_without_a_change(
        self, view: type[Any], happens: Callable[[type[Any]], None], settings: dict[str, Any]
    ) -> None:
        before = found()
        with override_settings(MATVIEWS=settings):
            happens(view)
            noticed, pending = found(), ChangePoller().poll()
            requested = [each.phases for each in noticed]
            for phases in requested:
                run(view, phases=phases)
            after = found()

        assert before == []
        assert pending == []
        assert noticed
        assert after == []
        assert view.is_fresh() is True

    @pytest.mark.parametrize("happens", LOGGED)
    def test_with_one_a_poller_finds_it(
        self, view: type[Any], happens: Callable[[type[Any]], None]
    ) -> None:
        happens(view)

        assert ChangePoller().poll() == [DueRefresh(LABEL, ALL)]
        assert found() == []

    def test_a_definition_that_was_rolled_back_half_built(
        self, view: type[Any], settings: Any
    ) -> None:
        settings.MATVIEWS = {"BATCH_SIZE_INITIAL": 1, "BATCH_SIZE_MIN": 1, "BATCH_SIZE_MAX": 1}
        view.source = classmethod(lambda cls: few())
        refresh = engine.request(view, phases=["delete"])
        engine.run_batch(due(view))
        half = view._base_manager.count()
        engine.request_stop(refresh.pk)
        engine.close_finished_in_view(refresh.view_id)
        view.source = classmethod(lambda cls: windowed())
        noticed = found()
        for each in noticed:
            run(view, phases=each.phases)

        assert half == 2
        assert noticed == [DueRefresh(LABEL, ALL)]
        assert view._base_manager.count() == 3
        assert found() == []


class TestUnlogged:
    """Without triggers, changes cannot be seen: so now and then it is refreshed."""

    def test_a_view_without_triggers_is_refreshed_at_intervals(self, view: type[Any]) -> None:
        changes.remove(engine.alias())
        TrackedTable.objects.all().delete()
        ViewChange.objects.all().delete()
        at_first = found()
        travel(unlogged_work.UNLOGGED_INTERVAL)
        later = found()
        run(view)

        assert at_first == []
        assert later == [DueRefresh(LABEL, ALL)]
        assert found() == []

    def test_long_refreshes_are_rarer(self, view: type[Any]) -> None:
        PhaseRun.objects.update(merged_into=None)
        Refresh.objects.update(finished_at=F("requested_at") + 2 * MINUTE)
        changes.remove(engine.alias())
        TrackedTable.objects.all().delete()
        travel(unlogged_work.UNLOGGED_INTERVAL)

        assert found() == []
        travel(unlogged_work.UNLOGGED_SHARE * 2 * MINUTE)
        assert found() == [DueRefresh(LABEL, ALL)]


class TestLeftAlone:
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
    def test_a_view_that_must_not_begin(self, view: type[Any], state: dict[str, Any]) -> None:
        times = {"now": engine.now(), "soon": engine.now() + MINUTE}
        values = {name: times.get(str(value), value) for name, value in state.items()}
        ViewControl.objects.update(last_update=None, **values)

        assert found() == []

    def test_a_view_that_others_follow(self, view: type[Any]) -> None:
        never_built(view)

        assert list(engine.due_without_change([])) == []
        assert found() != []

    def test_a_failure_of_phases_that_no_schedule_requests(self, view: type[Any]) -> None:
        RefreshSchedule.objects.update(phases=["insert"])
        failed(view)

        assert found() == []

    def test_it_takes_as_many_statements_for_two_views(self, view: type[Any]) -> None:
        never_built(view)
        counts = []
        for others in ([], ["Second"]):
            for name in others:
                follow(sourced(name=name))
            found()  # what a process learns once
            with CaptureQueriesContext(connection) as captured:
                found()
            counts.append(len(captured))

        assert len(found()) == 2
        assert counts[0] == counts[1]
