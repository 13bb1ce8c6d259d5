"""What beat, the broker and workers record of themselves, and what is missing if one is silent."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from celery import signals
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from hypothesis import given
from hypothesis import strategies as st

from matviews import engine, tasks
from matviews.models import Heartbeat
from matviews.phases import Phase
from matviews.tasks import broker_errors, heartbeat
from matviews.tasks.expiry import headers_for
from matviews.tasks.heartbeat import interruption, maintenance_problem, record
from matviews.tasks.queues import queues_in_words
from matviews.tasks.schedules import reconcile

pytestmark = [pytest.mark.database, pytest.mark.django_db]

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _settled() -> None:
    engine.sync_controls()
    reconcile()


def ago(minutes: float) -> Any:
    return timezone.now() - minutes * MINUTE


def kind() -> str:
    found = interruption()
    return found.kind if found else ""


class TestMaintenance:
    def ran(self, ago: timedelta) -> None:
        maintenance_ended_at = timezone.now() - ago
        Heartbeat.objects.update_or_create(
            pk=1, defaults={"maintenance_ended_at": maintenance_ended_at}
        )

    def maintain(self, **values: Any) -> None:
        PeriodicTask.objects.filter(task="matviews.maintain").update(**values)

    def test_a_fresh_install_is_no_problem_yet(self) -> None:
        assert maintenance_problem() == ""

    def test_all_is_well_while_it_runs(self) -> None:
        self.ran(2 * MINUTE)
        self.maintain(date_changed=timezone.now() - HOUR, total_run_count=500)

        assert maintenance_problem() == ""

    def test_its_row_is_missing(self) -> None:
        self.ran(0 * MINUTE)
        PeriodicTask.objects.all().delete()

        assert maintenance_problem() == (
            "The periodic task 'matviews: maintenance' is missing, so lost messages are not "
            "re-sent. Run `manage.py migrate`, which creates it."
        )

    def test_its_row_is_disabled(self) -> None:
        self.ran(0 * MINUTE)
        self.maintain(enabled=False)

        assert maintenance_problem() == (
            "The periodic task 'matviews: maintenance' is disabled, so lost messages are not "
            "re-sent. Run `manage.py migrate`, which enables it."
        )

    def test_it_has_not_run_for_a_while(self) -> None:
        self.ran(12 * MINUTE)
        record(beat_began_at=timezone.now(), beat_sent_at=timezone.now())

        assert maintenance_problem() == (
            "The maintenance task has not run for 12 min, so lost messages are not re-sent. Beat "
            "sends its message, but no worker takes it. Check that a worker is running, and "
            f"listens to {queues_in_words('matviews.maintain')}."
        )

    @pytest.mark.parametrize("never", [{"date_changed": HOUR}, {"total_run_count": 5}])
    def test_it_has_never_run(self, never: dict[str, Any]) -> None:
        past = {name: timezone.now() - HOUR for name, value in never.items() if value == HOUR}
        self.maintain(**{**never, **past})

        assert maintenance_problem().startswith("The maintenance task has not run yet, so lost")

    @pytest.mark.parametrize(
        "problem", [{"enabled": False}, {"total_run_count": 5}], ids=["disabled", "never"]
    )
    def test_what_the_sentence_says_is_a_way_out(self, problem: dict[str, Any]) -> None:
        self.maintain(**problem)
        assert maintenance_problem()

        call_command("migrate", verbosity=0)
        self.ran(0 * MINUTE)

        assert maintenance_problem() == ""


class TestWhoIsSilent:
    """Maintenance has not run for ten minutes: why?"""

    @pytest.fixture(autouse=True)
    def _silent(self) -> None:
        record(maintenance_ended_at=ago(10))

    def test_beat_has_sent_nothing_either(self) -> None:
        record(beat_began_at=ago(10), beat_sent_at=ago(10))

        assert kind() == "beat"
        assert "Check that celery beat" in maintenance_problem()

    def test_beat_sends_and_no_worker_takes_it(self) -> None:
        record(beat_began_at=ago(0.1), beat_sent_at=ago(0.1))

        assert kind() == "no worker"

    def test_a_worker_begins_it_and_does_not_end_it(self) -> None:
        record(beat_began_at=ago(0.1), beat_sent_at=ago(0.1), maintenance_began_at=ago(1))

        assert kind() == "maintenance"
        assert "see the worker's log" in maintenance_problem()

    def test_beat_tries_each_minute_and_the_broker_refuses(self) -> None:
        record(beat_began_at=ago(0.1), beat_sent_at=ago(10))

        assert kind() == "broker"
        assert "beat tries to send, but fails" in maintenance_problem()

    def test_the_broker_hangs_and_beat_with_it(self) -> None:
        record(beat_began_at=ago(9), beat_sent_at=ago(10))

        assert kind() == "broker"

    def test_the_message_of_this_moment_is_no_refusal(self) -> None:
        record(beat_began_at=ago(0), beat_sent_at=ago(1))

        assert kind() == "no worker"

    def test_the_error_that_another_process_had_is_shown(self) -> None:
        record(
            beat_began_at=ago(0.1),
            beat_sent_at=ago(10),
            send_failed_at=ago(1),
            send_error="refused",
        )

        assert kind() == "broker"
        assert "The broker accepts no messages: refused. Check" in maintenance_problem()

    def test_an_error_of_long_ago_is_no_reason(self) -> None:
        record(
            beat_began_at=ago(0.1),
            beat_sent_at=ago(0.1),
            send_failed_at=ago(9),
            send_error="refused",
        )

        assert kind() == "no worker"

    @pytest.mark.parametrize(("saved", "silent"), [(4, "no worker"), (9, "beat")])
    def test_beat_without_our_code_is_known_by_what_it_saves(self, saved: int, silent: str) -> None:
        PeriodicTask.objects.update(last_run_at=ago(saved), total_run_count=7)

        assert kind() == silent

    @pytest.mark.parametrize(("saved", "silent"), [(4, "no worker"), (9, "beat")])
    def test_beat_that_runs_without_our_code_since_lately(self, saved: int, silent: str) -> None:
        record(beat_began_at=ago(60), beat_sent_at=ago(60))
        PeriodicTask.objects.update(last_run_at=ago(saved), total_run_count=7)

        assert kind() == silent

    def test_what_beat_saved_of_the_message_that_it_was_seen_with_makes_it_no_younger(self) -> None:
        record(beat_began_at=ago(4), beat_sent_at=ago(4))
        PeriodicTask.objects.update(last_run_at=ago(3.9), total_run_count=7)

        assert kind() == "beat"

    def test_nobody_asks_who_is_silent_while_maintenance_runs(self) -> None:
        record(maintenance_ended_at=ago(1), beat_began_at=ago(10), beat_sent_at=ago(10))

        assert kind() == ""


TIMES = (
    "maintenance_ended_at",
    "maintenance_began_at",
    "beat_began_at",
    "beat_sent_at",
    "send_failed_at",
)
times = st.none() | st.floats(0, 20)


@given(st.fixed_dictionaries(dict.fromkeys(TIMES, times)))
def test_whatever_is_known_there_is_an_answer_if_and_only_if_it_is_silent(known: Any) -> None:
    found = Heartbeat(
        send_error="refused",
        **{name: None if value is None else ago(value) for name, value in known.items()},
    )
    task = PeriodicTask(date_changed=ago(0), last_run_at=ago(0), total_run_count=9)
    with (
        mock.patch.object(Heartbeat.objects, "first", return_value=found),
        mock.patch.object(heartbeat, "our_tasks") as tasks_of_beat,
    ):
        tasks_of_beat().filter().first.return_value = task
        silent = known["maintenance_ended_at"] is None or known["maintenance_ended_at"] >= 3
        assert (kind() != "") == silent


class TestBeat:
    def send(self, before: bool = True, after: bool = True, headers: Any = None) -> None:
        headers = {"matviews_good_for": 60} if headers is None else headers
        for signal, sent in (
            (signals.before_task_publish, before), (signals.after_task_publish, after)
        ):  # fmt: skip
            if sent:
                signal.send(sender="matviews.maintain", headers=dict(headers), body=())

    def test_its_message_is_recorded_before_and_after_the_broker_takes_it(self) -> None:
        self.send()

        found = Heartbeat.objects.get()
        assert found.maintenance_ended_at is None
        assert found.beat_began_at
        assert found.beat_sent_at
        assert found.beat_began_at <= found.beat_sent_at <= timezone.now() + MINUTE

    def test_a_message_that_the_broker_refuses_is_not_sent(self) -> None:
        self.send(after=False)

        found = Heartbeat.objects.get()
        assert (found.beat_began_at is None, found.beat_sent_at) == (False, None)

    def test_a_message_that_a_person_sends_is_not_of_beat(self) -> None:
        self.send(headers={})

        assert not Heartbeat.objects.exists()

    def test_the_headers_are_those_of_the_periodic_task(self) -> None:
        assert "matviews_good_for" in headers_for(60)

    def test_a_database_that_is_gone_keeps_no_message_from_being_sent(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mock.patch.object(heartbeat, "record", side_effect=OperationalError("gone")):
            self.send()

        assert caplog.text.count("a heartbeat could not be recorded") == 2


class TestErrorsOfTheBroker:
    @pytest.fixture
    def broken(self) -> Iterator[mock.Mock]:
        refuse = mock.Mock(side_effect=ConnectionError("no route to //user:secret@broker"))
        with mock.patch.object(tasks.insert_batch, "apply_async", refuse):
            yield refuse

    def send(self) -> bool:
        return tasks.send([engine.Message(Phase.INSERT, 1, 1)])

    def test_the_first_one_is_recorded_without_the_password(self, broken: mock.Mock) -> None:
        assert not self.send()

        assert broker_errors.last_error() == "no route to //***@broker"

    def test_the_next_ones_cost_no_statement(self, broken: mock.Mock) -> None:
        self.send()
        with CaptureQueriesContext(connection) as captured:
            self.send()

        assert not captured.captured_queries

    def test_the_next_success_clears_it_and_those_after_it_cost_nothing(
        self, broken: mock.Mock
    ) -> None:
        self.send()
        broken.side_effect = None

        assert self.send()

        assert broker_errors.last_error() == ""
        with CaptureQueriesContext(connection) as captured:
            self.send()
        assert not captured.captured_queries

    def test_of_a_process_that_has_ended_it_is_forgotten(self, broken: mock.Mock) -> None:
        self.send()
        Heartbeat.objects.update(send_failed_at=ago(4))

        assert broker_errors.last_error() == ""

    @pytest.mark.django_db(transaction=True)
    def test_within_a_transaction_nothing_is_recorded(
        self, broken: mock.Mock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        with transaction.atomic():
            self.send()

        assert not Heartbeat.objects.exists()
        assert "a heartbeat could not" not in caplog.text
