"""Models of views that migrations rename: control, pause, schedules and history go with them."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import migrations
from django.db.models.signals import post_migrate
from django_celery_beat.models import PeriodicTask

from matviews import engine
from matviews.models import Refresh, RefreshSchedule, ViewControl
from matviews.registry import registry
from tests.helpers.view_classes import make_view, run, six_hooks

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

Rename = migrations.RenameModel


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with registry.preserved():
        yield


def view(name: str) -> type[Any]:
    model = make_view(name, **six_hooks())
    registry.register(model)
    return model


def migrated(*operations: Any, backwards: bool = False) -> None:
    """What `migrate` says when it has run a migration of these operations."""
    from django.apps import apps

    Migration = type("Migration", (migrations.Migration,), {"operations": operations})  # noqa: N806
    migration = Migration("0002_rename", "sample")
    config = apps.get_app_config("matviews")
    plan = [(migration, backwards)] if operations else []
    post_migrate.send(
        config, app_config=config, using=engine.alias(), plan=plan, verbosity=0, apps=apps
    )


def operated(name: str) -> ViewControl:
    """A view with a pause, a schedule and a history."""
    refresh = run(view(name))
    control: ViewControl = refresh.view
    RefreshSchedule.objects.create(view=control, every=7)
    ViewControl.objects.filter(pk=control.pk).update(paused=True)
    return control


def deployed(*renames: tuple[str, str]) -> None:
    """The code with the new names."""
    for old, _new in renames:
        registry.unregister(f"sample.{old}")
    for _old, new in renames:
        view(new)


def assert_followed(control: ViewControl, label: str) -> None:
    now = ViewControl.objects.get(label=label)
    assert (now.pk, now.paused) == (control.pk, True)
    assert now.refreshes.count() == 1
    (schedule,) = now.schedules.all()
    (task,) = PeriodicTask.objects.filter(name__contains=f"schedule {schedule.pk} of ")
    assert (task.name.endswith(f" of {label}"), task.enabled) == (True, False)
    assert not Refresh.objects.exclude(view__in=ViewControl.objects.all()).exists()


@pytest.fixture
def control() -> ViewControl:
    view("Old")
    migrated()
    registry.unregister("sample.Old")
    return operated("Old")


@pytest.mark.parametrize(
    "operation",
    [
        Rename("Old", "New"),
        Rename("old", "new"),
        migrations.SeparateDatabaseAndState(state_operations=[Rename("Old", "New")]),
        migrations.RunSQL("", state_operations=[Rename("Old", "New")]),
    ],
)
def test_a_renamed_view_keeps_what_an_operator_has_set(
    control: ViewControl, operation: Any
) -> None:
    deployed(("Old", "New"))
    migrated(operation)

    assert_followed(control, "sample.New")
    assert not ViewControl.objects.filter(label="sample.Old").exists()


def test_backwards_too_and_forwards_again(control: ViewControl) -> None:
    deployed(("Old", "New"))
    migrated(Rename("Old", "New"))
    # the code of the new name is still there when the migration is taken back
    migrated(Rename("Old", "New"), backwards=True)
    assert ViewControl.objects.get(label="sample.Old").paused

    migrated(Rename("Old", "New"))
    assert_followed(control, "sample.New")


def test_several_renames_of_one_view(control: ViewControl) -> None:
    deployed(("Old", "Newest"))
    migrated(Rename("Old", "New"), Rename("New", "Newest"))

    assert_followed(control, "sample.Newest")


def test_two_views_that_swap_their_names(control: ViewControl) -> None:
    view("Other")
    migrated()
    registry.unregister("sample.Other")
    other = operated("Other")
    migrated(Rename("Old", "Between"), Rename("Other", "Old"), Rename("Between", "Other"))

    assert_followed(control, "sample.Other")
    assert_followed(other, "sample.Old")


def test_the_history_of_a_view_that_had_the_name_before_stays(control: ViewControl) -> None:
    view("New")
    migrated()
    gone = run("sample.New").view
    registry.unregister("sample.New")
    deployed(("Old", "New"))
    migrated(migrations.DeleteModel("New"), Rename("Old", "New"))

    assert_followed(control, "sample.New")
    assert ViewControl.objects.get(pk=gone.pk).refreshes.count() == 1


def test_a_model_that_is_no_view_is_left_alone() -> None:
    before = list(ViewControl.objects.values())
    migrated(Rename("Nothing", "NothingElse"))

    assert list(ViewControl.objects.values()) == before
