"""Schedules that verify views: their periodic tasks, and where they come from."""

import json
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django_celery_beat.models import PeriodicTask

from matviews import engine
from matviews.models import RefreshSchedule, ScheduleKind, ViewControl
from matviews.tasks import schedules
from tests.helpers.source_views import LABEL, sourced
from tests.management.test_command import command

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_views")]

DAILY = {"every": 1, "period": "days", "kind": ScheduleKind.VERIFY}


def daily(**others: object) -> RefreshSchedule:
    view = ViewControl.objects.get(label=LABEL)
    return RefreshSchedule.objects.create(view=view, **{**DAILY, **others})


def task_of(schedule: RefreshSchedule) -> PeriodicTask:
    schedules.reconcile()
    return PeriodicTask.objects.get(name__contains=f"schedule {schedule.pk} ")


def test_a_schedule_sends_the_task_that_verifies() -> None:
    sourced()

    task = task_of(daily(sample=500))

    assert (task.task, json.loads(task.args)) == ("matviews.verify", [LABEL])
    assert json.loads(task.kwargs) == {"sample": 500}
    assert (task.interval.every, task.enabled) == (1, True)


def test_the_code_proposes_one_once() -> None:
    sourced(options={"verify_every": timedelta(days=1), "refresh_every": timedelta(hours=1)})
    engine.sync_controls()

    of_view = RefreshSchedule.objects.filter(view__label=LABEL)
    assert list(of_view.order_by("pk").values_list("kind", "every", "period")) == [
        ("refresh", 1, "hours"), ("verify", 1, "days"),
    ]  # fmt: skip
    of_view.filter(kind="verify").delete()
    engine.sync_controls()
    assert of_view.count() == 1


def test_it_sets_no_target_and_is_found_by_its_natural_key() -> None:
    sourced()
    made = daily()
    (status,) = engine.view_statuses([LABEL])
    assert status.target is None
    made.refresh_from_db()
    refresh = RefreshSchedule.objects.create(view=made.view, every=1, period="days")
    for each in (made, refresh):
        assert RefreshSchedule.objects.get_by_natural_key(*each.natural_key()) == each
        each.full_clean()
    with pytest.raises(ValidationError, match="has this schedule already"):
        RefreshSchedule(view=made.view, **DAILY).full_clean()


@pytest.mark.django_db(transaction=True)
def test_the_command_lists_it() -> None:
    sourced()
    daily(sample=500)

    (listed,) = command("--schedules", "--models", LABEL, "--format", "json").document["schedules"]
    assert (listed["kind"], listed["sample"], listed["phases"]) == ("verify", 500, [])
    assert "verify 500 keys" in command("--schedules", "--models", LABEL).out
