"""What waits in the quiet hours of a view, what goes ahead, and that lateness is no fault then."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from django.core import checks as django_checks
from django.test import override_settings

from matviews import checks, engine, tasks
from matviews.engine.work import shard_work
from matviews.health import check_health
from matviews.models import Refresh, ViewControl, ViewShard
from matviews.quiet_hours import QuietHours
from matviews.registry import registry
from matviews.states import RefreshState, ViewState
from matviews.tasks import inline
from matviews.testing import refresh_views
from matviews.waits import WaitCode
from tests.helpers.engine import let_time_pass, travel
from tests.helpers.ledger import add_items
from tests.helpers.view_classes import make_view, ready, run, six_hooks
from tests.management.test_command import command
from tests.sample.models import Limited

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

LABEL = "sample.Limited"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def rows() -> None:
    engine.sync_controls()
    add_items(3)


def control() -> Any:
    return ViewControl.objects.get(label=LABEL)


def quiet(begun: timedelta = HOUR, left: timedelta = HOUR, *, zone: str = "UTC") -> None:
    """Quiet hours that began so long ago and go on for so long."""
    now = engine.utc_now()
    ViewControl.objects.filter(label=LABEL).update(
        quiet_from=(now - begun).time(), quiet_until=(now + left).time(), quiet_zone=zone
    )


def status() -> engine.ViewStatus:
    (found,) = engine.view_statuses([LABEL])
    return found


def state_of(refresh: Refresh) -> str:
    return Refresh.objects.get(pk=refresh.pk).state


def test_a_request_waits_until_they_end_and_no_message_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "matviews")
    sent: list[Any] = []

    def send(messages: Any) -> bool:
        sent.extend(messages)
        return True

    monkeypatch.setattr(tasks, "send", send)
    quiet()
    refresh = engine.request(Limited)

    tasks.dispatch(refresh.view_id)
    let_time_pass()
    tasks.maintain()

    assert sent == []
    assert "refreshes wait" in caplog.text
    assert 3500 < (status().retry_in or timedelta()).total_seconds() <= 3600
    # when they are over, maintenance sends it
    quiet(begun=3 * HOUR, left=-HOUR)
    travel(2 * HOUR)
    tasks.maintain()
    assert [message.shard_id for message in sent] == [ViewShard.objects.get(view=control()).pk]
    assert control().wait is None


def test_a_batch_that_comes_in_them_writes_nothing() -> None:
    refresh = engine.request(Limited)
    message = engine.close_finished_in_view(refresh.view_id)[0].message
    assert message is not None
    quiet()

    engine.run_batch(message)

    assert not Limited.objects.exists()
    assert engine.close_finished(message.shard_id).message is None
    assert control().wait.code == WaitCode.QUIET_HOURS


def test_without_them_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_work, "utc_now", lambda: 1 / 0)
    run(Limited, force=False)

    assert Limited.objects.count() == 3


def test_a_refresh_that_a_person_forces_goes_ahead_and_says_so() -> None:
    quiet()
    waiting = engine.request(Limited)
    assert inline.run_to_end(waiting).state == RefreshState.OPEN

    done = command("--models", "Limited")

    assert "in its quiet hours" in done.out
    assert Limited.objects.count() == 3
    assert state_of(waiting) == RefreshState.SUCCEEDED  # all its refreshes begin with that one
    assert refresh_views(Limited)[0].state == RefreshState.SUCCEEDED


def test_saving_the_control_without_them_lets_it_begin() -> None:
    quiet()
    refresh = engine.request(Limited)
    tasks.dispatch(refresh.view_id)
    assert engine.is_waiting(refresh.view_id)

    view = control()
    view.quiet_from = view.quiet_until
    view.save()

    assert not engine.is_waiting(refresh.view_id)
    assert inline.run_to_end(refresh).state == RefreshState.SUCCEEDED


def late(age: timedelta) -> None:
    then = engine.now() - age
    ViewControl.objects.filter(label=LABEL).update(
        freshness_target=timedelta(minutes=5), last_insert=then, last_update=then, last_delete=then
    )


def test_lateness_is_no_fault_in_them_and_counts_from_their_end() -> None:
    run(Limited)
    late(3 * HOUR)
    assert status().fault == ViewState.BEHIND
    # in them, neither a state nor health nor --check mind
    quiet()
    assert (status().fault, status().on_time) == (None, True)
    assert not [each for each in check_health().problems if each.view == LABEL]
    assert "quiet hours until" in command("--check", "--models", "Limited").out
    assert "quiet hours until" in command("--list", "--models", "Limited").out
    # after them, it has its target for the refresh
    quiet(begun=2 * HOUR, left=timedelta(minutes=-4))
    assert (status().fault, status().quiet_until) == (None, None)
    quiet(begun=2 * HOUR, left=timedelta(minutes=-6))
    assert status().fault == ViewState.BEHIND


def test_a_failure_is_a_fault_in_them_too() -> None:
    quiet()
    ViewControl.objects.filter(label=LABEL).update(failures=1, failing_since=engine.now())
    assert status().fault == ViewState.FAILED


def test_the_operators_take_precedence_over_those_in_the_code() -> None:
    options = {"quiet_hours": ("22:00", "06:00", "Europe/Berlin")}
    with registry.preserved():
        label = ready(make_view("Coded", options=options, **six_hooks()))._meta.label
        view = ViewControl.objects.get(label=label)
        assert view.quiet_hours == QuietHours(time(22), time(6), "Europe/Berlin")

        view.quiet_from, view.quiet_until = time(1), time(2)
        with override_settings(TIME_ZONE="Asia/Kolkata"):
            assert view.quiet_hours == QuietHours(time(1), time(2), "Asia/Kolkata")
        view.quiet_until = time(1)
        assert view.quiet_hours is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quiet_from": time(1)}, "have no end"),
        ({"quiet_until": time(1)}, "have no beginning"),
        ({"quiet_from": time(1), "quiet_until": time(2), "quiet_zone": "Mars/X"}, "'Mars/X'"),
    ],
)
def test_w043_names_quiet_hours_that_have_no_effect(fields: dict[str, Any], said: str) -> None:
    def found() -> list[django_checks.CheckMessage]:
        return checks.check_quiet_hours(databases=[engine.alias()])

    assert found() == []
    ViewControl.objects.filter(label=LABEL).update(**fields)

    (problem,) = found()
    assert (problem.id, said in problem.msg) == ("matviews.W043", True)
    assert checks.check_quiet_hours(databases=["other"]) == []


def test_the_end_is_shown_with_its_zone() -> None:
    quiet()
    until = status().quiet_until
    assert until is not None
    assert until.tzinfo == UTC
    assert timedelta() < until - datetime.now(UTC) < 2 * HOUR
