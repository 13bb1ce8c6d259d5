"""Installing and removing the triggers of the tables that views read."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from django.db import transaction

from ..databases import Triggers, triggers_of
from ..databases.trigger_spec import TriggerSpec
from ..exceptions import TablesLocked
from ..models import TrackedTable, ViewControl
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
    return {**faults, **left, **for_each_table(dialect, _installations(dialect, required))}


def finish(using: str) -> dict[str, str]:
    """Create the triggers that `install` left, unless this version of the code requires others.

    Returns:
        The tables that are still locked, and why.

    Raises:
        DatabaseError: the role may not create triggers.
    """
    left = TrackedTable.objects.exclude(pending="").values_list("table", "pending")
    if not (pending := dict(left)):
        return {}
    dialect = triggers_of(using)
    required = {
        table: by_view
        for table, by_view in tracked_tables(using).items()
        if pending.get(table) == dialect.version(table, union(by_view.values()))
    }
    return for_each_table(dialect, _installations(dialect, required), rounds=1)


def _installations(dialect: Triggers, required: RequiredTriggers) -> dict[str, Callable[[], None]]:
    """A function for each table that brings its triggers and record up to date."""
    present = dialect.installed_triggers()
    trusted = ViewControl.objects.exclude(label__in=mistyped(dialect.using))
    controls = dict(trusted.values_list("label", "pk"))
    return {
        table: partial(
            _install,
            dialect,
            table,
            union(by_view.values()),
            {controls[label] for label in by_view if label in controls},
            present.get(table, {}),
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
    spec: TriggerSpec,
    views: set[int],
    present: Mapping[str, str],
) -> None:
    """Bring one table's triggers and record up to date.

    The record names the triggers only once they exist and the views have their full refresh queued:
    whoever reads the names may trust that nothing was missed.
    """
    names = dialect.names(table, spec)
    record = TrackedTable.objects.filter(table=table).first() or TrackedTable(table=table)
    known = set(record.views) if record.triggers else set()
    up_to_date = are_up_to_date(dialect, table, spec, present)
    same = up_to_date and set(present.values()) == set(record.triggers)
    if same and known == views:
        return
    to_refresh = views - known if same else views | known
    record = _record_pending(dialect, table, dialect.version(table, spec))
    with dialect.definitions():
        record.triggers = []
        record.views, record.links = sorted(views), sorted(spec.links)
        record.columns = None if spec.columns is None else sorted(spec.columns)
        if not up_to_date:
            record.save()
            present = dialect.installed_triggers().get(table, {})
            dialect.execute(dialect.drop(table, present))
            dialect.execute(dialect.create(table, spec))
            present = dialect.installed_triggers().get(table, {})
        with transaction.atomic(using=dialect.using):
            enqueue(to_refresh, not_logged(table))
            record.pending = ""
            record.triggers = sorted(present.get(name, name) for name in names)
            record.save()


def _record_pending(dialect: Triggers, table: str, version: str) -> TrackedTable:
    """Record the version to be installed: if that fails, `matviews.maintain` tries again."""
    with dialect.definitions():
        if not TrackedTable.objects.filter(table=table).update(pending=version):
            TrackedTable.objects.get_or_create(table=table, defaults={"pending": version})
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
    statements = []
    for table, by_view in required.items():
        spec = union(by_view.values())
        if table not in faults and not are_up_to_date(dialect, table, spec, present.get(table, {})):
            statements += dialect.drop(table, present.get(table, ()))
            statements += dialect.create(table, spec)
    for table in sorted(present.keys() - required.keys()):
        statements += dialect.drop(table, present[table])
    statements += dialect.drop("", find_orphans(dialect, required, faults))
    return dialect.script(statements)
