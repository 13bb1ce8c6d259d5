"""What runs when, and whether `maintain` does: in Python, as a check and on the command line."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from typing import Any
from unittest import mock

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from matviews import engine
from matviews.management.commands.update_materialized_views import Command
from matviews.models import Heartbeat, Period, RefreshSchedule, ViewControl
from matviews.tasks.checks import check_maintenance
from matviews.tasks.schedules import ScheduleStatus, maintenance_problem, reconcile, timetable

pytestmark = pytest.mark.django_db

LIMITED, WHOLE = "sample.Limited", "sample.Whole"
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _settled() -> None:
    engine.sync_controls()
    reconcile()


def schedule(label: str = LIMITED, **fields: Any) -> RefreshSchedule:
    if "crontab" not in fields:
        fields = {"every": 1, "period": Period.HOURS, **fields}
    made = RefreshSchedule.objects.create(view=ViewControl.objects.get(label=label), **fields)
    reconcile()
    return made


def set_view(label: str = LIMITED, **values: Any) -> None:
    ViewControl.objects.filter(label=label).update(**values)
    reconcile()


def sent(ago: timedelta, times: int = 1) -> datetime:
    """Let beat have sent all that there is."""
    last = timezone.now().replace(microsecond=0) - ago
    PeriodicTask.objects.update(last_run_at=last, total_run_count=times)
    return last


def only() -> ScheduleStatus:
    (planned,) = timetable()
    return planned


class TestTimetable:
    def test_nothing_is_planned_without_schedules(self) -> None:
        assert timetable() == []

    def test_a_new_schedule_of_a_view_never_built_is_due_now(self) -> None:
        made = schedule()

        planned = only()

        assert (planned.schedule, planned.runs, planned.disabled_reason) == (made, True, "")
        assert planned.last_sent is None
        assert planned.next_due is not None
        assert abs(planned.next_due - timezone.now()) < MINUTE

    def test_an_interval_counts_from_the_last_time(self) -> None:
        schedule()
        last = sent(0.25 * HOUR)

        assert (only().last_sent, only().next_due) == (last, last + HOUR)

    def test_what_is_overdue_is_due_now_and_not_in_the_past(self) -> None:
        schedule()
        sent(50 * HOUR)

        due = only().next_due

        assert due is not None
        assert abs(timezone.now() - due) < MINUTE

    def test_a_crontab_is_due_at_its_next_time(self) -> None:
        schedule(
            crontab=CrontabSchedule.objects.create(minute="30", hour="4", timezone="Asia/Tokyo")
        )

        due = only().next_due

        assert due is not None
        assert (due.hour, due.minute) == (19, 30)  # UTC
        assert timedelta(0) <= due - timezone.now() <= timedelta(days=1)

    @pytest.mark.parametrize(
        ("off", "because"),
        [
            (lambda: RefreshSchedule.objects.update(enabled=False), "the schedule is disabled"),
            (lambda: set_view(paused=True), "the view is paused"),
            (lambda: set_view(enabled=False), "the view is disabled"),
            (
                lambda: PeriodicTask.objects.filter(task="matviews.refresh").delete(),
                (
                    "its periodic task is missing or disabled: "
                    "`matviews.maintain` or `manage.py migrate` restores it"
                ),
            ),
            (
                lambda: PeriodicTask.objects.update(enabled=False),
                (
                    "its periodic task is missing or disabled: "
                    "`matviews.maintain` or `manage.py migrate` restores it"
                ),
            ),
        ],
    )
    def test_what_is_off_says_why_and_is_not_due(
        self, off: Callable[[], object], because: str
    ) -> None:
        schedule()
        off()

        planned = only()

        assert (planned.runs, planned.disabled_reason, planned.next_due) == (False, because, None)

    def test_when_a_schedule_was_last_sent_is_shown_while_it_is_off(self) -> None:
        schedule()
        last = sent(0.25 * HOUR)
        set_view(paused=True)

        assert only().last_sent == last

    def test_it_is_in_the_order_of_views_and_may_be_of_some(self) -> None:
        made = [schedule(WHOLE), schedule(LIMITED), schedule(WHOLE, every=2)]

        assert [each.schedule for each in timetable()] == [made[1], made[0], made[2]]
        assert [each.schedule for each in timetable([WHOLE])] == [made[0], made[2]]
        assert timetable([]) == []

    @pytest.mark.parametrize("labels", [None, [LIMITED]])
    def test_the_number_of_statements_is_constant(self, labels: list[str] | None) -> None:
        counts = set()
        for number in range(1, 8):
            schedule(every=number)
            with CaptureQueriesContext(connection) as captured:
                assert len(timetable(labels)) == number
            counts.add(len(captured))

        assert counts == {2}


class TestCheck:
    def warnings(self, **arguments: Any) -> list[checks.CheckMessage]:
        return check_maintenance(**arguments)

    def test_the_problem_is_a_warning(self) -> None:
        PeriodicTask.objects.all().delete()

        assert [each.msg for each in self.warnings(databases=["default"])] == [
            maintenance_problem()
        ]
        assert maintenance_problem()

    @pytest.mark.parametrize("databases", [None, [], ["other"]])
    def test_the_database_is_not_asked_unless_it_is_named(self, databases: Any) -> None:
        PeriodicTask.objects.all().delete()

        assert self.warnings(databases=databases) == []

    def test_manage_py_check_shows_it(self) -> None:
        PeriodicTask.objects.all().delete()

        found = checks.run_checks(tags=[checks.Tags.database], databases=["default"])

        assert "matviews.W003" in [each.id for each in found]

    @pytest.mark.parametrize("missing", [PeriodicTask, Heartbeat])
    def test_tables_that_migrate_is_yet_to_make_or_change_are_no_error(
        self, missing: type[Any]
    ) -> None:
        PeriodicTask.objects.filter(task="matviews.maintain").update(total_run_count=5)
        assert self.warnings(databases=["default"])
        with mock.patch.object(missing._meta, "db_table", "there_is_no_such_table"):
            assert self.warnings(databases=["default"]) == []

        assert PeriodicTask.objects.exists()

    def test_all_is_well_after_migrate(self) -> None:
        assert self.warnings(databases=["default"]) == []


class TestCommand:
    def printed(self, *arguments: str) -> str:
        out = StringIO()
        call_command(Command(stdout=out), "--schedules", *arguments)
        return out.getvalue()

    def test_it_prints_what_runs_when_and_why_not(self) -> None:
        schedule(LIMITED, phases=["insert"])
        schedule(WHOLE, every=5, period=Period.MINUTES)
        last = sent(0.5 * HOUR)
        set_view(WHOLE, paused=True)
        Heartbeat.objects.create(pk=1, maintenance_ended_at=last)

        headings, limited, whole, maintain, problem = self.printed().splitlines()

        moment, due = (f"{each:%Y-%m-%d %H:%M:%S}" for each in (last, last + HOUR))
        assert headings.split() == [
            "view", "schedule", "phases", "next", "last", "sent", "disabled", "because",
        ]  # fmt: skip
        assert limited.split() == [
            LIMITED,
            "every",
            "hour",
            "insert",
            *due.split(),
            *moment.split(),
        ]
        assert whole.split() == [
            WHOLE, "every", "5", "minutes", "all", *moment.split(), "the", "view", "is", "paused",
        ]  # fmt: skip
        assert maintain == f"maintenance ran at {moment}"
        assert problem.startswith("The maintenance task has not run for 30 min")

    def test_nothing_is_scheduled(self) -> None:
        assert self.printed().splitlines() == [
            "No view has a schedule: add one in the admin, or set refresh_every in code.",
            "maintenance has not run yet",
        ]

    def test_views_may_be_named(self) -> None:
        schedule(LIMITED)
        schedule(WHOLE)

        document = json.loads(self.printed("--models", "Whole", "--format", "json"))

        assert [each["view"] for each in document["schedules"]] == [WHOLE]

    def test_as_json(self) -> None:
        made = schedule(LIMITED, phases=["insert"])
        last = sent(0.5 * HOUR)
        Heartbeat.objects.create(pk=1, maintenance_ended_at=last)

        document = json.loads(self.printed("--format", "json"))

        assert document == {
            "schedules": [
                {
                    "view": LIMITED,
                    "schedule": made.pk,
                    "how_often": "every hour",
                    "kind": "refresh",
                    "phases": ["insert"],
                    "sample": None,
                    "runs": True,
                    "disabled_reason": "",
                    "last_sent": last.isoformat(),
                    "next_due": (last + HOUR).isoformat(),
                }
            ],
            "error": "",
            "maintenance": {"ran_at": last.isoformat(), "problem": maintenance_problem()},
        }
        assert maintenance_problem()
