"""Installing and removing the triggers of the tables that views read."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from django.db import DatabaseError, transaction

from ..databases import Triggers, triggers_of
from ..databases.trigger_spec import TriggerSpec, is_covered
from ..exceptions import TablesLocked
from ..models import TrackedTable, ViewControl
from . import value_logs
from .change_log import enqueue
from .secret import log_secret
from .table_locks import LOCKED, drop_all, for_each_table
from .tracking_spec import mistyped, tracked_tables, union
from .trust import mark_missing_triggers, not_logged

__all__ = [
    "RequiredTriggers",
    "are_up_to_date",
    "drop_before_migrate",
    "find_orphans",
    "finish",
    "install",
    "remove",
    "script",
]

#: By table and view, as `tracked_tables` returns it.
RequiredTriggers = Mapping[str, Mapping[str, TriggerSpec]]


def install(using: str) -> dict[str, str]:
    """Create the triggers that the views require, and drop those that no view requires.

    If a table's triggers did not log for a view, or logged something else for it, a full refresh of
    that view is queued. Triggers that are up to date are left alone. Tables that stay locked are
    left to `finish`.

    Returns:
        The tables whose changes cannot be logged, or not yet, and why.

    Raises:
        DatabaseError: the role may not create triggers.
    """
    required, dialect = tracked_tables(using), triggers_of(using)
    faults = dialect.untrackable_tables(required)
    required = {table: views for table, views in required.items() if table not in faults}
    log_secret(dialect.using)  # create it for the roles that may only read it
    removals = _removals(dialect, set(_known_tables(dialect)) - required.keys())
    left = for_each_table(dialect, removals)
    _remove_orphans(dialect, required)
    dialect.secure()
    for name in dialect.ownerless():
        dialect.execute(dialect.drop("", [name]))
    left |= for_each_table(dialect, _installations(dialect, required))
    if not left:  # else triggers may still write to them
        value_logs.drop_unneeded(using, required)
    return {**faults, **left}


def finish(using: str) -> dict[str, str]:
    """Create the triggers that `install` left, unless this version of the code requires others.

    Also those that new partitions lack.

    Returns:
        The tables that are still locked, and why.

    Raises:
        DatabaseError: the role may not create triggers.
    """
    dialect = triggers_of(using)
    if not (pending := _pending(dialect)):
        return {}
    faults = dialect.untrackable_tables(pending)
    required = {
        table: by_view
        for table, by_view in tracked_tables(using).items()
        if table not in faults
        and pending.get(table) == dialect.version(table, union(by_view.values()))
    }
    return for_each_table(dialect, _installations(dialect, required), rounds=1)


def _pending(dialect: Triggers) -> dict[str, str]:
    """The version of the triggers that are still to be created, by table."""
    recorded = {record.table: record for record in TrackedTable.objects.order_by("pk")}
    pending = {
        table: record.pending_version
        for table, record in recorded.items()
        if record.pending_version
    }
    if lacking := dialect.lacking(recorded) if recorded else ():
        present = dialect.installed_triggers()
        pending = {table: _version(present.get(table, ())) for table in lacking} | pending
    return pending


def _version(names: Iterable[str]) -> str:
    """The version of a table's triggers; "" if there are none, or of several."""
    versions = {name.split("_")[2] for name in names}
    return versions.pop() if len(versions) == 1 else ""


def _installations(dialect: Triggers, required: RequiredTriggers) -> dict[str, Callable[[], None]]:
    """A function for each table that brings its triggers and record up to date."""
    present, lacking = dialect.installed_triggers(), dialect.lacking(required)
    trusted = ViewControl.objects.exclude(label__in=mistyped(dialect.using))
    controls = dict(trusted.values_list("label", "pk"))
    return {
        table: partial(
            _install,
            dialect,
            table,
            by_view,
            {controls[label]: spec.columns for label, spec in by_view.items() if label in controls},
            present.get(table, {}),
            lacking.get(table, []),
        )
        for table, by_view in required.items()
    }


def _remove_orphans(dialect: Triggers, required: RequiredTriggers) -> None:
    if orphans := find_orphans(dialect, required):
        with dialect.definitions():
            dialect.execute(dialect.drop("", orphans))


def find_orphans(
    dialect: Triggers, required: RequiredTriggers, faults: Collection[str] = ()
) -> set[str]:
    """Trigger functions without a trigger, except those that another process may be installing."""
    names = (
        dialect.names(table, union(by_view.values()))
        for table, by_view in required.items()
        if table not in faults
    )
    return dialect.orphans().difference(*names)


def _known_tables(dialect: Triggers) -> list[str]:
    return [*TrackedTable.objects.values_list("table", flat=True), *dialect.installed_triggers()]


def _install(
    dialect: Triggers,
    table: str,
    by_view: Mapping[str, TriggerSpec],
    views: Mapping[int, frozenset[str] | None],
    present: Mapping[str, str],
    lacking: Collection[str],
) -> None:
    """Bring one table's triggers and record up to date; `views` are the columns that each reads.

    The record names the triggers only once they exist and the views have their full refresh queued:
    a process that reads the names may trust that nothing was missed. Nothing was missed in a
    partition that never had a row before it got its triggers.
    """
    required = union(by_view.values())
    spec = _with_logs(dialect, table, required, by_view)
    names = dialect.names(table, spec)
    record = TrackedTable.objects.filter(table=table).first() or TrackedTable(table=table)
    known = {pk: record.columns_read(pk) for pk in record.views if record.triggers}
    up_to_date = are_up_to_date(dialect, table, spec, present)
    same = up_to_date and set(present.values()) == set(record.triggers)
    if same and known == views and not lacking:
        outdated = TrackedTable.objects.filter(table=table).exclude(pending_version="")
        outdated.update(pending_version="")
        return
    to_refresh = {*views, *known}
    if same:
        to_refresh = {pk for pk in views if not (pk in known and is_covered(views[pk], known[pk]))}
    record = _record_pending(dialect, table, dialect.version(table, required))
    with dialect.definitions():
        record.triggers = []
        record.record(spec, views)
        value_logs.forget(table, {*views, *known}, spec.value_logs)
        if not up_to_date:
            record.save()
            present = dialect.installed_triggers().get(table, {})
            dialect.execute(dialect.drop(table, present))
            dialect.execute(dialect.create(table, spec))
            present = dialect.installed_triggers().get(table, {})
        elif lacking:
            dialect.execute(dialect.fill(table, spec, lacking))
            present = dialect.installed_triggers().get(table, {})
            to_refresh = set(views) if dialect.were_written(lacking) else to_refresh
        with transaction.atomic(using=dialect.using):
            enqueue(to_refresh, not_logged(table))
            record.pending_version = ""
            record.triggers = sorted(present.get(name, name) for name in names)
            if not same:  # else only `mark_truncated` may take note of a TRUNCATE
                record.storage = dialect.storage([table]).get(table, "")
            record.save()


def _with_logs(
    dialect: Triggers, table: str, required: TriggerSpec, by_view: Mapping[str, TriggerSpec]
) -> TriggerSpec:
    """What the triggers of a table log, with those value logs that there are now."""
    try:
        return replace(required, value_logs=value_logs.create(dialect, by_view))
    except DatabaseError:  # one of them is locked: later, so are the triggers
        _record_pending(dialect, table, dialect.version(table, required))
        raise


def _record_pending(dialect: Triggers, table: str, version: str) -> TrackedTable:
    """Record the version to be installed: if that fails, `matviews.maintain` tries again."""
    with dialect.definitions():
        if not TrackedTable.objects.filter(table=table).update(pending_version=version):
            TrackedTable.objects.get_or_create(table=table, defaults={"pending_version": version})
        return TrackedTable.objects.get(table=table)


def are_up_to_date(
    dialect: Triggers, table: str, spec: TriggerSpec, present: Mapping[str, str]
) -> bool:
    """Whether a table has exactly the required triggers, and each does what it should."""
    return present.keys() == dialect.names(table, spec) and not dialect.replaced(table, spec)


def drop_before_migrate(using: str, tables: Collection[str] | None = None) -> None:
    """Drop the triggers of tables to be altered, by default all; `install` restores them.

    Raises:
        TablesLocked: one of the tables stayed locked. All triggers are as before.
    """
    dialect = triggers_of(using)
    present = dialect.installed_triggers()
    chosen = present if tables is None else {t: present[t] for t in present.keys() & set(tables)}
    drop_all(dialect, chosen)
    if tables is None:
        _remove_orphans(dialect, {})


def remove(using: str, tables: Iterable[str] | None = None) -> list[str]:
    """Drop the triggers of tables, by default all, and the records of what was tracked.

    Returns:
        The names of the triggers that are gone.

    Raises:
        TablesLocked: a table stayed locked. The others have lost their triggers.
    """
    dialect = triggers_of(using)
    present = dialect.installed_triggers()
    chosen = _known_tables(dialect) if tables is None else tables
    left = for_each_table(dialect, _removals(dialect, chosen))
    if tables is None:
        _remove_orphans(dialect, {})
    if left:
        raise TablesLocked(
            f"These tables keep their triggers, because {LOCKED}: {', '.join(sorted(left))}."
        )
    if tables is None:
        value_logs.drop_unneeded(using, {})
    return sorted(name for table in set(chosen) for name in present.get(table, ()))


def _removals(dialect: Triggers, tables: Iterable[str]) -> dict[str, Callable[[], None]]:
    present = dialect.installed_triggers()
    return {
        table: partial(_remove, dialect, table, present.get(table, ()))
        for table in sorted(set(tables))
    }


def _remove(dialect: Triggers, table: str, names: Iterable[str]) -> None:
    with dialect.definitions():
        dialect.execute(dialect.drop(table, names))
        TrackedTable.objects.filter(table=table).delete()


def script(using: str) -> str:
    """SQL that brings the triggers up to date, for whoever may create them; "" if they are."""
    required, dialect = tracked_tables(using), triggers_of(using)
    present, faults = dialect.installed_triggers(), dialect.untrackable_tables(required)
    mark_missing_triggers(using)
    statements, lacking = list[str](), dialect.lacking(required)
    for table in sorted(required.keys() - faults.keys()):
        statements += value_logs.missing(using, required[table])
        spec = value_logs.installable(using, required[table])
        if are_up_to_date(dialect, table, spec, present.get(table, {})):
            statements += dialect.fill(table, spec, lacking.get(table, ()))
        else:
            statements += dialect.drop(table, present.get(table, ()))
            statements += dialect.create(table, spec)
    for table in sorted(present.keys() - required.keys()):
        statements += dialect.drop(table, present[table])
    statements += dialect.drop("", find_orphans(dialect, required, faults))
    return dialect.script(statements)
