"""System checks: problems that can be found before anything runs.

Problems of a single view are found when its class is defined (`definition.py`). They are reported
here, along with those that only settings or databases show. A problem of one view is at most a
warning: Django runs the checks in `migrate` and `makemigrations`, and an error would stop both. A
cycle of views is an error: no refresh would ever bring all of them up to date.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import Error as DatabaseFailure
from django.db import connections, router
from django.utils.module_loading import import_string

from . import changes, engine
from .conf import get_settings
from .databases import is_supported
from .definition import ViewDefinition
from .exceptions import InvalidSetting
from .models import TrackedTable, ViewControl
from .queryset import check_source, check_table
from .quiet_hours import zone_fault
from .redact import error_text
from .registry import registry

__all__ = [
    "check_additive", "check_columns", "check_database", "check_full_refreshes", "check_governor",
    "check_grants", "check_on_change", "check_quiet_hours",
    "check_rights", "check_settings", "check_sources", "check_triggers", "check_views",
]  # fmt: skip


@register(Tags.models)
def check_views(**_kwargs: Any) -> list[CheckMessage]:
    """Problems in the classes of views: W101 to W108, W113, W121, W122; W001 and W004."""
    return [problem for definition in registry for problem in definition.all_problems]


@register(Tags.models)
def check_sources(**_kwargs: Any) -> list[CheckMessage]:
    """W115 to W120, W006 to W010, W012, W037, W039, W040 for `source()`; W009 for every view.

    E026: views read each other in a cycle.

    Skips what needs a database that is not reachable, or tables that are not migrated.
    """
    problems: list[CheckMessage] = []
    for definition in registry:
        problems += check_table(definition)
        hooks = definition.hooks.values()
        derived = any(each.needs_derived or each.do_derived for each in hooks)
        if derived and not definition.errors:
            with suppress(DatabaseFailure):
                problems += check_source(definition, router.db_for_write(definition.model))
    return [*problems, *_cycles()]


@register(Tags.database)
def check_on_change(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W046: `refresh_on_change` of a view whose changes are not tracked."""
    if router.db_for_write(ViewControl) not in (databases or ()):
        return []
    return [
        Warning(
            f"{definition.label}: MatviewMeta.refresh_on_change has no effect, because its changes "
            f"are not tracked: {reason}.",
            hint="Set MatviewMeta.refresh_every instead, or remove what prevents tracking: "
            "docs/change-tracking.md, What is not tracked.",
            obj=definition.model,
            id="matviews.W046",
        )
        for definition in registry
        if definition.options.delays and not definition.errors
        if (reason := engine.on_change_obstacle(definition))
    ]


def _cycles() -> Iterator[CheckMessage]:
    with suppress(DatabaseFailure):
        if cycle := engine.find_cycle():
            yield Error(
                f"Views read each other in a cycle, {', '.join(cycle)}: no order of refreshes "
                f"brings all of them up to date.",
                hint="Change one of them to read the tables that the others are computed from.",
                obj=registry.find(cycle[0]).model,
                id="matviews.E026",
            )


@register()
def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """E009: the `MATVIEWS` setting has an unknown key or an invalid value. W049: mail to nobody."""
    try:
        ours = get_settings()
    except InvalidSetting as error:
        return [Error(str(error), id="matviews.E009")]
    problems: list[CheckMessage] = []
    if ours.ALARM_HOOK and (fault := _fault_of_hook(ours.ALARM_HOOK)):
        problems.append(Error(fault, id="matviews.E009"))
    if ours.ALARM_MAIL and not settings.ADMINS:
        sentence = "MATVIEWS['ALARM_MAIL'] is on, but ADMINS is empty: alarms are mailed to nobody."
        hint = "List the people to notify in ADMINS, or turn ALARM_MAIL off."
        problems.append(Warning(sentence, hint=hint, id="matviews.W049"))
    return problems


def _fault_of_hook(path: str) -> str:
    """Why the hook for alarms cannot be called, "" if it can."""
    try:
        hook = import_string(path)
    except Exception as error:  # noqa: BLE001 - whatever a module of the project raises
        return f"MATVIEWS['ALARM_HOOK'] cannot be imported: {error_text(error)}"
    return "" if callable(hook) else f"MATVIEWS['ALARM_HOOK'] must name a function, not {hook!r}."


@register(Tags.database)
def check_database(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """E010: the database of the bookkeeping is not supported, or cannot skip locked rows."""
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
            f"matviews does not support this version of {connection.display_name}: it needs "
            f"SELECT ... FOR UPDATE SKIP LOCKED.",
            hint="Use PostgreSQL, MariaDB 10.6 or later, MySQL 8.0.1 or later, or SQLite.",
            id="matviews.E010",
        )
    ]


@register(Tags.database)
def check_grants(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W034: a role may not create staging tables. W035: it has no right on a table that it needs.

    Checks every role that may write to the bookkeeping on PostgreSQL, elsewhere this connection's.
    """
    if router.db_for_write(ViewControl) not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not reachable
        hint = (
            "{} Or name a schema in MATVIEWS['STAGING_SCHEMA'] and run `manage.py migrate`. Until "
            "then, each phase of a staged view runs as one statement."
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
    """W018: a column of a key or link has another type or collation than its model says."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not reachable
        return [
            Warning(
                f"{label}: {fault}. Keys that are equal in one place may differ in the other, so "
                f"every refresh is full and staged.",
                hint="Give the column and its model the same type and collation in a migration, "
                "and run `migrate`.",
                obj=registry.find(label).model,
                id="matviews.W018",
            )
            for label, fault in changes.mistyped(alias).items()
        ]
    return []


@register(Tags.database)
def check_triggers(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W011: triggers that log changes are missing, out of date or left over."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not reachable
        return [
            Warning(
                problem,
                hint="Run `manage.py migrate` or "
                "`manage.py update_materialized_views --triggers install`, or have somebody with "
                "the rights run the SQL that `--triggers sql` prints. Until then, every refresh of "
                "these views is full.",
                id="matviews.W011",
            )
            for problem in changes.find_problems(alias, migrated=False)
        ]
    return []


@register(Tags.database)
def check_full_refreshes(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W041: most of the last refreshes of a tracked view were full."""
    alias = router.db_for_write(ViewControl)
    if alias not in (databases or ()):
        return []
    problems: list[CheckMessage] = []
    for definition in registry:
        tracking = changes.known_tracking(definition, alias)
        # If the changes of a view never lead to keys, W040 says so.
        if not any(spec.links for spec in tracking.tables.values()):
            continue
        with suppress(DatabaseFailure):  # not migrated, or not reachable
            recent = engine.recent_refreshes(definition.label)
            if recent.usually_full:
                problems.append(_usually_full(definition, recent))
    return problems


def _usually_full(definition: ViewDefinition, recent: engine.RecentRefreshes) -> CheckMessage:
    return Warning(
        f"{definition.label}: {recent.in_words}.",
        hint=f"`manage.py update_materialized_views --explain --models {definition.label}` shows "
        f"which keys the changes of each table lead to. Declare more in MatviewMeta.depends_on, or "
        f"refresh more often, so that fewer keys change in between. If nothing helps, set "
        f"MatviewMeta.tracking = False, which saves writers the triggers.",
        obj=definition.model,
        id="matviews.W041",
    )


@register(Tags.database)
def check_additive(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """I001: which views a rule has made additive, and which it would decide differently now."""
    if router.db_for_write(ViewControl) not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not reachable
        return [
            Info(
                note,
                hint="Set MatviewMeta.additive to True or False, and run `manage.py migrate`: "
                "docs/additive.md, If additive is not set.",
                obj=definition.model,
                id="matviews.I001",
            )
            for definition, note in engine.additive_notes()
        ]
    return []


@register(Tags.database)
def check_governor(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W045: a limit of the governor has no effect in this database, or for this role."""
    if router.db_for_write(ViewControl) not in (databases or ()) or not engine.is_governed():
        return []
    with suppress(DatabaseFailure):  # not reachable
        return [
            Warning(
                f"MATVIEWS[{setting!r}] has no effect: {why}.",
                hint="On PostgreSQL, grant pg_monitor to the workers' role; otherwise remove the "
                "setting.",
                id="matviews.W045",
            )
            for setting, why in engine.ineffective_limits().items()
        ]
    return []


@register(Tags.database)
def check_quiet_hours(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W043: the quiet hours that an operator has set for a view have no effect."""
    if router.db_for_write(ViewControl) not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not reachable
        found = ((each, _fault_of_quiet_hours(each)) for each in ViewControl.objects.all())
        return [
            Warning(
                f"{control.label}: its quiet hours {fault}.",
                hint="Correct them on its page in the admin.",
                obj=control.definition and control.definition.model,
                id="matviews.W043",
            )
            for control, fault in found
            if fault
        ]
    return []


def _fault_of_quiet_hours(control: ViewControl) -> str:
    if (control.quiet_from is None) != (control.quiet_until is None):
        return f"have no {'beginning' if control.quiet_from is None else 'end'}"
    if control.quiet_zone and (fault := zone_fault(control.quiet_zone)):
        return f"have the time zone {control.quiet_zone!r}; it must be {fault}"
    return ""


@register(Tags.database)
def check_rights(databases: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """W013: PUBLIC may call trigger functions or read the secret. W014: an owner is gone."""
    alias = router.db_for_write(TrackedTable)
    if alias not in (databases or ()):
        return []
    with suppress(DatabaseFailure):  # not migrated, or not reachable
        ownerless: list[CheckMessage] = [
            Warning(
                problem,
                hint="Run `manage.py migrate`, which recreates them, or recreate that account.",
                id="matviews.W014",
            )
            for problem in changes.find_ownerless(alias)
        ]
        return ownerless + [
            Warning(
                problem,
                hint="Run `manage.py migrate` as the owner of the functions, which revokes it; for "
                'a table, REVOKE ALL ... FROM PUBLIC. See "Roles and rights" in the documentation.',
                id="matviews.W013",
            )
            for problem in changes.find_exposed(alias)
        ]
    return []
