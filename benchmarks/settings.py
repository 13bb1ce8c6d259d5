"""Settings of the benchmark and of its worker processes: those of the tests, and its own app."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS += ["benchmarks"]
# Tasks after which Celery closes the connection to the database; 0, its default: after each.
CELERY_DB_REUSE_MAX = int(os.environ.get("MATVIEWS_BENCH_REUSE", "0"))
