"""Installing and removing the triggers of the tables that views read."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from django.db import transaction

from ..databases import Triggers, triggers_of
from ..databases.trigger_spec import TriggerSpec
from ..exceptions import TablesHeld
from ..models import TrackedTable, ViewControl
from .change_log import enqueue
from .holding import HELD, drop_all, for_each_table
from .secret import log_secret
from .tracking_spec import mistyped, tracked_tables, union
from .trust import mark_missing_triggers, not_logged

__all__ = [
    "Wanted",
    "are_up_to_date",
    "drop_before_migrate",
    "find_orphans",
    "finish",
    "install",
    "remove",
    "script",
]

Wanted = Mapping[
    str, Mapping[str, TriggerSpec]
]  # by table and view, as `tracked_tables` returns it


def install(using: str) -> dict[str, str]:
    """Make the triggers that the views of the code want, and remove those that no view wants.

    Each view whose changes were not logged until now, or otherwise, is told that something has
    changed. Where the triggers are as they should be, nothing is done.

    Tables that somebody holds for too long are left to `finish`, and the others done.

    Returns:
        The tables whose changes cannot be logged, or not yet, and why.

    Raises:
        DatabaseError: the user may not create triggers.
    """
    wanted, dialect = tracked_tables(using), triggers_of(using)
    faults = dialect.untrackable_tables(wanted)
    wanted = {table: views for table, views in wanted.items() if table not in faults}
    log_secret(dialect.using)  # so that whoever may only read it finds one
    surplus = _removals(dialect, set(_known_tables(dialect)) - wanted.keys())
    left = for_each_table(dialect, surplus)
    _remove_orphans(dialect, wanted)
    dialect.secure()
    for name in dialect.ownerless():
        dialect.execute(dialect.drop("", [name]))
    return {**faults, **left, **for_each_table(dialect, _installations(dialect, wanted))}


def finish(using: str) -> dict[str, str]:
    """Make the triggers that `install` has left, if they are those that this version of the code wants.

    Returns:
        The tables that somebody holds still, and why.

    Raises:
        DatabaseError: the user may not create triggers.
    """
    left = TrackedTable.objects.exclude(pending="").values_list("table", "pending")
    if not (pending := dict(left)):
        return {}
    dialect = triggers_of(using)
    wanted = {
        table: by_view
        for table, by_view in tracked_tables(using).items()
        if pending.get(table) == dialect.version(table, union(by_view.values()))
    }
    return for_each_table(dialect, _installations(dialect, wanted), rounds=1)


def _installations(dialect: Triggers, wanted: Wanted) -> dict[str, Callable[[], None]]:
    """What brings each table's triggers and record to what is wanted."""
    present = dialect.installed_triggers()
    believed = ViewControl.objects.exclude(label__in=mistyped(dialect.using))
    controls = dict(believed.values_list("label", "pk"))
    return {
        table: partial(
            _install,
            dialect,
            table,
            union(by_view.values()),
            {controls[label] for label in by_view if label in controls},
            present.get(table, {}),
        )
        for table, by_view in wanted.items()
    }


def _remove_orphans(dialect: Triggers, wanted: Wanted) -> None:
    if orphans := find_orphans(dialect, wanted):
        with dialect.definitions():
            dialect.execute(dialect.drop("", orphans))


def find_orphans(dialect: Triggers, wanted: Wanted, faults: Collection[str] = ()) -> set[str]:
    """What is left of triggers, but for those that somebody may be about to make."""
    names = (
        dialect.names(table, union(by_view.values()))
        for table, by_view in wanted.items()
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
    """Bring one table's triggers and record to what is wanted.

    The record names its triggers only once they are there and the views have been told of what came
    before: whoever finds them named may believe that nothing was missed.
    """
    names = dialect.names(table, spec)
    record = TrackedTable.objects.filter(table=table).first() or TrackedTable(table=table)
    known = set(record.views) if record.triggers else set()
    ours = are_up_to_date(dialect, table, spec, present)
    same = ours and set(present.values()) == set(record.triggers)
    if same and known == views:
        return
    told = views - known if same else views | known
    record = _record_pending(dialect, table, dialect.version(table, spec))
    with dialect.definitions():
        record.triggers = []
        record.views, record.links = sorted(views), sorted(spec.links)
        record.columns = None if spec.columns is None else sorted(spec.columns)
        if not ours:
            record.save()
            present = dialect.installed_triggers().get(table, {})
            dialect.execute(dialect.drop(table, present))
            dialect.execute(dialect.create(table, spec))
            present = dialect.installed_triggers().get(table, {})
        with transaction.atomic(using=dialect.using):
            enqueue(told, not_logged(table))
            record.pending = ""
            record.triggers = sorted(present.get(name, name) for name in names)
            record.save()


def _record_pending(dialect: Triggers, table: str, version: str) -> TrackedTable:
    """Record that triggers of a version are to be made: if making them fails, `matviews.maintain` tries again."""
    with dialect.definitions():
        if not TrackedTable.objects.filter(table=table).update(pending=version):
            TrackedTable.objects.get_or_create(table=table, defaults={"pending": version})
        return TrackedTable.objects.get(table=table)


def are_up_to_date(
    dialect: Triggers, table: str, spec: TriggerSpec, present: Mapping[str, str]
) -> bool:
    """Whether a table has exactly the triggers that are wanted, and each does what it should."""
    return present.keys() == dialect.names(table, spec) and not dialect.replaced(table, spec)


def drop_before_migrate(using: str, tables: Collection[str] | None = None) -> None:
    """Remove the triggers of tables that are about to be altered, all by default; `install` brings them back.

    Raises:
        TablesHeld: somebody held one of them for too long. All have their triggers as before.
    """
    dialect = triggers_of(using)
    present = dialect.installed_triggers()
    chosen = present if tables is None else {t: present[t] for t in present.keys() & set(tables)}
    drop_all(dialect, chosen)
    if tables is None:
        _remove_orphans(dialect, {})


def remove(using: str, tables: Iterable[str] | None = None) -> list[str]:
    """Remove the triggers of tables, all by default, and forget that they were tracked.

    Returns:
        The names of the triggers that are gone.

    Raises:
        TablesHeld: somebody held a table for too long. The others are without triggers.
    """
    dialect = triggers_of(using)
    present = dialect.installed_triggers()
    chosen = _known_tables(dialect) if tables is None else tables
    left = for_each_table(dialect, _removals(dialect, chosen))
    if tables is None:
        _remove_orphans(dialect, {})
    if left:
        raise TablesHeld(f"Left with its triggers: {', '.join(sorted(left))}, for {HELD}.")
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
    """SQL with which a person who may create triggers brings them to what the views want; "" if they are."""
    wanted, dialect = tracked_tables(using), triggers_of(using)
    present, faults = dialect.installed_triggers(), dialect.untrackable_tables(wanted)
    mark_missing_triggers(using)
    statements = []
    for table, by_view in wanted.items():
        spec = union(by_view.values())
        if table not in faults and not are_up_to_date(dialect, table, spec, present.get(table, {})):
            statements += dialect.drop(table, present.get(table, ()))
            statements += dialect.create(table, spec)
    for table in sorted(present.keys() - wanted.keys()):
        statements += dialect.drop(table, present[table])
    statements += dialect.drop("", find_orphans(dialect, wanted, faults))
    return dialect.script(statements)
