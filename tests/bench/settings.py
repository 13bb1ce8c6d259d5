"""Settings of the benchmark and of its worker processes: those of the tests, and its own app."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

INSTALLED_APPS += ["tests.bench"]
DATABASES["default"]["CONN_MAX_AGE"] = int(os.environ.get("MATVIEWS_BENCH_CONN_MAX_AGE", "0"))
