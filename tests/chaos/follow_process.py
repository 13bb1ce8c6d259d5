"""`--follow` in a process whose clock can be wrong: `python -m tests.chaos.follow_process`."""

from tests.chaos import clock

clock.install()  # before anything is imported that binds the time

import logging  # noqa: E402
import sys  # noqa: E402

import django  # noqa: E402

#: As Celery's, so that the logs of all processes can be read alike.
FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"

if __name__ == "__main__":
    django.setup()
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    from django.core.management import call_command

    from tests.chaos import broken, celery_app

    celery_app.app.set_default()
    clock.shift_datetimes()
    broken.install()
    call_command("update_materialized_views", "--follow", *sys.argv[1:])
