"""Settings of the benchmark and of its worker processes: those of the tests, and its own app."""

import os

from tests.helpers.services import selected_database
from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS += ["benchmarks"]
# Tasks after which Celery closes the connection to the database; 0, its default: after each.
CELERY_DB_REUSE_MAX = int(os.environ.get("MATVIEWS_BENCH_REUSE", "0"))
if selected_database() == "mariadb":
    # PyMySQL would read all certificates of the system, 30 ms, for each connection: each task.
    DATABASES["default"].setdefault("OPTIONS", {})["ssl_disabled"] = True
