import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command

ROOT = Path(__file__).parent.parent


@pytest.mark.database
@pytest.mark.django_db
def test_migrations_are_complete() -> None:
    call_command("makemigrations", "matviews", check=True, dry_run=True, verbosity=0)


def test_migrations_are_complete_under_another_default_auto_field(tmp_path: Path) -> None:
    """A model's key is chosen when its class is made, so this takes a process of its own."""
    (tmp_path / "other_settings.py").write_text(
        "from tests.settings import *\n"
        "DATABASES['default'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}\n"
        "DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'\n"
    )
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "other_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }

    done = subprocess.run(
        [sys.executable, "-m", "django", "makemigrations", "matviews", "--check", "--dry-run"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
