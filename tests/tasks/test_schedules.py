"""From the schedules of views to the periodic tasks of django-celery-beat."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from celery import Celery, current_app, signals
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)
from django_celery_beat.schedulers import ModelEntry

from matviews import engine, tasks
from matviews.models import MAX_JITTER, Heartbeat, Period, Refresh, RefreshSchedule, ViewControl
from matviews.phases import Phase
from matviews.registry import registry
from matviews.tasks import periodic, receivers, schedules
from matviews.tasks.schedules import reconcile, timetable
from tests.helpers.engine import in_another_connection
from tests.helpers.processes import manage
from tests.helpers.view_classes import make_view, ready, run, six_hooks
from tests.sample.models import Limited

pytestmark = pytest.mark.django_db
live = pytest.mark.django_db(transaction=True)  # with commits, and what follows them

LIMITED = "sample.Limited"
MAINTENANCE = "matviews: maintenance"
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _settled() -> None:
    engine.sync_controls()
    reconcile()


def control(label: str = LIMITED) -> ViewControl:
    return ViewControl.objects.get(label=label)


def create(label: str = LIMITED, **fields: Any) -> RefreshSchedule:
    if "crontab" not in fields:
        fields = {"every": 5, "period": Period.MINUTES, **fields}
    return RefreshSchedule.objects.create(view=control(label), **fields)


def schedule(label: str = LIMITED, **fields: Any) -> RefreshSchedule:
    made = create(label, **fields)
    reconcile()  # as the receivers do after the commit
    return made


def saved(row: RefreshSchedule | ViewControl) -> None:
    row.save()
    reconcile()


def crontab(**fields: str) -> Any:
    return CrontabSchedule.objects.create(**{"minute": "0", "hour": "4", **fields})


def task_of(made: RefreshSchedule) -> Any:
    return PeriodicTask.objects.get(name=f"matviews: schedule {made.pk} of {made.view.label}")


def good_for(task: Any) -> Any:
    """The seconds after which the messages of a task are too old; Celery itself judges none."""
    assert (task.expire_seconds, task.expires) == (None, None)
    return json.loads(task.headers)["matviews_good_for"]


def kwargs_of(made: RefreshSchedule) -> Any:
    return json.loads(task_of(made).kwargs)


def ours() -> Any:
    return PeriodicTask.objects.filter(name__startswith="matviews: ").order_by("pk")


def values() -> list[dict[str, Any]]:
    """What our periodic tasks say, without what beat and the clock write."""
    counted = {"id", "last_run_at", "total_run_count", "date_changed"}
    return [
        {name: value for name, value in row.items() if name not in counted}
        for row in ours().order_by("name").values()
    ]


def wait_less(since: datetime, length: timedelta) -> bool:
    """Whether `since` is about `length` ago."""
    return abs(timezone.now() - since - length) < timedelta(seconds=30)


@pytest.mark.database
class TestRows:
    def test_a_saved_schedule_has_its_periodic_task(self) -> None:
        made = schedule(every=5, period=Period.MINUTES)

        task = task_of(made)

        assert (task.task, task.args) == ("matviews.refresh", '["sample.Limited"]')
        assert task.schedule.run_every == timedelta(minutes=5)
        assert (task.enabled, good_for(task), task.queue) == (True, 600, None)
        assert task.description == (
            f"Generated from refresh schedule {made.pk} of sample.Limited: change it there."
        )

    def test_maintenance_has_its_own_each_minute(self) -> None:
        task = PeriodicTask.objects.get(name=MAINTENANCE)

        assert (task.task, task.args, task.kwargs) == ("matviews.maintain", "[]", "{}")
        assert task.schedule.run_every == timedelta(minutes=1)
        assert (task.enabled, good_for(task)) == (True, 120)

    @pytest.mark.parametrize(
        ("fields", "kwargs"),
        [
            ({}, {}),
            ({"jitter": 0}, {}),
            ({"jitter": 7}, {"jitter": 7}),
            ({"jitter": MAX_JITTER + 1, "every": 60}, {"jitter": MAX_JITTER}),
            ({"phases": ["delete", "insert"], "jitter": 0}, {"phases": ["insert", "delete"]}),
        ],
    )
    def test_phases_and_jitter_are_keyword_arguments(
        self, fields: dict[str, Any], kwargs: dict[str, Any]
    ) -> None:
        assert kwargs_of(schedule(**fields)) == kwargs

    @pytest.mark.parametrize(
        ("schedules", "interval", "jitter"),
        [(9, 300, 0), (10, 300, 1), (45, 300, 4), (45, 3, 3), (80, 300, 8), (81, 300, 8)],
    )
    def test_many_schedules_are_spread_by_default(
        self, schedules: int, interval: int, jitter: int
    ) -> None:
        made = schedule(every=interval, period=Period.SECONDS)
        RefreshSchedule.objects.bulk_create(
            RefreshSchedule(view=made.view, every=1, period=Period.DAYS)
            for _ in range(schedules - 1)
        )

        reconcile()

        assert kwargs_of(made) == ({"jitter": jitter} if jitter else {})

    @pytest.mark.parametrize(("schedules", "jitter"), [(320, 32), (330, 60), (100_000, 60)])
    def test_the_default_is_at_most_a_minute(self, schedules: int, jitter: int) -> None:
        assert periodic._default_jitter(schedules) == jitter

    @pytest.mark.parametrize(
        ("every", "period", "seconds"),
        [(1, Period.SECONDS, 60), (31, Period.SECONDS, 62), (1, Period.DAYS, 172_800)],
    )
    def test_a_message_expires_after_two_intervals_but_not_before_a_minute(
        self, every: int, period: Period, seconds: int
    ) -> None:
        assert good_for(task_of(schedule(every=every, period=period))) == seconds

    def test_a_crontab_is_used_as_it_is_and_starts_at_its_time(self) -> None:
        at_four = crontab()

        task = task_of(schedule(crontab=at_four))

        assert (task.crontab_id, task.interval_id) == (at_four.pk, None)
        assert (task.kwargs, good_for(task)) == ('{"crontab": true}', 3600)

    @override_settings(MATVIEWS={"CELERY_QUEUE": "slow"})
    def test_the_queue_is_that_of_the_settings(self) -> None:
        made = schedule()

        assert {task_of(made).queue, PeriodicTask.objects.get(name=MAINTENANCE).queue} == {"slow"}

    def test_a_name_fits_however_long_the_label_is(self) -> None:
        ViewControl.objects.create(label=f"sample.{'Long' * 62}")

        made = schedule(f"sample.{'Long' * 62}")

        (task,) = ours().exclude(name=MAINTENANCE)
        assert len(task.name) == 200
        assert task.name.startswith(f"matviews: schedule {made.pk} of sample.LongLong")

    def test_interval_rows_are_shared_with_others_and_need_not_be_unique(self) -> None:
        first, _second = (
            IntervalSchedule.objects.create(every=5, period="minutes") for _ in range(2)
        )

        assert {task_of(schedule()).interval_id, task_of(schedule()).interval_id} == {first.pk}
        assert IntervalSchedule.objects.filter(every=5, period="minutes").count() == 2


class TestOff:
    """A schedule that asks for nothing at present has a disabled task that says why."""

    def assert_off(self, made: RefreshSchedule, because: str) -> None:
        task = task_of(made)
        assert not task.enabled
        assert task.description.endswith(f": change it there. Disabled: {because}.")

    def test_the_schedule_is_disabled(self) -> None:
        self.assert_off(schedule(enabled=False), "the schedule is disabled")

    @pytest.mark.parametrize(
        ("held", "because"),
        [({"enabled": False}, "the view is disabled"), ({"paused": True}, "the view is paused")],
    )
    def test_the_view_is_held_until_it_is_not(self, held: dict[str, bool], because: str) -> None:
        made, view = schedule(), control()
        for name, value in held.items():
            setattr(view, name, value)
        saved(view)
        self.assert_off(made, because)

        view.enabled, view.paused = True, False
        saved(view)

        assert task_of(made).enabled
        assert "Off" not in task_of(made).description

    def test_the_view_left_the_code_and_came_back(self) -> None:
        made = schedule()
        with registry.preserved():
            registry.unregister(LIMITED)
            assert reconcile() == 1
            self.assert_off(made, "the code no longer defines sample.Limited")
            assert reconcile() == 0

        assert reconcile() == 1
        assert task_of(made).enabled

    def test_the_view_has_errors(self) -> None:
        with registry.preserved():
            ready(make_view("Broken"))
            made = schedule("sample.Broken")

            self.assert_off(made, "the view has errors, see `manage.py check`")

    def test_the_view_has_lost_the_phase(self) -> None:
        with registry.preserved():
            ready(make_view(options={"phases": ["insert"]}, **six_hooks()))
            made = schedule("sample.Made", phases=["delete"])

            task = task_of(made)
            assert not task.enabled
            assert "Disabled: sample.Made has no phase delete; it has insert." in task.description

    @pytest.mark.parametrize(
        "fields", [{"phases": "insert"}, {"every": 2**31 - 1, "period": "days"}]
    )
    def test_what_was_never_validated_does_not_reach_beat(self, fields: dict[str, Any]) -> None:
        made, other = schedule(**fields), schedule(every=7)

        assert (task_of(made).enabled, task_of(made).interval_id) == (False, None)
        assert task_of(other).enabled

    def test_a_crontab_that_never_comes(self) -> None:
        never = crontab(day_of_month="30", month_of_year="2")

        self.assert_off(schedule(crontab=never), "its crontab never matches a time")


def _other_interval() -> dict[str, Any]:
    return {"interval": IntervalSchedule.objects.create(every=9, period="days")}


def _solar() -> dict[str, Any]:
    return {"solar": SolarSchedule.objects.create(event="sunset", latitude=1, longitude=1)}


def _clocked() -> dict[str, Any]:
    return {"clocked": ClockedSchedule.objects.create(clocked_time=timezone.now())}


EDITS: dict[str, Callable[[], dict[str, Any]]] = {
    "task": lambda: {"task": "celery.backend_cleanup"},
    "args": lambda: {"args": '["sample.Whole"]'},
    "kwargs": lambda: {"kwargs": "not JSON"},
    "interval": _other_interval,
    "no interval": lambda: {"interval": None},
    "crontab": lambda: {"crontab": crontab(), "interval": None},
    "solar": _solar,
    "clocked": _clocked,
    "enabled": lambda: {"enabled": False, "last_run_at": None},
    "queue": lambda: {"queue": "elsewhere"},
    "exchange": lambda: {"exchange": "elsewhere"},
    "routing_key": lambda: {"routing_key": "elsewhere"},
    "headers": lambda: {"headers": '{"x": 1}'},
    "priority": lambda: {"priority": 9},
    "expires": lambda: {"expires": timezone.now(), "expire_seconds": None},
    "expire_seconds": lambda: {"expire_seconds": 1},
    "one_off": lambda: {"one_off": True},
    "start_time": lambda: {"start_time": timezone.now() + HOUR},
    "description": lambda: {"description": "mine"},
}


@pytest.mark.database
class TestHealing:
    @pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
    @pytest.mark.parametrize("maintain", [False, True])
    def test_an_edit_is_taken_back(
        self, edit: Callable[[], dict[str, Any]], maintain: bool
    ) -> None:
        made = schedule()
        before = values()
        name = MAINTENANCE if maintain else task_of(made).name
        ours().filter(name=name).update(**edit())
        assert values() != before

        assert reconcile() == 1

        assert values() == before
        assert reconcile() == 0

    def test_every_field_that_can_be_edited_is_tried(self) -> None:
        fields = {field.name for field in PeriodicTask._meta.get_fields() if field.concrete}
        written_by_beat = {"last_run_at", "total_run_count", "date_changed"}

        assert fields - written_by_beat - {"id", "name"} <= set(EDITS)

    def test_deleted_rows_come_back(self) -> None:
        made = schedule()
        before = values()
        ours().delete()

        assert reconcile() == 2

        assert values() == before
        assert task_of(made).enabled

    def test_a_deleted_interval_row_which_deletes_its_tasks(self) -> None:
        schedule()
        before = [row | {"interval_id": None} for row in values()]
        IntervalSchedule.objects.all().delete()
        assert not ours().exists()

        assert reconcile() == 2

        assert [row | {"interval_id": None} for row in values()] == before

    def test_an_edited_interval_row_keeps_its_value_and_loses_our_task(self) -> None:
        made = schedule(every=5)
        edited = task_of(made).interval
        edited.every = 500
        edited.save()

        assert reconcile() == 1

        assert task_of(made).schedule.run_every == timedelta(minutes=5)
        edited.refresh_from_db()
        assert edited.every == 500

    def test_copies_and_rows_of_no_schedule_are_deleted(self) -> None:
        made = schedule()
        before = values()
        task = task_of(made)
        for name in (
            f"{task.name} (copy)",
            "matviews: schedule 99999 of sample.Limited",
            "Matviews: x",
        ):
            PeriodicTask.objects.create(name=name, task="matviews.refresh", interval=task.interval)

        assert reconcile() == 3

        assert values() == before

    def test_the_rows_of_others_are_left_alone(self) -> None:
        made = schedule()
        others = {
            "matviews: theirs": "shop.report",  # our prefix, their task
            "nightly spending": "matviews.refresh",  # their name, our task
        }
        for name, task in others.items():
            PeriodicTask.objects.create(name=name, task=task, interval=task_of(made).interval)

        assert reconcile() == 0

        assert PeriodicTask.objects.filter(name__in=others).count() == 2

    def test_a_renamed_row_is_replaced(self) -> None:
        made = schedule()
        ours().filter(name=task_of(made).name).update(name="matviews: my own name")

        assert reconcile() == 2

        assert task_of(made).enabled
        assert not ours().filter(name="matviews: my own name").exists()

    def test_a_deleted_schedule_takes_its_task_along(self) -> None:
        made, other = schedule(), schedule(every=6)
        made.delete()
        reconcile()

        assert set(ours()) == {PeriodicTask.objects.get(name=MAINTENANCE), task_of(other)}

    def test_beat_is_told_once_and_only_when_something_was_written(self) -> None:
        for every in range(1, 6):
            schedule(every=every)
        told = mock.patch.object(
            PeriodicTasks, "update_changed", side_effect=PeriodicTasks.update_changed
        )
        ours().update(description="mine")
        PeriodicTask.objects.create(
            name="matviews: stray",
            task="matviews.refresh",
            interval=IntervalSchedule.objects.first(),
        )

        with told as update_changed:
            assert reconcile() == 7
            assert update_changed.call_count == 1
            assert reconcile() == 0
            assert update_changed.call_count == 1

    def test_beat_sees_a_later_time_than_before(self) -> None:
        before = PeriodicTasks.last_change()
        schedule()

        assert PeriodicTasks.last_change() > before

    def test_it_works_where_nothing_was_ever_scheduled(self) -> None:
        PeriodicTask.objects.all().delete()
        PeriodicTasks.objects.all().delete()

        assert reconcile() == 1
        assert PeriodicTasks.last_change() is not None


@pytest.mark.database
class TestCost:
    def statements(self) -> int:
        with CaptureQueriesContext(connection) as captured:
            reconcile()
        return len(captured)

    def many(self, count: int) -> None:
        RefreshSchedule.objects.all().delete()
        reconcile()
        view = control()
        RefreshSchedule.objects.bulk_create(
            RefreshSchedule(view=view, every=number + 1) for number in range(count)
        )

    def test_the_number_of_statements_is_constant(self) -> None:
        counts = []
        for count in (3, 40):
            self.many(count)
            created, compared, idle = (self.statements() for _ in range(3))
            ViewControl.objects.filter(label=LIMITED).update(paused=True)
            paused = self.statements()
            ViewControl.objects.filter(label=LIMITED).update(paused=False)
            resumed = self.statements()
            RefreshSchedule.objects.all().delete()
            counts.append((created, compared, idle, paused, resumed, self.statements()))

        assert counts[0] == counts[1]
        assert counts[0][1:3] == (4, 3)  # what was found right is not loaded again

    @live
    def test_two_at_once_do_no_harm(self) -> None:
        self.many(40)
        reconcile()
        before = values()
        errors: list[BaseException] = []
        damages: list[Callable[[], object]] = [
            lambda: ours().update(description="mine", priority=3),
            lambda: ours().delete(),
            lambda: IntervalSchedule.objects.all().delete(),
            lambda: (PeriodicTasks.objects.all().delete(), ours().delete()),
        ]
        for damage in damages:
            damage()
            barrier = threading.Barrier(4)

            def work(barrier: threading.Barrier = barrier) -> None:
                barrier.wait(10)
                try:
                    reconcile()
                except BaseException as error:  # noqa: BLE001 - told below
                    errors.append(error)

            for thread in [in_another_connection(work) for _ in range(4)]:
                thread.join()

            assert errors == []
            # The rows of the intervals may be new.
            assert [row | {"interval_id": 0} for row in values()] == [
                row | {"interval_id": 0} for row in before
            ]
            assert reconcile() == 0


@pytest.mark.database
class TestFirstTime:
    """`last_run_at` is set so that beat sends when the view is next due, not an interval later."""

    def since(self, **successes: timedelta) -> None:
        now = timezone.now()
        times = {f"last_{phase}": now - ago for phase, ago in successes.items()}
        ViewControl.objects.filter(label=LIMITED).update(**times)

    def test_a_view_never_built_is_due_at_once(self) -> None:
        made = schedule(every=1, period=Period.HOURS)

        assert wait_less(task_of(made).last_run_at, HOUR)
        assert task_of(made).schedule.is_due(task_of(made).last_run_at).is_due

    def test_a_view_that_is_fresh_is_due_an_interval_after_its_oldest_success(self) -> None:
        self.since(insert=0 * SECOND, update=0.5 * HOUR, delete=0.25 * HOUR)

        made = schedule(every=1, period=Period.HOURS)

        assert wait_less(task_of(made).last_run_at, 0.5 * HOUR)
        assert not task_of(made).schedule.is_due(task_of(made).last_run_at).is_due

    def test_only_its_own_phases_count(self) -> None:
        self.since(insert=0.25 * HOUR)

        made = schedule(every=1, period=Period.HOURS, phases=["insert"])

        assert wait_less(task_of(made).last_run_at, 0.25 * HOUR)

    def test_a_view_long_overdue_is_due_once(self) -> None:
        self.since(insert=500 * HOUR, update=500 * HOUR, delete=500 * HOUR)

        made = schedule(every=1, period=Period.HOURS)

        assert wait_less(task_of(made).last_run_at, HOUR)

    def test_a_view_that_was_paused_is_due_as_it_would_be(self) -> None:
        made, view = schedule(every=1, period=Period.HOURS), control()
        view.paused = True
        saved(view)
        self.since(insert=0.25 * HOUR, update=0.25 * HOUR, delete=0.25 * HOUR)
        ours().update(last_run_at=None)  # as beat leaves a disabled row
        view = control()
        view.paused = False
        saved(view)

        assert wait_less(task_of(made).last_run_at, 0.25 * HOUR)

    def test_another_interval_keeps_the_time_of_the_last(self) -> None:
        made = schedule(every=1, period=Period.HOURS)
        sent = timezone.now().replace(microsecond=0) - 0.75 * HOUR
        ours().update(last_run_at=sent, total_run_count=9)

        made.every, made.period = 30, Period.MINUTES
        saved(made)

        task = task_of(made)
        assert (task.last_run_at, task.total_run_count) == (sent, 9)
        assert task.schedule.is_due(task.last_run_at).is_due

    def test_an_edit_elsewhere_keeps_the_time_of_the_last(self) -> None:
        made = schedule()
        sent = timezone.now().replace(microsecond=0)
        ours().update(last_run_at=sent, priority=3)

        reconcile()

        assert task_of(made).last_run_at == sent

    @pytest.mark.parametrize(
        "cause", [reconcile, lambda: signals.beat_init.send(sender=None)], ids=["maintain", "beat"]
    )
    def test_a_time_that_a_clock_ahead_has_left_is_forgotten(
        self, cause: Callable[[], object]
    ) -> None:
        made = schedule(every=1, period=Period.HOURS)
        future = timezone.now() + 24 * HOUR
        names = [MAINTENANCE, task_of(made).name]
        PeriodicTask.objects.filter(name__in=names).update(last_run_at=future)
        told = PeriodicTasks.last_change()

        cause()

        for task in PeriodicTask.objects.filter(name__in=names):
            assert task.schedule.is_due(task.last_run_at).is_due
        assert PeriodicTasks.last_change() > told

    def test_a_time_that_is_a_little_ahead_is_kept(self) -> None:
        made = schedule(every=1, period=Period.HOURS)
        sent = timezone.now().replace(microsecond=0) + 30 * SECOND
        ours().update(last_run_at=sent)

        assert reconcile() == 0
        assert task_of(made).last_run_at == sent

    @pytest.mark.parametrize("how", ["made", "enabled", "changed"])
    def test_a_crontab_does_not_make_up_for_a_time_that_is_past(self, how: str) -> None:
        now = timezone.now()
        past = crontab(minute=str((now - timedelta(minutes=5)).minute), hour="*")
        made = schedule(crontab=past, enabled=how != "enabled")
        if how == "changed":
            ours().update(last_run_at=now - 24 * HOUR)
            made.crontab = crontab(minute=past.minute, hour="*")
            saved(made)
        if how == "enabled":
            ours().update(last_run_at=now - 24 * HOUR)
            made.enabled = True
            saved(made)

        task = task_of(made)

        assert task.enabled
        assert not task.schedule.is_due(task.last_run_at).is_due


class TestFirstValues:
    """`refresh_every` makes the first schedules; the rows in the database rule from then on."""

    @pytest.fixture(autouse=True)
    def _registry(self) -> Iterator[None]:
        with registry.preserved():
            yield

    def define(self, refresh_every: Any) -> None:
        ready(make_view(options={"refresh_every": refresh_every}, **six_hooks()))
        reconcile()

    def schedules(self) -> Any:
        found = RefreshSchedule.objects.filter(view__label="sample.Made").order_by("pk")
        return [(made.phases, made.every, made.period) for made in found]

    def test_one_interval(self) -> None:
        self.define(timedelta(seconds=90))

        assert self.schedules() == [([], 90, "seconds")]
        assert task_of(RefreshSchedule.objects.get()).schedule.run_every == timedelta(seconds=90)

    def test_one_per_phase(self) -> None:
        ten, day = timedelta(seconds=10), timedelta(days=1)
        self.define({"insert": ten, "update": day, "delete": day})

        assert self.schedules() == [
            (["insert"], 10, "seconds"),
            (["update", "delete"], 1, "days"),
        ]
        assert ours().filter(enabled=True).count() == 3

    @pytest.mark.parametrize("choice", ["changed", "disabled", "deleted"])
    def test_what_an_operator_chose_stays(self, choice: str) -> None:
        self.define(timedelta(minutes=5))
        made = RefreshSchedule.objects.get()
        if choice == "deleted":
            made.delete()
        else:
            made.every, made.enabled = 7, choice != "disabled"
            saved(made)
        chosen = list(RefreshSchedule.objects.values())

        self.define(timedelta(minutes=1))

        assert list(RefreshSchedule.objects.values()) == chosen

    def test_migrate_writes_them(self) -> None:
        ours().delete()
        ready(make_view(options={"refresh_every": HOUR}, **six_hooks()))

        call_command("migrate", verbosity=0)

        assert ours().filter(enabled=True).count() == 2


@live
@pytest.mark.database
class TestFollowing:
    def test_a_schedule_saved_with_its_view_is_followed_after_the_commit(self) -> None:
        with mock.patch.object(
            receivers, "reconcile_if_possible", side_effect=reconcile
        ) as followed:
            with transaction.atomic():
                view = control()
                view.batch_size = 5
                view.save()
                made = [create(every=every) for every in (1, 2, 3)]
                made[0].delete()
                assert followed.call_count == 0
            assert followed.call_count == 1

        assert [task_of(each).enabled for each in made[1:]] == [True, True]

    def test_what_is_rolled_back_is_not(self) -> None:
        with transaction.atomic():
            create()
            transaction.set_rollback(True)

        assert list(ours().values_list("name", flat=True)) == [MAINTENANCE]

    def test_a_savepoint_that_is_rolled_back_takes_nothing_else_along(self) -> None:
        with transaction.atomic():
            with transaction.atomic():
                create(every=1)
                transaction.set_rollback(True)
            made = create(every=2)

        assert task_of(made).enabled

    def test_a_deleted_view_takes_its_tasks_along(self) -> None:
        create(every=1)
        create(every=2)
        control().delete()

        assert list(ours().values_list("name", flat=True)) == [MAINTENANCE]

    def test_a_failure_to_follow_fails_no_save(self, caplog: pytest.LogCaptureFixture) -> None:
        with mock.patch.object(schedules, "reconcile", side_effect=DatabaseError("no table")):
            made = create()

        assert "periodic tasks not written: matviews.maintain will write them" in caplog.text
        tasks.maintain()
        assert task_of(made).enabled

    def test_loaded_data_is_followed_when_all_is_there(self, tmp_path: Any) -> None:
        made = create()
        dump = tmp_path / "dump.json"
        call_command("dumpdata", "matviews", output=str(dump), verbosity=0)
        made.delete()

        with mock.patch.object(receivers, "reconcile_if_possible") as followed:
            call_command("loaddata", str(dump), verbosity=0)

        assert not followed.called  # not for each row
        assert task_of(RefreshSchedule.objects.get()).enabled

    @pytest.mark.parametrize("held", ["paused", "disabled"])
    def test_a_view_that_is_let_go_on_is_dispatched(self, held: str) -> None:
        asked = engine.request(Limited)
        view = control()
        view.paused, view.enabled = held == "paused", held != "disabled"
        with mock.patch.object(receivers, "dispatch_all") as dispatched:
            view.save()
            assert list(*dispatched.call_args.args) == []
            view.paused, view.enabled = False, True
            view.save()
            assert list(*dispatched.call_args.args) == [asked.view_id]

    def test_a_view_without_work_is_not_dispatched(self) -> None:
        with mock.patch.object(receivers, "dispatch_all") as dispatched:
            control().save()

        assert list(*dispatched.call_args.args) == []


class TestTasks:
    def test_a_request_with_jitter_sends_itself_again_later(self) -> None:
        with (
            mock.patch.object(tasks.refresh, "apply_async") as sent,
            CaptureQueriesContext(connection) as captured,
        ):
            tasks.refresh(LIMITED, ["insert"], jitter=100)

        assert not captured.captured_queries
        assert not Refresh.objects.exists()
        assert sent.call_args.args == ((LIMITED, ["insert"]),)
        assert -5 < sent.call_args.kwargs["eta"].timestamp() - engine.timestamp() < 100

    def test_the_share_of_the_jitter_is_fixed_and_differs_between_views(self) -> None:
        def countdown(*arguments: Any) -> float:
            with (
                mock.patch.object(engine, "timestamp", return_value=1e9),
                mock.patch.object(registry, "find", return_value=registry.find(LIMITED)),
                mock.patch.object(tasks.refresh, "apply_async") as sent,
            ):
                tasks.refresh(*arguments, jitter=100)
            return float(sent.call_args.kwargs["eta"].timestamp()) - 1e9

        first = [countdown(f"shop.View{number}") for number in range(200)]

        assert first == [countdown(f"shop.View{number}") for number in range(200)]
        tenths = [sum(low <= each < low + 10 for each in first) for low in range(0, 100, 10)]
        assert min(tenths) >= 8
        assert max(tenths) <= 36
        assert countdown(LIMITED) != countdown(LIMITED, ["insert"])

    def test_the_message_that_was_delayed_asks(self) -> None:
        with mock.patch.object(tasks.refresh, "apply_async") as sent:
            tasks.refresh(LIMITED, ["insert"], jitter=100)

        tasks.refresh(*sent.call_args.args[0])

        assert Refresh.objects.get().phases == ["insert"]

    @pytest.mark.parametrize(
        "jitter", [-1, "5", None, True, [], float("nan"), float("inf"), MAX_JITTER + 1]
    )
    def test_jitter_that_is_nonsense_is_told_and_ignored(
        self, jitter: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks.refresh(LIMITED, jitter=jitter)

        assert Refresh.objects.get().view == control()
        assert f"jitter is invalid view=sample.Limited jitter={jitter!r}" in caplog.text

    def test_a_broker_that_takes_no_delayed_message_delays_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mock.patch.object(tasks.refresh, "apply_async", side_effect=OSError("down")):
            tasks.refresh(LIMITED, jitter=60)

        assert Refresh.objects.exists()
        assert "jitter not applied view=sample.Limited" in caplog.text

    def test_eager_tasks_do_it_at_once(self) -> None:
        before = current_app._get_current_object()
        app = Celery("eager", set_as_current=True)
        app.conf.task_always_eager = True
        try:
            tasks.refresh(LIMITED, jitter=60)
        finally:
            app.close()
            before.set_current()

        assert Refresh.objects.get().state == "succeeded"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["shop.Gone"], "There is no view 'shop.Gone'."),
            ([LIMITED, ["upsert"]], "sample.Limited has no phase upsert"),
        ],
    )
    def test_what_the_code_no_longer_has_is_told_in_a_line(
        self, arguments: list[Any], reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks.refresh(*arguments)

        (told,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert reason in told.getMessage()
        assert told.exc_info is None
        assert not Refresh.objects.exists()

    def test_maintenance_mends_the_schedules_and_says_that_it_ran(self) -> None:
        made = schedule()
        ours().update(description="mine")
        Heartbeat.objects.update_or_create(
            pk=1, defaults={"maintenance_ended_at": timezone.now() - HOUR}
        )

        tasks.maintain()

        assert task_of(made).description != "mine"
        maintenance_ended_at = Heartbeat.objects.get().maintenance_ended_at
        assert maintenance_ended_at
        assert wait_less(maintenance_ended_at, 0 * HOUR)
        tasks.maintain()
        assert Heartbeat.objects.count() == 1

    def test_maintenance_reads_nothing_before_it_says_so(self) -> None:
        """SQLite does not let a transaction that has read become one that writes."""
        tasks.maintain()
        idle = mock.Mock(__name__="idle", return_value=[])
        with (
            mock.patch.multiple(
                engine,
                release_changed=idle,
                wake=idle,
                due_without_change=idle,
                rescue=idle,
                sync_shards=idle,
                sweep_stages=idle,
                fold_failures=idle,
                trim_history=idle,
                trim_alarms=idle,
                move_log=idle,
                collapse_long_queues=idle,
                mark_mistyped_views=idle,
                mark_untrackable=idle,
                mark_missing_triggers=idle,
                mark_truncated=idle,
                finish_triggers=idle,
            ),  # fmt: skip
            mock.patch.object(tasks.schedules, "reconcile", idle),
            mock.patch.object(tasks.alarms, "notify", idle),
            mock.patch.object(tasks.verifications, "rescue", idle),
            mock.patch.multiple(
                engine,
                grant_all_turns=idle,
                end_quiet_hours=idle,
                sweep_dirty_keys=idle,
                distrust_misfits=idle,
                trim_value_logs=idle,
            ),  # fmt: skip
            CaptureQueriesContext(connection) as captured,
        ):
            tasks.maintain()

        words = [each["sql"].split()[0] for each in captured]
        assert [word for word in words if word not in ("SAVEPOINT", "RELEASE", "SET")] == [
            "UPDATE", "UPDATE",
        ]  # fmt: skip

    def test_house_keeping_that_fails_keeps_no_message_from_being_sent(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.request(Limited)
        failing = mock.Mock(side_effect=DatabaseError("broken"), __name__="failing")
        with (
            mock.patch.object(tasks.schedules, "reconcile", failing),
            mock.patch.multiple(engine, sync_shards=failing, trim_history=failing),
            mock.patch.object(tasks, "send", return_value=True) as sent,
        ):
            tasks.maintain()

        assert len(sent.call_args.args[0]) == 1
        assert caplog.text.count("a maintenance chore failed chore=failing") == 3
        assert Heartbeat.objects.exists()

    def test_dispatching_several_views_gives_up_at_the_first_refusal(self) -> None:
        with mock.patch.object(tasks, "dispatch", side_effect=[True, False, True]) as dispatched:
            assert tasks.dispatch_all([1, 2, 3]) is False

        assert [call.args for call in dispatched.call_args_list] == [(1,), (2,)]
        assert tasks.dispatch_all([]) is True


class TestValidation:
    def refused(self, **fields: Any) -> dict[str, list[str]]:
        if "crontab" not in fields:
            fields = {"every": 5, "period": "minutes", **fields}
        with pytest.raises(ValidationError) as error:
            RefreshSchedule(view=control(), **fields).full_clean()
        return error.value.message_dict

    @pytest.mark.parametrize(
        ("fields", "field", "sentence"),
        [
            ({"every": 0}, "every", "An interval must be at least 1."),
            ({"every": -5}, "every", "An interval must be at least 1."),
            ({"every": None}, "every", "Enter an interval or choose a crontab."),
            ({"every": 3651, "period": "days"}, "every", "An interval must be at most 3,650 days."),
            ({"every": 1, "period": "weeks"}, "period", "Value 'weeks' is not a valid choice."),
            ({"phases": ["upsert"]}, "phases", "sample.Limited has no phase upsert; it has insert"),
            ({"phases": "insert"}, "phases", "Give a list of phases (insert, update, delete);"),
            ({"phases": {"insert": 1}}, "phases", "Give a list of phases"),
            ({"phases": [None]}, "phases", "sample.Limited has no phase None"),
            (
                {"jitter": MAX_JITTER + 1, "every": 1, "period": "hours"},
                "jitter",
                "less than or equal to 1800",
            ),
            ({"jitter": 61, "every": 1, "period": "minutes"}, "jitter", "not exceed the interval"),
        ],
    )
    def test_what_can_never_work_is_refused_with_a_sentence(
        self, fields: dict[str, Any], field: str, sentence: str
    ) -> None:
        errors = self.refused(**fields)

        assert list(errors) == [field]
        assert any(sentence in each for each in errors[field])

    def test_an_interval_and_a_crontab(self) -> None:
        assert self.refused(every=5, crontab=crontab()) == {
            "crontab": ["Leave either the interval or the crontab empty."]
        }

    @pytest.mark.parametrize(
        "fields",
        [
            {"every": 60, "period": "minutes"},
            {"every": 1, "period": "hours", "phases": ["delete", "update", "insert"]},
        ],
    )
    def test_the_same_schedule_again(self, fields: dict[str, Any]) -> None:
        schedule(every=1, period=Period.HOURS)

        (sentence,) = self.refused(**fields)["every"]
        assert sentence == (
            "sample.Limited has this schedule already: change that one, or choose other phases or "
            "another time."
        )

    def test_the_same_crontab_again(self) -> None:
        at_four = crontab()
        schedule(crontab=at_four)

        assert list(self.refused(crontab=at_four)) == ["crontab"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"every": 1, "period": "seconds"},
            {"every": 3650, "period": "days"},
            {"every": 1, "period": "hours", "phases": ["insert"]},
            {"every": 2, "period": "hours"},
            {"jitter": 0},
        ],
    )
    def test_what_can_work_is_taken_also_beside_another(self, fields: dict[str, Any]) -> None:
        schedule(every=1, period=Period.HOURS)

        made = RefreshSchedule(view=control(), **{"every": 5, **fields})
        made.full_clean()
        made.save()
        made.full_clean()

    def test_phases_are_put_in_their_order(self) -> None:
        made = RefreshSchedule(view=control(), every=5, phases=["delete", "insert", "delete"])

        made.full_clean()

        assert made.phases == [Phase.INSERT, Phase.DELETE]

    def test_a_view_that_left_the_code_may_keep_its_phases(self) -> None:
        ViewControl.objects.create(label="shop.Gone")
        made = schedule("shop.Gone", phases=["delete"])

        made.full_clean()


def test_without_django_celery_beat_the_start_says_what_to_install(tmp_path: Path) -> None:
    # also where the admin, which imports everything, comes first
    without = "INSTALLED_APPS.remove('django_celery_beat')\n"

    done = manage(tmp_path, without, "check")

    assert done.returncode == 1
    assert "add 'django_celery_beat' to INSTALLED_APPS" in done.stderr.splitlines()[-1]


def test_migrating_this_app_alone_brings_all_tables_that_it_needs() -> None:
    loader = MigrationLoader(connection)
    (ours,) = loader.graph.leaf_nodes("matviews")

    plan = loader.graph.forwards_plan(ours)

    assert ("django_celery_beat", "0019_alter_periodictasks_options") in plan


def test_a_refresh_that_succeeds_moves_the_time_that_counts() -> None:
    run(Limited)

    made = schedule(every=1, period=Period.HOURS)

    assert wait_less(task_of(made).last_run_at, 0 * HOUR)


def test_without_time_zones_beat_counts_in_utc() -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        noon = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - as everywhere in such a project

        assert periodic.to_beat(noon) == noon - 9 * HOUR
        assert periodic.from_beat(periodic.to_beat(noon)) == noon


def test_with_time_zones_it_takes_times_as_they_are() -> None:
    now = timezone.now()

    assert periodic.to_beat(now) == periodic.from_beat(now) == now


@pytest.fixture
def in_tokyo() -> Iterator[Celery]:
    """A project without time zones, and its Celery app."""
    before = current_app._get_current_object()
    app = Celery("tokyo")
    app.conf.timezone = "Asia/Tokyo"
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo", CELERY_TIMEZONE="Asia/Tokyo"):
        yield app
    app.close()
    before.set_current()
    before.set_default()


def test_beat_finds_a_new_schedule_due_in_a_project_without_time_zones(in_tokyo: Celery) -> None:
    made = schedule()

    entry = ModelEntry(task_of(made), app=in_tokyo)

    assert entry.is_due().is_due
    (planned,) = timetable()
    assert planned.next_due is not None
    assert abs(planned.next_due - timezone.now()) < timedelta(seconds=30)


def test_a_crontab_comes_at_its_time_in_a_project_without_time_zones(in_tokyo: Celery) -> None:
    often = crontab(minute="*/5", hour="*", timezone="Asia/Tokyo")

    after = periodic.crontab_after(often, timezone.now())

    assert after is not None
    assert timedelta() < after - timezone.now() <= timedelta(minutes=5)
