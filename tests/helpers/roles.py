"""Roles of the server besides the one that owns everything: real, with real connections."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.db import connection

from tests.helpers.tables import execute

__all__ = [
    "RUN",
    "as_role",
    "database_role",
    "may",
    "may_work",
    "quoted",
    "session_of",
    "without_schema",
]

PASSWORD = "only-for-tests"
RUN = os.getpid()
ROW_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"


def _name(name: str) -> str:
    """A server has its roles for all databases, and there may be several test runs on it."""
    return f"made_{name}_{os.getpid()}"


def quoted(role: str) -> str:
    return f"{role}@'%'" if connection.vendor == "mysql" else role


@contextmanager
def database_role(name: str, *statements: str) -> Iterator[str]:
    """A role that may log in, until the end; `{}` in the statements is its name as SQL has it."""
    role = _name(name)
    name_in_sql = quoted(role)
    mysql = connection.vendor == "mysql"
    execute(
        f"CREATE USER {name_in_sql} IDENTIFIED BY '{PASSWORD}'"
        if mysql
        else f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'"
    )
    try:
        execute(*(each.replace("{}", name_in_sql) for each in statements))
        yield role
    finally:
        if not mysql:
            execute(f"DROP OWNED BY {role} CASCADE")
        execute(f"DROP {'USER' if mysql else 'ROLE'} {name_in_sql}")


@contextmanager
def as_role(role: str) -> Iterator[None]:
    """Within, Django's connection is the role's."""
    connection.close()
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("USER", "PASSWORD")}
    settings.update(USER=role, PASSWORD=PASSWORD)
    try:
        yield
    finally:
        connection.close()
        settings.update(before)


@contextmanager
def session_of(role: str) -> Iterator[Callable[..., Any]]:
    """A function that runs one statement in a connection of the role, which commits by itself."""
    driver: Any = connection.Database  # type: ignore[attr-defined]
    options = connection.get_connection_params() | {"user": role, "password": PASSWORD}
    options.pop("cursor_factory", None)
    options.pop("context", None)
    session = driver.connect(**options, autocommit=True)

    def run(sql: str, *params: Any) -> Any:
        cursor = session.cursor()
        cursor.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else None

    try:
        yield run
    finally:
        session.close()


def may(role: str, rights: str, *tables: str) -> None:
    """Give a role rights on tables."""
    for table in tables:
        execute(f"GRANT {rights} ON {connection.ops.quote_name(table)} TO {quoted(role)}")


def may_work(role: str, *sources: str, views: tuple[str, ...] = ()) -> None:
    """Give a role what a worker needs: to write our tables and the views, to read the sources."""
    ours = [
        model._meta.db_table
        for label in ("matviews", "django_celery_beat")
        for model in apps.get_app_config(label).get_models()
    ]
    may(role, ROW_RIGHTS, *ours, *views)
    may(role, "SELECT", *sources)
    if connection.vendor == "mysql":  # temporary tables: for deleting
        database = connection.settings_dict["NAME"]
        execute(f"GRANT CREATE TEMPORARY TABLES ON `{database}`.* TO {quoted(role)}")


@contextmanager
def without_schema(name: str) -> Iterator[None]:
    """No such schema at the beginning nor at the end; on MariaDB, no such database."""
    drop = f"DROP {'DATABASE' if connection.vendor == 'mysql' else 'SCHEMA'} IF EXISTS {name}"
    drop += "" if connection.vendor == "mysql" else " CASCADE"
    execute(drop)
    try:
        yield
    finally:
        execute(drop)
