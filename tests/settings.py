"""Settings of the test run and of the worker processes that it starts."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers import services

# One number per run, inherited by its worker processes, so that two runs share no database.
RUN = os.environ.setdefault("MATVIEWS_TEST_RUN", str(os.getpid()))


def _sqlite() -> dict[str, Any]:
    # A file even for tests: worker processes open it too.
    path = str(Path(tempfile.gettempdir()) / f"test_matviews_{RUN}.sqlite3")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        # No test takes the power from the machine.
        "OPTIONS": {"timeout": 20, "init_command": "PRAGMA synchronous = OFF"},
        "TEST": {"NAME": path},
    }


def _server(engine: str, address: str, **test: str) -> dict[str, Any]:
    parts = urlsplit(address)
    return {
        "ENGINE": engine,
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": parts.port or services.DEFAULT_PORTS[parts.scheme],
        "TEST": {"NAME": f"test_matviews_{RUN}", **test},
    }


def _database(selected: str) -> dict[str, Any]:
    if selected == "sqlite":
        return _sqlite()
    if selected == "postgres":
        return _server("django.db.backends.postgresql", services.url("postgres"))
    if selected == "mariadb":
        import pymysql

        pymysql.install_as_MySQLdb()
        server = _server("django.db.backends.mysql", services.url("mariadb"), CHARSET="utf8mb4")
        # PyMySQL reads the system's certificates for each connection, which was half of its work.
        return server | {"OPTIONS": {"ssl_disabled": True}}
    raise RuntimeError(f"MATVIEWS_TEST_DB={selected!r}: choose sqlite, postgres or mariadb.")


_default = _database(services.selected_database())
# Worker processes open the run's test database by its name.
_default["NAME"] = os.environ.get("MATVIEWS_TEST_DB_NAME", _default["NAME"])

DATABASES = {"default": _default}
SECRET_KEY = "only for tests"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "matviews",
    "tests.sample",
    "tests.shapes",
]
MIDDLEWARE = [
    "tests.helpers.csp.strict_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# shapes.JsonKey, which SQLite cannot have.
SILENCED_SYSTEM_CHECKS = ["matviews.W116"]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Worker processes take over what the test that starts them has set.
MATVIEWS: dict[str, Any] = json.loads(os.environ.get("MATVIEWS_TEST_SETTINGS", "{}"))

CELERY_BROKER_URL = os.environ.get("MATVIEWS_TEST_BROKER_URL", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("MATVIEWS_TEST_QUEUE", "matviews-test")
# A dead broker must fail soon; the prefix keeps runs on one Redis apart.
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = (
    {
        "global_keyprefix": os.environ["MATVIEWS_TEST_KEY_PREFIX"],
        "socket_timeout": 2,
        "socket_connect_timeout": 2,
    }
    if CELERY_BROKER_URL.startswith("redis")
    else {}
)
