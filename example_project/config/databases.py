"""DATABASES["default"] from an address, as in postgres://user:password@host:5432/name."""

from typing import Any
from urllib.parse import unquote, urlsplit

ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgres": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}


def database(address: str) -> dict[str, Any]:
    parts = urlsplit(address)
    if parts.scheme not in ENGINES:
        raise ValueError(f"DATABASE_URL must begin with one of {', '.join(ENGINES)}: {address!r}")
    settings: dict[str, Any] = {"ENGINE": ENGINES[parts.scheme], "NAME": unquote(parts.path[1:])}
    if parts.scheme == "sqlite":
        return {**settings, "OPTIONS": SQLITE_OPTIONS}
    if parts.scheme == "mysql":
        _use_pymysql()
        settings |= {
            "OPTIONS": {"charset": "utf8mb4"},
            "TEST": {"CHARSET": "utf8mb4", "COLLATION": "utf8mb4_bin"},
        }
    return settings | {
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }


# Readers go on while somebody writes, and writers wait for each other instead of failing.
SQLITE_OPTIONS = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def _use_pymysql() -> None:
    """Take PyMySQL where mysqlclient, which needs a compiler, is not installed."""
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        import pymysql

        pymysql.install_as_MySQLdb()
