"""System checks: what can be known to be wrong before anything runs.

Faults of a single view are found when its class is defined (`definition.py`); here they are shown,
together with the faults that need settings or databases to be seen.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import Error as DatabaseFailure
from django.db import connections, router

from . import changes
from .conf import get_settings
from .exceptions import InvalidSetting
from .models import ViewControl, WatchedTable
from .queryset import check_source, check_table
from .registry import registry

__all__ = ["check_database", "check_settings", "check_sources", "check_triggers", "check_views"]

VENDORS = {"postgresql", "mysql", "sqlite"}


@register(Tags.models)
def check_views(**_kwargs: Any) -> list[CheckMessage]:
    """Every problem of every view: E001 to E007, W001; E008 for one in another database."""
    problems = [problem for definition in registry for problem in definition.problems]
    return [*problems, *_views_elsewhere()]


def _views_elsewhere() -> Iterator[CheckMessage]:
    ours = router.db_for_write(ViewControl)
    for definition in registry:
        theirs = router.db_for_write(definition.model)
        if theirs != ours:
            yield Error(
                f"{definition.label} is in the database {theirs!r}, the bookkeeping of matviews in "
                f"{ours!r}: a batch could not commit both at once.",
                hint=f"Route the view to {ours!r}, or the app matviews to {theirs!r}.",
                obj=definition.model,
                id="matviews.E008",
            )


@register(Tags.models)
def check_sources(**_kwargs: Any) -> list[CheckMessage]:
    """E015 to E018, W006 to W010 and W012, of views with `source()`; W009 of every view.

    What needs a database that is not there, or tables that are not migrated, is left out.
    """
    problems: list[CheckMessage] = []
    for definition in registry:
        problems += check_table(definition)
        hooks = definition.hooks.values()
        derived = any(each.needs_derived or each.do_derived for each in hooks)
        if derived and not definition.errors:
            with suppress(DatabaseFailure):
                problems += check_source(definition, router.db_for_write(definition.model))
    return problems


@register()
def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """E009: the `MATVIEWS` setting has a key or a value that cannot be."""
    try:
        get_settings()
    except InvalidSetting as error:
        return [Error(str(error), id="matviews.E009")]
    return []


@register(Tags.database)
def check_database(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """E010: the database of the bookkeeping cannot lock a row without waiting."""
    alias = router.db_for_write(ViewControl)
    if alias not in (databases or ()):
        return []
    connection = connections[alias]
    rows_lock = connection.features.has_select_for_update_skip_locked
    if connection.vendor == "sqlite" or (connection.vendor in VENDORS and rows_lock):
        return []
    return [
        Error(
            f"matviews cannot work in {connection.display_name} as it is here: it needs "
            f"SELECT ... FOR UPDATE SKIP LOCKED.",
            hint="Use PostgreSQL, MariaDB 10.6 or later, MySQL 8.0.1 or later, or SQLite.",
            id="matviews.E010",
        )
    ]


@register(Tags.database)
def check_triggers(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W011: triggers that log the changes of a table are missing, stale or left over."""
    alias = router.db_for_write(WatchedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not there
        return [
            Warning(
                problem,
                hint="Run `manage.py update_materialized_views --triggers install`; `--triggers sql` "
                "shows the SQL for a person who may create them. A refresh of a view of which changes "
                "are not logged is a full pass.",
                id="matviews.W011",
            )
            for problem in changes.find_problems(alias)
        ]
    return []
