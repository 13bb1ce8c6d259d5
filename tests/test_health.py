"""Health for monitoring: what is wrong, how bad it is, and what the address answers."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, OperationalError, connection
from django.db.models import F
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from health_check.exceptions import ServiceUnavailable
from health_check.views import HealthCheckView

from matviews import engine, health, health_check, metrics
from matviews.engine import ViewStatus
from matviews.health import Health, HealthState, Problem, check_health
from matviews.models import Change, Heartbeat, Refresh, RefreshSchedule, ViewControl, ViewShard
from matviews.states import ViewState
from matviews.tasks import heartbeat, problems
from tests.helpers.engine import travel
from tests.helpers.ledger import add_items
from tests.helpers.source_views import LABEL, sourced
from tests.helpers.view_classes import run
from tests.management.test_command import command

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]
MINUTE = timedelta(minutes=1)
SECRET = "a secret value"
UNTRACKED = {"tracking": False}


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    for kept in (health.recent_statuses, health.recent_health):
        kept.forget()


@pytest.fixture
def view() -> type[Any]:
    """A view that has been built, and nothing is wrong."""
    made = sourced(options=UNTRACKED)
    add_items(3)
    run(made)
    return made


@pytest.fixture
def other(alone: None) -> None:
    """Another view, of which nothing is wrong."""
    run(sourced(name="Other", options=UNTRACKED))


def fail_the_view() -> None:
    Refresh.objects.filter(view__label=LABEL).update(state="failed", error=SECRET)


def kinds() -> dict[str, str]:
    found = check_health()
    return {problem.kind: problem.state.value for problem in found.problems}


def answer(**headers: Any) -> tuple[int, Any]:
    response = health.health(RequestFactory().get("/health/", headers=headers))
    return response.status_code, json.loads(response.content)


@contextmanager
def broken_database(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Iterator[None]:
    def refused(*_arguments: Any, **_options: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine, "view_statuses", refused)
        yield


@pytest.mark.usefixtures("other")
class TestWhatIsWrong:
    def test_nothing(self, view: type[Any]) -> None:
        assert check_health() == (HealthState.FINE, ())

    def test_a_view_that_failed(self, view: type[Any]) -> None:
        fail_the_view()
        found = check_health()
        [problem] = found.problems
        assert (found.state, problem.kind, problem.view) == ("degraded", "failed", LABEL)
        assert SECRET in problem.error  # for alarms
        assert SECRET not in str(health.as_dict(found))

    def test_a_view_that_is_suspended(self, view: type[Any]) -> None:
        ViewControl.objects.filter(label=LABEL).update(suspended_at=timezone.now())
        assert kinds() == {"suspended": "degraded"}

    def test_every_fault_has_a_text(self) -> None:
        fine = {
            ViewState.DISABLED, ViewState.PAUSED, ViewState.REFRESHING, ViewState.WAITING,
            ViewState.ON_TIME, ViewState.NO_TARGET, ViewState.REMOVED,
        }  # fmt: skip
        assert problems.TEXTS.keys() == set(ViewState) - fine

    def test_a_bad_row_that_people_accept_hides_nothing(self, view: type[Any]) -> None:
        past = timezone.now() - timedelta(hours=1)
        ViewControl.objects.filter(label=LABEL).update(
            freshness_target=timedelta(seconds=1), last_insert=past
        )
        ViewShard.objects.filter(view__label=LABEL).update(parked_count=1)
        assert kinds() == {"behind": "degraded", "keys parked": "degraded"}
        ran = command("--check", "--models", LABEL, "--format", "json")
        assert ran.document["views"][0]["reasons"] == ["keys parked", "behind"]
        assert "1 key parked: see" in command("--check", "--models", LABEL).out
        assert "; behind (" in command("--check", "--models", LABEL).out

    def test_a_view_behind_its_target(self, view: type[Any]) -> None:
        ViewControl.objects.filter(label=LABEL).update(
            freshness_target=timedelta(seconds=1), last_insert=timezone.now() - timedelta(hours=1)
        )
        assert kinds() == {"behind": "degraded"}

    def test_a_table_that_lost_its_triggers(self) -> None:
        run(sourced())  # nobody has installed any
        assert kinds() == {"changes not logged": "degraded"}

    def test_a_view_that_was_never_built(self) -> None:
        sourced(options=UNTRACKED)
        assert kinds() == {"never built": "degraded"}

    def test_every_view(self, view: type[Any]) -> None:
        Refresh.objects.update(state="failed")
        assert kinds() == {"all views": "broken", "failed": "degraded"}

    def test_every_view_is_behind_but_works(self, view: type[Any]) -> None:
        ViewControl.objects.update(
            freshness_target=timedelta(seconds=1), last_insert=timezone.now() - timedelta(hours=1)
        )
        assert check_health().state is HealthState.DEGRADED

    def test_every_view_but_those_that_are_held_or_removed(self, view: type[Any]) -> None:
        fail_the_view()
        ViewControl.objects.filter(label="sample.Other").update(paused=True)
        ViewControl.objects.create(label="sample.Removed")
        assert kinds() == {"all views": "broken", "failed": "degraded"}

    @pytest.mark.parametrize("held", [{"paused": True}, {"enabled": False}])
    def test_a_view_that_is_held_is_left_alone(self, view: type[Any], held: Any) -> None:
        fail_the_view()
        ViewControl.objects.filter(label=LABEL).update(**held)
        assert check_health().state is HealthState.FINE

    def test_no_worker(self, view: type[Any]) -> None:
        engine.request(view)
        assert "no worker" not in kinds()
        Refresh.objects.filter(state="open").update(requested_at=timezone.now() - problems.MAX_WAIT)
        ViewShard.objects.update(resend_after=None)
        assert kinds()["no worker"] == "broken"

    def test_a_wait_after_a_failure_is_no_lack_of_workers(self, view: type[Any]) -> None:
        engine.request(view)
        past = timezone.now() - timedelta(hours=1)
        Refresh.objects.filter(state="open").update(requested_at=past)
        ViewShard.objects.update(resend_after=None)
        ViewControl.objects.update(failures=1, failing_since=past, retry_at=timezone.now())
        assert "no worker" not in kinds()
        ViewControl.objects.update(retry_at=past)
        assert kinds()["no worker"] == "broken"

    def test_a_worker_that_died_with_a_batch(self, view: type[Any]) -> None:
        engine.request(view)
        past = timezone.now() - timedelta(hours=1)
        Refresh.objects.filter(state="open").update(requested_at=past)
        claimed = {"claimed_token": F("token"), "claimed_at": past, "resend_after": past}
        ViewShard.objects.update(**claimed)
        assert "no worker" not in kinds()  # a long batch, whose row is locked: nobody re-sends it
        ViewShard.objects.update(resends=5, resend_after=timezone.now() + timedelta(minutes=30))
        assert kinds()["no worker"] == "broken"

    def test_a_message_that_was_re_sent_once_has_time_to_be_taken(self, view: type[Any]) -> None:
        engine.request(view)
        now = timezone.now()
        Refresh.objects.filter(state="open").update(requested_at=now - timedelta(hours=1))
        ViewShard.objects.update(resends=1, resend_after=now + 2 * MINUTE)
        assert "no worker" not in kinds()
        ViewShard.objects.update(resend_after=now + MINUTE / 2)
        assert kinds()["no worker"] == "broken"

    @pytest.mark.parametrize("held", [{"paused": True}, {"enabled": False}, {"suspended": True}])
    def test_a_view_that_was_resumed_a_moment_ago(self, view: type[Any], held: Any) -> None:
        engine.request(view)
        past = timezone.now() - timedelta(hours=1)
        Refresh.objects.filter(state="open").update(requested_at=past)
        ViewShard.objects.update(resend_after=past)
        if "suspended" in held:
            ViewControl.objects.update(failures=30, suspended_at=past)
            engine.resume(ViewControl.objects.values_list("pk", flat=True))
        else:
            ViewControl.objects.update(**held)
            control = ViewControl.objects.get(label=LABEL)
            control.paused, control.enabled = False, True
            with mock.patch("matviews.tasks.receivers.dispatch_all"):  # no worker is there yet
                control.save()
        assert "no worker" not in kinds()
        travel(4 * MINUTE)
        assert kinds()["no worker"] == "broken"

    def test_maintenance_that_is_silent(self, view: type[Any]) -> None:
        Heartbeat.objects.create(maintenance_ended_at=timezone.now() - timedelta(hours=1))
        assert kinds() == {"beat": "broken"}
        Heartbeat.objects.update(beat_began_at=timezone.now(), beat_sent_at=timezone.now())
        assert kinds() == {"no worker": "broken"}
        Heartbeat.objects.update(beat_sent_at=timezone.now() - timedelta(hours=1))
        assert kinds() == {"broker": "broken"}

    def test_a_process_that_cannot_send_while_maintenance_runs(self, view: type[Any]) -> None:
        now = timezone.now()
        Heartbeat.objects.create(
            maintenance_ended_at=now, send_failed_at=now, send_error="no route to host"
        )
        assert kinds() == {"broker": "degraded"}
        assert "(no route to host)" in check_health().problems[0].text

    def test_one_lack_of_workers_is_one_problem(self, view: type[Any]) -> None:
        engine.request(view)
        past, now = timezone.now() - timedelta(hours=1), timezone.now()
        Refresh.objects.filter(state="open").update(requested_at=past)
        ViewShard.objects.update(resend_after=None)
        Heartbeat.objects.create(maintenance_ended_at=past, beat_began_at=now, beat_sent_at=now)
        assert [each.kind for each in check_health().problems] == ["no worker"]
        Heartbeat.objects.update(beat_sent_at=past)
        assert [each.kind for each in check_health().problems] == ["broker"]

    @pytest.mark.parametrize("fault", [ViewState.NEVER_BUILT, ViewState.CHANGED])
    def test_a_view_that_is_being_built(self, fault: ViewState) -> None:
        built = ViewStatus(label=LABEL, state=ViewState.REFRESHING, faults=(fault,))
        waiting = ViewStatus(label=LABEL, state=ViewState.WAITING, faults=(fault,))
        assert [len(list(problems._of_views([each]))) for each in (built, waiting)] == [0, 1]

    def test_maintenance_that_never_ran_matters_to_schedules_only(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = heartbeat.Interruption("maintenance", "It has not run yet.")
        monkeypatch.setattr(heartbeat, "interruption", lambda: found)
        assert kinds() == {}
        RefreshSchedule.objects.create(view=ViewControl.objects.get(label=LABEL), every=60)
        assert kinds()["maintenance"] == "broken"

    def test_a_log_that_nobody_moves(self, view: type[Any]) -> None:
        entry = Change.objects.create(table="elsewhere")
        assert "log" not in kinds()
        Change.objects.filter(pk=entry.pk).update(
            logged_at=F("logged_at") - problems.MAX_LOG_AGE - timedelta(minutes=1)
        )
        assert kinds() == {"log": "degraded"}

    def test_a_log_that_grows_faster_than_it_is_moved(
        self, view: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(problems, "MAX_LOG_ENTRIES", 2)
        for number in (1, 2, 3):
            assert "log" not in kinds()
            Change.objects.create(table=f"elsewhere{number}")
        assert "about 3 entries, the oldest 0 minutes old" in check_health().problems[0].text

    def test_a_database_that_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with broken_database(monkeypatch, OperationalError(f"no route to {SECRET}")):
            found = check_health()
        assert [problem.kind for problem in found.problems] == ["database"]
        assert found.state is HealthState.BROKEN
        assert SECRET not in str(found)

    def test_tables_of_ours_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "own_tables_missing", lambda _error: True)
        with broken_database(monkeypatch, DatabaseError()):
            assert kinds() == {"not migrated": "broken"}

    def test_the_worst_comes_first(self, view: type[Any]) -> None:
        fail_the_view()
        Heartbeat.objects.create(maintenance_ended_at=timezone.now() - timedelta(hours=1))
        assert list(kinds()) == ["beat", "failed"]

    def test_statements_do_not_grow_with_views(self, view: type[Any]) -> None:
        check_health()  # what is compiled once
        with CaptureQueriesContext(connection) as one:
            check_health()
        for number in range(3):
            run(sourced(name=f"Sourced{number}", options=UNTRACKED))
        check_health()
        with CaptureQueriesContext(connection) as four:
            check_health()
        assert len(four) == len(one)
        assert len(one) < 15


class TestAddress:
    def test_fine_and_degraded_are_200(self, view: type[Any]) -> None:
        assert answer() == (200, {"state": "fine", "problems": []})

    def test_broken_is_503(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with broken_database(monkeypatch, OperationalError()):
            status, found = answer()
        assert (status, found["state"]) == (503, "broken")

    def test_it_asks_the_database_once_in_a_while(self, view: type[Any]) -> None:
        answer()
        with CaptureQueriesContext(connection) as captured:
            answer()
        assert not captured.captured_queries

    def test_it_is_never_cached_by_others(self, view: type[Any]) -> None:
        response = health.health(RequestFactory().get("/health/"))
        assert "no-store" in response.headers["Cache-Control"]

    @pytest.mark.parametrize("method", ["post", "put", "delete"])
    def test_it_only_answers_questions(self, method: str) -> None:
        request = getattr(RequestFactory(), method)("/health/")
        assert health.health(request).status_code == 405

    @pytest.mark.parametrize(
        ("given", "status"),
        [("", 403), ("Bearer", 403), ("Bearer wrong", 403), ("Bearer sesame", 200),
         ("Bearer sésame", 403), ("sesame", 403)],
    )  # fmt: skip
    def test_a_token(self, view: type[Any], settings: Any, given: str, status: int) -> None:
        settings.MATVIEWS = {**settings.MATVIEWS, "HEALTH_TOKEN": "sesame"}
        request = RequestFactory().get("/", headers={"authorization": given})
        answers = [each(request).status_code for each in (health.health, metrics.metrics)]
        assert answers == [status, status]


class TestDjangoHealthCheck:
    """The check in a view of the real django-health-check."""

    def answer(self, monkeypatch: pytest.MonkeyPatch, *found: Problem) -> tuple[int, str]:
        monkeypatch.setattr(health_check, "recent_health", lambda: Health.of(found))
        ask = async_to_sync(HealthCheckView.as_view(checks=["matviews.health_check.Matviews"]))
        request = RequestFactory().get("/", {"format": "json"})
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop, of a browser
            response = thread.submit(ask, request).result()
        return response.status_code, json.loads(response.content)["Matviews()"]

    def test_it_fails_only_if_the_health_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = Problem(HealthState.BROKEN, "beat", "", "Beat is silent.")
        behind = Problem(HealthState.DEGRADED, "behind", LABEL, "It is late.")

        assert self.answer(monkeypatch) == (200, "OK")
        assert self.answer(monkeypatch, behind) == (200, "OK")
        assert self.answer(monkeypatch, broken, behind) == (500, "Unavailable: Beat is silent.")

    def test_it_looks_at_the_bookkeeping(self, view: type[Any]) -> None:
        health_check.Matviews().run()
        Heartbeat.objects.create(maintenance_ended_at=timezone.now() - timedelta(hours=1))
        health.recent_health.forget()

        with pytest.raises(ServiceUnavailable, match="Beat has not sent"):
            health_check.Matviews().run()


@pytest.mark.parametrize("address", [health.health, metrics.metrics])
def test_a_failed_statement_is_not_in_the_transaction_of_a_request(
    monkeypatch: pytest.MonkeyPatch, address: Any
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    assert BaseHandler().make_view_atomic(address) is address


class TestCommand:
    def test_fine(self, view: type[Any]) -> None:
        ran = command("--health")
        assert (ran.status, ran.out) == (0, "fine: every view is refreshed as it should be\n")

    @pytest.mark.usefixtures("other")
    def test_degraded(self, view: type[Any]) -> None:
        fail_the_view()
        ran = command("--health")
        assert ran.status == 3
        assert ran.out.startswith(f"degraded: {LABEL}: a phase has failed")
        assert "1 problem." in ran.err

    def test_broken(self, view: type[Any]) -> None:
        Heartbeat.objects.create(maintenance_ended_at=timezone.now() - timedelta(hours=1))
        ran = command("--health", "--format", "json")
        assert ran.status == 1
        assert ran.document["state"] == "broken"
        assert [each["kind"] for each in ran.document["problems"]] == ["beat"]

    def test_it_is_about_all_views(self, view: type[Any]) -> None:
        ran = command("--health", "--models", LABEL)
        assert ran.status == 2
        assert "--health is about all views: leave out --models." in ran.err
