"""Following changes: in this process, and by the pulse."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from celery import Task
from django.db import InterfaceError, OperationalError
from django.test import override_settings

from matviews import changes, engine, tasks
from matviews.engine import Lookout
from matviews.models import Heartbeat, Refresh, RefreshSchedule, ViewControl
from matviews.phases import Phase
from matviews.states import RefreshState
from matviews.tasks import following, heartbeat, pulses
from matviews.tasks.expiry import headers_for
from matviews.tasks.following import Follower
from matviews.tasks.periodic import PULSE, desired_tasks, our_tasks
from matviews.tasks.problems import check_health
from matviews.tasks.pulses import Pulse
from tests.helpers.source_views import sourced_up_to_date
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def view(own_views: None) -> Iterator[type[Any]]:
    """A tracked view that is up to date, on change at once."""
    heartbeat._LOOKS.clear()
    view = sourced_up_to_date()
    control = ViewControl.objects.get(label=view._meta.label)
    RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")
    yield view
    changes.remove(engine.alias())


def follow_until_fresh(view: type[Any], limit: int = 100) -> None:
    """Follow in this process until no change is pending, for so many looks at most."""
    looks = iter(range(limit))
    Follower(
        stop=lambda: next(looks, None) is None or bool(view.is_fresh()), tell_alive=lambda: None
    ).run()


class TestFollower:
    def test_it_refreshes_after_a_change_and_records_that_it_looks(self, view: type[Any]) -> None:
        Item.objects.create(value=77)

        follow_until_fresh(view)

        assert view._base_manager.filter(value=77).exists()
        assert Heartbeat.objects.get().followed_at is not None

    def test_it_goes_on_with_what_a_process_before_it_left(self, view: type[Any]) -> None:
        Item.objects.create(value=77)
        left = engine.request(view)

        follow_until_fresh(view)

        assert Refresh.objects.get(pk=left.pk).state == RefreshState.SUCCEEDED

    def test_two_at_once_do_no_harm(self, view: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """The other does all the work between this one's look and its batch."""
        one, other = (Follower(stop=lambda: False, tell_alive=lambda: None) for _ in range(2))
        run_batch, before = engine.run_batch, Refresh.objects.count()
        meanwhile = iter([other._work])

        def second(message: engine.Message) -> engine.BatchReport:
            for work in meanwhile:
                work()
            return run_batch(message)

        monkeypatch.setattr(engine, "run_batch", second)
        Item.objects.create(value=77)
        one._work()

        assert view._base_manager.filter(value=77).count() == 1
        assert Refresh.objects.count() == before + 1
        assert Refresh.objects.order_by("-pk")[0].state == RefreshState.SUCCEEDED
        assert one._running is not None
        assert one._running.views == []

    def test_workers_do_the_work_if_they_are_to(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = list[int]()
        monkeypatch.setattr(following, "dispatch_all", sent.extend)
        Item.objects.create(value=77)
        looks = iter(range(3))

        Follower(
            stop=lambda: next(looks, None) is None, tell_alive=lambda: None, enqueue=True
        ).run()

        requested = Refresh.objects.order_by("-pk")[0]
        assert requested.state == RefreshState.OPEN
        assert sent == [requested.view_id]

    def test_it_outlasts_a_database_that_refuses(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(following, "FIRST_RETRY", 1e-6)
        monkeypatch.setattr(following, "LAST_RETRY", 2e-6)
        caplog.set_level("INFO", "matviews")
        look, faults = Lookout.look, iter([OperationalError("gone"), InterfaceError("closed")])

        def refused(lookout: Lookout) -> Any:
            for fault in faults:
                raise fault
            return look(lookout)

        monkeypatch.setattr(Lookout, "look", refused)
        Item.objects.create(value=77)

        follow_until_fresh(view)

        assert view._base_manager.filter(value=77).exists()
        assert sum("the database refused" in message for message in caplog.messages) == 1
        assert sum("can be reached again" in message for message in caplog.messages) == 1

    def test_after_an_outage_it_goes_on_with_what_is_open(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The batch that was lost is somebody's to do again."""
        monkeypatch.setattr(following, "FIRST_RETRY", 1e-6)
        run_batch, faults = engine.run_batch, iter([OperationalError("gone")])

        def lost(message: engine.Message) -> engine.BatchReport:
            for fault in faults:
                raise fault
            return run_batch(message)

        monkeypatch.setattr(engine, "run_batch", lost)
        Item.objects.create(value=77)

        follow_until_fresh(view)

        assert view._base_manager.filter(value=77).exists()

    def test_it_is_alive_after_each_batch(self, view: type[Any]) -> None:
        Item.objects.create(value=77)
        signs = list[int]()
        one = Follower(stop=lambda: False, tell_alive=lambda: signs.append(1))
        one._work()

        assert signs


class TestPulse:
    def test_an_outage_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refused(_lookout: Lookout) -> Any:
            raise OperationalError("gone")

        monkeypatch.setattr(Lookout, "look", refused)
        tasks.pulse()

        assert [record.exc_info for record in caplog.records] == [None]
        assert "no look for changes" in caplog.text

    @override_settings(CELERY_TASK_ALWAYS_EAGER=True)
    def test_it_requests_what_is_due(self, view: type[Any]) -> None:
        Item.objects.create(value=77)

        tasks.pulse()
        requested = Refresh.objects.order_by("-pk")[0]
        tasks.pulse()

        assert requested.origin == "schedule"
        assert requested.phases == ["insert", "update", "delete"]
        assert Refresh.objects.order_by("-pk")[0] == requested
        assert Heartbeat.objects.get().pulsed_at is not None

    def test_beat_sends_it_only_while_a_schedule_is_on_change(self, view: type[Any]) -> None:
        assert desired_tasks()[PULSE].interval == (1, "seconds")
        with override_settings(MATVIEWS={"PULSE_SECONDS": 0}):
            assert PULSE not in desired_tasks()

        RefreshSchedule.objects.update(enabled=False)

        assert PULSE not in desired_tasks()

    def test_a_day_without_workers_leaves_a_few_dozen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, taken, clock = Pulse(), [True], mock.Mock()
        monkeypatch.setattr(pulses, "time", clock)
        monkeypatch.setattr(pulses, "_are_taken", lambda: taken[0])

        def sent(seconds: range) -> int:
            count = 0
            for moment in seconds:
                clock.monotonic.return_value = moment
                count += task._may_send()
            return count

        assert sent(range(3600)) == 3600
        taken[0] = False
        assert 24 <= sent(range(3600, 90_000)) <= 100
        taken[0] = True
        assert sent(range(90_000, 90_060)) == 60

    def test_what_workers_have_recorded_lately_is_taken(self) -> None:
        assert not pulses._are_taken()
        heartbeat.record(pulsed_at=engine.now())
        assert pulses._are_taken()
        heartbeat.record(pulsed_at=engine.now() - pulses.TRUSTED)
        assert not pulses._are_taken()

    def test_only_beat_sends_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = Pulse()
        monkeypatch.setattr(Task, "apply_async", lambda *_arguments, **_options: "sent")
        monkeypatch.setattr(task, "_may_send", lambda: False)

        assert task.apply_async(headers=json.loads(headers_for(60))) is None
        assert task.apply_async() == "sent"


class TestWithoutChange:
    """What no change of the source asks for, `matviews.maintain` requests."""

    def requested(self) -> list[list[str]]:
        last = Refresh.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        tasks._follow_definitions()
        return list(Refresh.objects.filter(pk__gt=last).values_list("phases", flat=True))

    def test_a_view_that_is_up_to_date_needs_nothing(self, view: type[Any]) -> None:
        assert self.requested() == []

    def test_a_phase_that_never_succeeded(self, view: type[Any]) -> None:
        ViewControl.objects.update(last_update=None)

        assert self.requested() == [["update"]]
        assert self.requested() == []  # it is open

    def test_a_definition_that_has_changed(self, view: type[Any]) -> None:
        ViewControl.objects.update(fingerprints=dict.fromkeys(Phase, "another"))

        assert self.requested() == [["insert", "update", "delete"]]

    @pytest.mark.parametrize(
        "held",
        [{"paused": True}, {"enabled": False}, {"suspended_at": "now"}, {"retry_at": "soon"}],
    )
    def test_a_view_that_must_not_begin(self, view: type[Any], held: dict[str, Any]) -> None:
        times = {"now": engine.now(), "soon": engine.now() + timedelta(minutes=1)}
        values = {name: times.get(str(value), value) for name, value in held.items()}
        ViewControl.objects.update(last_update=None, **values)

        assert self.requested() == []

    def test_a_schedule_by_time_is_left_to_beat(self, view: type[Any]) -> None:
        RefreshSchedule.objects.update(on_change=False, every=1, period="hours")
        ViewControl.objects.update(last_update=None)

        assert self.requested() == []


class TestHealth:
    @pytest.fixture(autouse=True)
    def _maintained(self, view: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Maintenance runs, and the periodic task of pulses is an hour old."""
        monkeypatch.setattr(heartbeat, "interruption", lambda: None)
        old = engine.now() - timedelta(hours=1)
        our_tasks().filter(name=PULSE).update(date_changed=old)

    def kinds(self) -> dict[str, str]:
        return {each.kind: each.state.value for each in check_health().problems if not each.view}

    def test_nobody_looks(self, view: type[Any]) -> None:
        assert self.kinds() == {"nobody looks": "degraded"}
        for looker in ("pulsed_at", "followed_at"):
            heartbeat.record(**{looker: engine.now()})
            assert self.kinds() == {}
            heartbeat.record(**{looker: engine.now() - heartbeat.MAX_SILENCE})
            assert self.kinds() == {"nobody looks": "degraded"}

        RefreshSchedule.objects.update(enabled=False)

        assert self.kinds() == {}

    def test_the_first_pulse_has_time_to_be_sent(self, view: type[Any]) -> None:
        our_tasks().filter(name=PULSE).update(date_changed=engine.now())
        at_first = self.kinds()
        our_tasks().filter(name=PULSE).update(total_run_count=5)

        assert at_first == {}
        assert self.kinds() == {"nobody looks": "degraded"}

    @pytest.mark.parametrize("seconds", [0, 1])
    def test_it_says_what_to_start(self, view: type[Any], seconds: int) -> None:
        with override_settings(MATVIEWS={"PULSE_SECONDS": seconds}):
            (problem,) = [each for each in check_health().problems if not each.view]

        assert ("matviews.pulse" if seconds else "--follow") in problem.text

    def test_where_nothing_runs_a_pulse_is_not_missed(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = heartbeat.Interruption("beat", "Beat is silent.")
        monkeypatch.setattr(heartbeat, "interruption", lambda: found)

        assert self.kinds() == {"beat": "broken"}
        with override_settings(MATVIEWS={"PULSE_SECONDS": 0}):
            assert self.kinds() == {"beat": "broken", "nobody looks": "degraded"}
