"""Settings of the processes of chaos: those of the tests, with its own app alone."""

import os

from tests.chaos.variables import IMPATIENT
from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

_OPTIONS = {
    "postgresql": {"connect_timeout": 5, "options": "-c lock_timeout=3s -c statement_timeout=20s"},
    "mysql": {
        "connect_timeout": 5,
        "init_command": "SET lock_wait_timeout = 3, innodb_lock_wait_timeout = 3",
    },
}

INSTALLED_APPS = [
    *(app for app in INSTALLED_APPS if app not in ("tests.sample", "tests.shapes")),
    "tests.chaos",
]
if os.environ.get(IMPATIENT):
    _default = DATABASES["default"]
    _default["OPTIONS"] = _OPTIONS[_default["ENGINE"].rpartition(".")[2]]
CELERY_DB_REUSE_MAX = 10_000
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
