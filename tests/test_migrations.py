import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management import call_command

from tests.helpers.processes import manage


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
    # given a migrated project, with the periodic task of maintenance
    database = tmp_path / "db.sqlite3"
    settings = (
        f"DATABASES['default'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': '{database}'}}\n"
    )
    assert manage(tmp_path, settings, "migrate").returncode == 0
    query = "SELECT name FROM django_celery_beat_periodictask"
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(query).fetchall() == [("matviews: maintenance",)]

    # when they are taken back
    done = manage(tmp_path, settings, "migrate", "matviews", "zero")

    # then beat has nothing of ours to send
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute(query).fetchall() == []
