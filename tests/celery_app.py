"""The Celery app of the worker processes: `celery --app tests.celery_app worker`."""

import os
from pathlib import Path

from celery import Celery

from tests.helpers import freezing

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

if path := os.environ.get(freezing.VARIABLE):
    freezing.install(freezing.Freezer(Path(path)))
