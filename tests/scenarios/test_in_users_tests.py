"""Views within a project's own tests: inside `TestCase`, where everything is rolled back."""

from celery import current_app
from django.core.management import call_command
from django.test import TestCase
from django_celery_beat.models import PeriodicTask

from matviews import engine
from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.states import RefreshState
from tests.sample.models import Fault, Item, Limited


class ViewTests(TestCase):
    def setUp(self) -> None:
        Item.objects.bulk_create([Item(value=number) for number in range(5)])

    def test_the_command_brings_a_view_up_to_date(self) -> None:
        call_command("update_materialized_views", models=["Limited"], verbosity=0)
        assert Limited.objects.count() == 5
        assert Limited.is_fresh()

    def test_eager_tasks_work_a_request_off_when_the_callbacks_run(self) -> None:
        current_app.conf.task_always_eager = True
        self.addCleanup(setattr, current_app.conf, "task_always_eager", False)
        with self.captureOnCommitCallbacks(execute=True):
            refresh = Limited.refresh()
        refresh.refresh_from_db()
        assert refresh.state == RefreshState.SUCCEEDED
        assert Limited.objects.count() == 5

    def test_a_failing_hook_leaves_the_test_usable(self) -> None:
        Fault.objects.create(view="Limited", hook="do_insert", action="raise")
        with self.captureOnCommitCallbacks():
            Limited.refresh()
        with self.assertRaisesMessage(Exception, "1 of 1 views failed"):
            call_command("update_materialized_views", models=["Limited"], verbosity=0)
        assert Limited.objects.count() == 0
        assert Refresh.objects.filter(state=RefreshState.FAILED).count() == 2

    def test_each_save_of_a_schedule_is_followed_when_the_callbacks_run(self) -> None:
        engine.sync_controls()
        with self.captureOnCommitCallbacks(execute=True):
            schedule = RefreshSchedule.objects.create(
                view=ViewControl.objects.get(label="sample.Limited"), every=1
            )
        assert PeriodicTask.objects.get(name__contains="Limited").enabled
        schedule.enabled = False
        with self.captureOnCommitCallbacks(execute=True):
            schedule.save()
        assert not PeriodicTask.objects.get(name__contains="Limited").enabled
