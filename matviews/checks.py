"""System checks: what can be known to be wrong before anything runs.

Faults of a single view are found when its class is defined (`definition.py`); here they are shown,
together with the faults that need settings or databases to be seen. What is wrong with one view is a
warning at most: Django runs the checks in `migrate` and `makemigrations`, and an error stops both.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import Error as DatabaseFailure
from django.db import connections, router

from . import changes, engine
from .conf import get_settings
from .databases import is_supported
from .exceptions import InvalidSetting
from .models import TrackedTable, ViewControl
from .queryset import check_source, check_table
from .registry import registry

__all__ = [
    "check_columns", "check_database", "check_grants", "check_rights", "check_settings", "check_sources", "check_triggers",
    "check_views",
]  # fmt: skip


@register(Tags.models)
def check_views(**_kwargs: Any) -> list[CheckMessage]:
    """What is wrong with the classes of views: W101 to W108, W113, W121; W001 and W004."""
    return [problem for definition in registry for problem in definition.all_problems]


@register(Tags.models)
def check_sources(**_kwargs: Any) -> list[CheckMessage]:
    """W115 to W120, W006 to W010, W012, W036 and W037, of views with `source()`; W009 of every view.

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
    return [*problems, *_circles()]


def _circles() -> Iterator[CheckMessage]:
    with suppress(DatabaseFailure):
        if circle := engine.find_cycle():
            yield Warning(
                f"Views read each other in a circle, {', '.join(circle)}: no order of refreshes brings them "
                f"up to date.",
                hint="Let one of them read what the others are computed from.",
                obj=registry.find(circle[0]).model,
                id="matviews.W036",
            )


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
    features = connection.features
    skips_locked = features.has_select_for_update_skip_locked or not features.has_select_for_update
    if is_supported(alias) and skips_locked:
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
def check_grants(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W034: a role may make no staging tables. W035: it lacks a right on a table.

    On PostgreSQL of every role that may write to the bookkeeping, elsewhere of this connection's.
    """
    if router.db_for_write(ViewControl) not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not there
        hint = (
            "{} Or name a schema in MATVIEWS['STAGING_SCHEMA'] and run `manage.py migrate`. Until then each "
            "phase of a staged view is one statement."
        )
        staging = [
            Warning(str(each), hint=hint.format(each.grant), id="matviews.W034")
            for each in engine.staging_rights()
        ]
        tables = [
            Warning(str(each), hint=each.grant, id="matviews.W035")
            for each in engine.missing_rights()
        ]
        return [*staging, *tables]
    return []


@register(Tags.database)
def check_columns(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W018: a column of a key, or that leads to one, has another type or collation than its model says."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not there
        return [
            Warning(
                f"{label}: {fault}. Keys that are equal to one may not be to the other, so each refresh "
                f"is a full one, by way of a staging table.",
                hint="Bring the column and its model to the same type and collation, in a migration, and "
                "run `migrate`.",
                obj=registry.find(label).model,
                id="matviews.W018",
            )
            for label, fault in changes.mistyped(alias).items()
        ]
    return []


@register(Tags.database)
def check_triggers(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W011: triggers that log the changes of a table are missing, stale or left over."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not there
        return [
            Warning(
                problem,
                hint="`manage.py migrate` and `manage.py update_materialized_views --triggers install` make "
                "triggers; `--triggers sql` shows the SQL for a person who may create them. A refresh of a view of "
                "which changes are not logged is a full pass.",
                id="matviews.W011",
            )
            for problem in changes.find_problems(alias, migrated=False)
        ]
    return []


@register(Tags.database)
def check_rights(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W013: any role may call the functions of the triggers, or read their secret; W014: a trigger's owner is gone."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not there
        ownerless: list[CheckMessage] = [
            Warning(
                problem,
                hint="Run `manage.py migrate`, which makes them anew, or make that account again.",
                id="matviews.W014",
            )
            for problem in changes.find_ownerless(alias)
        ]
        return ownerless + [
            Warning(
                problem,
                hint="Run `manage.py migrate`, which takes the functions' away, as their owner; of a "
                'table, REVOKE ALL ... FROM PUBLIC. See "Roles and rights" in the documentation.',
                id="matviews.W013",
            )
            for problem in changes.find_exposed(alias)
        ]
    return []
