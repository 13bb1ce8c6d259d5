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
from matviews.engine import ChangePoller
from matviews.engine.batches.claim import claim
from matviews.models import Heartbeat, Refresh, RefreshSchedule, ViewControl
from matviews.states import RefreshState
from matviews.tasks import following, heartbeat, polling, pulses
from matviews.tasks.expiry import headers_for
from matviews.tasks.following import Follower
from matviews.tasks.periodic import PULSE, desired_tasks, our_tasks
from matviews.tasks.problems import check_health
from matviews.tasks.pulses import Pulse
from tests.helpers.engine import due, shard_of, travel
from tests.helpers.source_views import LABEL, sourced_up_to_date
from tests.sample.models import Item

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def view(own_views: None) -> Iterator[type[Any]]:
    """A tracked view that is up to date, on change at once."""
    heartbeat._POLLS.clear()
    view = sourced_up_to_date()
    control = ViewControl.objects.get(label=view._meta.label)
    RefreshSchedule.objects.create(view=control, on_change=True, every=0, period="seconds")
    yield view
    changes.remove(engine.alias())


def follow_until_fresh(view: type[Any], limit: int = 100) -> None:
    """Follow in this process until no change is pending, for so many looks at most."""
    looks = iter(range(limit))
    Follower(
        stop=lambda: next(looks, None) is None or bool(view.is_fresh()), report_alive=lambda: None
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

    @pytest.mark.parametrize("claimed", [False, True])
    def test_it_takes_up_later_what_others_have_left(
        self, view: type[Any], claimed: bool, settings: Any
    ) -> None:
        """Messages that were lost, and batches whose workers were killed: after a lease."""
        settings.MATVIEWS = {"LEASE": 60.0}
        one = Follower(stop=lambda: False, report_alive=lambda: None)
        one._work()
        engine.mark_dirty(view)
        left = engine.request(view)
        if claimed:
            assert claim(due(view))
        states = []
        for seconds in (1, 61):
            travel(timedelta(seconds=seconds))
            one._next_check = 0.0
            one._work()
            states.append(Refresh.objects.get(pk=left.pk).state)

        assert states == [RefreshState.OPEN, RefreshState.SUCCEEDED]

    def test_looks_that_take_long_come_seldom(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, waits = [0.0], list[float]()

        def look(_poller: ChangePoller) -> list[int]:
            clock[0] += 0.3
            return []

        monkeypatch.setattr(following, "request_due", look)
        timer = mock.Mock(monotonic=lambda: clock[0], sleep=waits.append)
        monkeypatch.setattr(following, "time", timer)
        Follower(stop=lambda: len(waits) == 3, report_alive=lambda: None).run()

        assert waits == pytest.approx([1.2] * 3)

    def test_it_looks_seldom_for_what_others_have_left(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check = mock.Mock(return_value=[])
        monkeypatch.setattr(engine, "abandoned_views", check)
        one = Follower(stop=lambda: False, report_alive=lambda: None)
        for _look in range(5):
            one._work()

        assert check.call_count == 1

    def test_two_at_once_do_no_harm(self, view: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """The other does all the work between this one's look and its batch."""
        one, other = (Follower(stop=lambda: False, report_alive=lambda: None) for _ in range(2))
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
            stop=lambda: next(looks, None) is None, report_alive=lambda: None, enqueue=True
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
        poll, faults = ChangePoller.poll, iter([OperationalError("gone"), InterfaceError("closed")])

        def refused(poller: ChangePoller) -> Any:
            for fault in faults:
                raise fault
            return poll(poller)

        monkeypatch.setattr(ChangePoller, "poll", refused)
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
        one = Follower(stop=lambda: False, report_alive=lambda: signs.append(1))
        one._work()

        assert signs


class TestPulse:
    def test_an_outage_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refused(_poller: ChangePoller) -> Any:
            raise OperationalError("gone")

        monkeypatch.setattr(ChangePoller, "poll", refused)
        tasks.pulse()

        assert [record.exc_info for record in caplog.records] == [None]
        assert "no poll for changes" in caplog.text

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

    def test_of_those_that_have_piled_up_one_is_enough(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked = mock.Mock(return_value=[])
        monkeypatch.setattr(ChangePoller, "poll", looked)
        monkeypatch.setattr(polling, "_POLLED", [float("-inf")])
        tasks.pulse.push_request(**json.loads(headers_for(60)))
        for _pulse in range(5):
            tasks.pulse.run()
        tasks.pulse.pop_request()
        by_beat = looked.call_count
        tasks.pulse.run()  # whoever sends it otherwise, knows of a change

        assert by_beat == 1
        assert looked.call_count == 2
        assert Heartbeat.objects.get().pulsed_at is not None

    @pytest.mark.parametrize(("seconds", "looks_made"), [(1, 1), (0, 0)])
    def test_a_worker_looks_after_its_batches_too(
        self,
        view: type[Any],
        monkeypatch: pytest.MonkeyPatch,
        settings: Any,
        seconds: int,
        looks_made: int,
    ) -> None:
        """Not after each, if they are short, and never if no pulses are wanted."""
        settings.MATVIEWS = {"PULSE_SECONDS": seconds}
        looked = mock.Mock(return_value=[])
        monkeypatch.setattr(ChangePoller, "poll", looked)
        monkeypatch.setattr(polling, "_POLLED", [float("-inf")])
        shard = shard_of(view)
        for _batch in range(3):
            tasks.insert_batch(shard.pk, shard.token - 1)

        assert looked.call_count == looks_made

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
        monkeypatch.setattr(pulses, "are_taken", lambda: taken[0])

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
        assert not pulses.are_taken()
        heartbeat.record(pulsed_at=engine.now())
        assert pulses.are_taken()
        heartbeat.record(pulsed_at=engine.now() - pulses.TRUSTED)
        assert not pulses.are_taken()

    def test_only_beat_sends_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = Pulse()
        monkeypatch.setattr(Task, "apply_async", lambda *_arguments, **_options: "sent")
        monkeypatch.setattr(task, "_may_send", lambda: False)

        assert task.apply_async(headers=json.loads(headers_for(60))) is None
        assert task.apply_async() == "sent"


class TestWithoutChange:
    """What no change of the source asks for: on_change/test_unlogged_work.py has the reasons."""

    def test_maintenance_requests_it(self, view: type[Any]) -> None:
        before = Refresh.objects.count()
        tasks._request_unlogged()
        ViewControl.objects.update(last_update=None)
        tasks._request_unlogged()
        tasks._request_unlogged()  # it is open

        assert [each.phases for each in Refresh.objects.order_by("pk")[before:]] == [["update"]]

    def test_a_follower_requests_it_as_it_starts(self, view: type[Any]) -> None:
        """A release restarts it, which may have brought another definition."""
        ViewControl.objects.update(last_update=None)
        one = Follower(stop=lambda: False, report_alive=lambda: None)
        one._work()
        refreshed = ViewControl.objects.get(label=LABEL).last_update
        ViewControl.objects.update(last_update=None)
        one._work()

        assert refreshed is not None
        assert ViewControl.objects.get(label=LABEL).last_update is None

    def test_a_schedule_by_time_is_left_to_beat(self, view: type[Any]) -> None:
        RefreshSchedule.objects.update(on_change=False, every=1, period="hours")
        ViewControl.objects.update(last_update=None)

        assert polling.request_without_change() == []


class TestHealth:
    @pytest.fixture(autouse=True)
    def _maintained(self, view: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Maintenance runs, and the periodic task of pulses is an hour old."""
        monkeypatch.setattr(heartbeat, "interruption", lambda: None)
        old = engine.now() - timedelta(hours=1)
        our_tasks().filter(name=PULSE).update(date_changed=old)

    def kinds(self) -> dict[str, str]:
        return {each.kind: each.state.value for each in check_health().problems if not each.view}

    def test_nobody_polls(self, view: type[Any]) -> None:
        assert self.kinds() == {"no polling": "degraded"}
        for looker in ("pulsed_at", "followed_at"):
            heartbeat.record(**{looker: engine.now()})
            assert self.kinds() == {}
            heartbeat.record(**{looker: engine.now() - heartbeat.MAX_UNPOLLED})
            assert self.kinds() == {"no polling": "degraded"}

        RefreshSchedule.objects.update(enabled=False)

        assert self.kinds() == {}

    def test_the_first_pulse_has_time_to_be_sent(self, view: type[Any]) -> None:
        our_tasks().filter(name=PULSE).update(date_changed=engine.now())
        at_first = self.kinds()
        our_tasks().filter(name=PULSE).update(total_run_count=5)

        assert at_first == {}
        assert self.kinds() == {"no polling": "degraded"}

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
            assert self.kinds() == {"beat": "broken", "no polling": "degraded"}
