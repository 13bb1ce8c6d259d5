"""The Celery app of the workers and beats: `celery --app tests.chaos.celery_app`."""

import os
from typing import Any

from celery import Celery, signals

from tests.chaos import broken, clock

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.chaos.settings")

app = Celery("chaos")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _begin_worker(**_kwargs: Any) -> None:
    import celery.worker.request  # noqa: F401 - it reads the clock

    clock.shift_datetimes()
    broken.install()


@signals.beat_init.connect  # type: ignore[untyped-decorator]
def _begin_beat(**_kwargs: Any) -> None:
    import django_celery_beat.schedulers  # noqa: F401 - it reads the clock

    clock.shift_datetimes()
