import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from matviews.engine.pending import oldest_drained
from matviews.models import DirtyKeys, PhaseRun, Stripe, ViewChange
from matviews.phases import Phase
from tests.processes import manage


@pytest.mark.database
@pytest.mark.django_db
def test_migrations_are_complete() -> None:
    call_command("makemigrations", "matviews", check=True, dry_run=True, verbosity=0)


def test_migrations_are_complete_under_another_default_auto_field(tmp_path: Path) -> None:
    """A model's key is chosen when its class is made, so this takes a process of its own."""
    settings = (
        "DATABASES['default'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}\n"
        "DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'\n"
    )

    done = manage(tmp_path, settings, "makemigrations", "matviews", "--check", "--dry-run")

    assert done.returncode == 0, done.stdout + done.stderr


def test_taking_the_migrations_back_leaves_no_periodic_task_behind(tmp_path: Path) -> None:
    # given a migrated project, with the periodic task of watch
    database = tmp_path / "db.sqlite3"
    settings = (
        f"DATABASES['default'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': '{database}'}}\n"
    )
    assert manage(tmp_path, settings, "migrate").returncode == 0
    query = "SELECT name FROM django_celery_beat_periodictask"
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(query).fetchall() == [("matviews: watch",)]

    # when they are taken back
    done = manage(tmp_path, settings, "migrate", "matviews", "zero")

    # then beat has nothing of ours to send
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(query).fetchall() == []


def test_an_older_version_of_the_tables_is_told_in_a_sentence(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite3"
    settings = (
        f"DATABASES['default'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': '{database}'}}\n"
    )
    assert manage(tmp_path, settings, "migrate").returncode == 0

    done = manage(tmp_path, settings, "migrate", "matviews", "0001")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "are those of an older version than its code" in done.stdout
    done = manage(tmp_path, settings, "migrate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "older version" not in done.stdout


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_an_upgrade_keeps_since_when_changes_are_pending() -> None:
    before = [("matviews", "0001_initial")]
    now = timezone.now()
    MigrationExecutor(connection).migrate(before)
    try:
        # given a shard of the first version with keys that a phase has yet to process
        apps = MigrationExecutor(connection).loader.project_state(before).apps
        control = apps.get_model("matviews", "ViewControl").objects.create(label="shop.Pending")
        old = {phase: [-1, "moment"] for phase in Phase}
        stripe = apps.get_model("matviews", "Stripe").objects.create(
            view=control, number=0, changes=7, covered=old, whole_since=now - timedelta(hours=1)
        )
        for hours in (1, 2):
            apps.get_model("matviews", "DirtyKeys").objects.create(
                stripe_id=stripe.pk, number=7, count=1, keys=[["1"]],
                logged_at=now - timedelta(hours=hours),
            )  # fmt: skip
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes("matviews"))

    # then the oldest of them is known
    oldest = oldest_drained(Stripe.objects.get(pk=stripe.pk), list(Phase))
    assert oldest is not None
    assert abs(oldest - (now - timedelta(hours=2))) < timedelta(seconds=1)
    # and the way back does not stumble over them
    MigrationExecutor(connection).migrate(before)
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes("matviews"))


@pytest.mark.database
@pytest.mark.django_db(transaction=True)
def test_an_upgrade_keeps_no_key_in_its_old_form() -> None:
    before = [("matviews", "0001_initial")]
    MigrationExecutor(connection).migrate(before)
    try:
        # given a refresh of the first version whose insert is over and whose update is not
        apps = MigrationExecutor(connection).loader.project_state(before).apps
        control = apps.get_model("matviews", "ViewControl").objects.create(label="shop.Old")
        stripe = apps.get_model("matviews", "Stripe").objects.create(
            view=control, number=0, changes=7
        )
        refresh = apps.get_model("matviews", "Refresh").objects.create(
            view=control,
            phases=list(Phase),
            state="open",
            trigger="api",
            requested_at=timezone.now(),
        )
        run = {"fingerprint": "f", "filled": [[["1"], None]], "stage": "matviews_stage_1"}
        for phase, state in ((Phase.INSERT, "succeeded"), (Phase.UPDATE, "running")):
            apps.get_model("matviews", "PhaseRun").objects.create(
                refresh=refresh, stripe=stripe, phase=phase, state=state, batches=1, cursor=["1"],
                covers=[7, "moment"], **run,
            )  # fmt: skip
        apps.get_model("matviews", "DirtyKeys").objects.create(
            stripe=stripe, number=7, count=1, keys=[["1"]], logged_at=timezone.now()
        )
        apps.get_model("matviews", "ViewChange").objects.create(
            view=control, table="", links=[["1"], ["2"]], count=2
        )
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes("matviews"))

    # then its next batch begins anew, and neither skips keys nor reads rows that the first version left
    runs = PhaseRun.objects.filter(refresh=refresh.pk)
    assert not {(str(run.filled), run.stage) for run in runs} - {("[]", "")}
    assert runs.get(phase=Phase.UPDATE).fingerprint != "f"
    # and all keys are dirty
    assert not DirtyKeys.objects.exists()
    stripe = Stripe.objects.get(pk=stripe.pk)
    assert (stripe.whole, bool(stripe.whole_reason)) == (7, True)
    assert isinstance(ViewChange.objects.get(view=control.pk).links, str)
