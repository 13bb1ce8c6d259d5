"""The triggers of the tables that views read: made, held against what the code wants, removed."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connections, transaction

from ..models import ViewControl, WatchedTable
from .dialects import TriggerDialect, dialect_of
from .log import enqueue
from .watched import Tracking, Watch, together, watched_tables

__all__ = [
    "find_problems",
    "forget_gone",
    "forget_untrackable",
    "install",
    "is_watched",
    "read_record",
    "record_of",
    "remove",
    "script",
    "take_down",
    "untracked_tables",
]

Wanted = Mapping[str, Mapping[str, Watch]]  # by table and view, as `watched_tables` returns it


def untracked_tables(view_id: int, tracking: Tracking, using: str) -> set[str]:
    """The tables of which the triggers do not log, or not for this view, all that counts for it."""
    dialect = dialect_of(using)
    connection: Any = connections[using]
    watched, table = map(connection.ops.quote_name, (WatchedTable._meta.db_table, "table"))
    marks = ", ".join(["%s"] * len(tracking.tables))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {record_of('watched', dialect)} FROM {watched} watched "
            f"WHERE watched.{table} IN ({marks or 'NULL'})",
            [*dialect.ours, *tracking.tables],
        )
        read = [read_record(row) for row in cursor.fetchall()]
    return tracking.tables.keys() - {
        record.table
        for record, present in read
        if is_watched(record, view_id, tracking.tables[record.table], present)
    }


_RECORD = ("table", "columns", "links", "triggers", "views")


def record_of(watched: str, dialect: TriggerDialect) -> str:
    """Columns that tell of a watched table what `read_record` reads; their parameters are `dialect.ours`."""
    names = [f"{watched}.{dialect.connection.ops.quote_name(name)}" for name in _RECORD]
    return ", ".join([*names, dialect.present_of(names[0])])


def read_record(values: Sequence[Any]) -> tuple[WatchedTable, list[str]]:
    """The record of a table, and its triggers that there are, as that has them."""
    table, *others, present = values
    known = dict(zip(_RECORD[1:], (each and json.loads(each) for each in others), strict=True))
    return WatchedTable(table=table, **known), (present or "").split()


def is_watched(record: WatchedTable, view_id: int, watch: Watch, present: Collection[str]) -> bool:
    """Whether triggers log every change of a table that counts for a view, and for it.

    Args:
        record: of the table.
        view_id: primary key of the view's control.
        watch: what counts.
        present: the triggers of the table that there are, as in its record.
    """
    columns = None if record.columns is None else frozenset(record.columns)
    logged = bool(record.triggers) and set(record.triggers) <= set(present)
    knows = Watch(columns, frozenset(record.links)).covers(watch)
    return logged and knows and view_id in record.views


def forget_gone(using: str) -> None:
    """Note which triggers are gone, so that `install` tells the views of it when they are back.

    Those that are back by now, as they were, are taken up again, and the views are told.
    """
    present = dialect_of(using).present()
    for record in WatchedTable.objects.order_by("pk"):
        found = present.get(record.table, {})
        if set(record.triggers).issubset(found.values()):
            continue
        names = [made.partition(":")[0] for made in record.triggers]
        back = names if found.keys() >= set(names) else []
        if back:
            enqueue(record.views, _not_logged(record.table))
        triggers = sorted(found[name] for name in back)
        WatchedTable.objects.filter(pk=record.pk).update(triggers=triggers)


def forget_untrackable(using: str) -> dict[str, str]:
    """Believe no more in the triggers of tables that have become such as no triggers tell all of.

    Returns:
        The tables that were believed in until now, and what has become of them.
    """
    believed = [each.table for each in WatchedTable.objects.order_by("pk") if each.triggers]
    faults = dialect_of(using).untrackable(believed)
    WatchedTable.objects.filter(table__in=faults).update(triggers=[])
    return faults


def _not_logged(table: str) -> str:
    return f"changes of {table} were not logged before, or otherwise"


def install(using: str) -> dict[str, str]:
    """Make the triggers that the views of the code want, and remove those that no view wants.

    Each view whose changes were not logged until now, or otherwise, is told that something has
    changed. Where the triggers are as they should be, nothing is done.

    Returns:
        The tables whose changes cannot be logged, and why.

    Raises:
        DatabaseError: the user may not create triggers, or somebody held a table for too long.
    """
    wanted, dialect = watched_tables(using), dialect_of(using)
    faults = dialect.untrackable(wanted)
    wanted = {table: views for table, views in wanted.items() if table not in faults}
    remove(using, set(_known_tables(dialect)) - wanted.keys())
    _remove_strays(dialect, wanted)
    present = dialect.present()
    controls = dict(ViewControl.objects.values_list("label", "pk"))
    for table, by_view in wanted.items():
        views = {controls[label] for label in by_view if label in controls}
        _install(dialect, table, together(by_view.values()), views, present.get(table, {}))
    return faults


def _remove_strays(dialect: TriggerDialect, wanted: Wanted) -> None:
    if strays := _strays(dialect, wanted):
        with dialect.definitions():
            dialect.execute(dialect.drop("", strays))


def _strays(dialect: TriggerDialect, wanted: Wanted, faults: Collection[str] = ()) -> set[str]:
    """What is left of triggers, but for those that somebody may be about to make."""
    names = (
        dialect.names(table, together(by_view.values()))
        for table, by_view in wanted.items()
        if table not in faults
    )
    return dialect.strays().difference(*names)


def _known_tables(dialect: TriggerDialect) -> list[str]:
    return [*WatchedTable.objects.values_list("table", flat=True), *dialect.present()]


def _install(
    dialect: TriggerDialect, table: str, watch: Watch, views: set[int], present: Mapping[str, str]
) -> None:
    """Bring one table's triggers and record to what is wanted.

    The record names its triggers only once they are there and the views have been told of what came
    before: whoever finds them named may believe that nothing was missed.
    """
    names = dialect.names(table, watch)
    record, _created = WatchedTable.objects.get_or_create(table=table)
    known = set(record.views) if record.triggers else set()
    same = present.keys() == names and set(present.values()) == set(record.triggers)
    if same and known == views:
        return
    told = views - known if same else views | known
    with dialect.definitions():
        record.triggers = []
        record.views, record.links = sorted(views), sorted(watch.links)
        record.columns = None if watch.columns is None else sorted(watch.columns)
        record.save()
        if present.keys() != names:
            dialect.execute(dialect.drop(table, present))
            dialect.execute(dialect.create(table, watch))
            present = dialect.present().get(table, {})
        with transaction.atomic(using=dialect.using):
            enqueue(told, _not_logged(table))
            record.triggers = sorted(present.get(name, name) for name in names)
            record.save()


def take_down(using: str, tables: Collection[str]) -> None:
    """Remove the triggers of tables that are about to be altered; `install` brings them back."""
    dialect = dialect_of(using)
    present = dialect.present()
    for table in sorted(present.keys() & set(tables)):
        with dialect.definitions():
            WatchedTable.objects.filter(table=table).update(triggers=[])
            dialect.execute(dialect.drop(table, present[table]))


def remove(using: str, tables: Iterable[str] | None = None) -> list[str]:
    """Remove the triggers of tables, all by default, and forget that they were watched.

    Returns:
        The names of the triggers that are gone.
    """
    dialect = dialect_of(using)
    present = dialect.present()
    chosen = set(_known_tables(dialect) if tables is None else tables)
    for table in sorted(chosen):
        with dialect.definitions():
            WatchedTable.objects.filter(table=table).delete()
            dialect.execute(dialect.drop(table, present.get(table, ())))
    if tables is None:
        _remove_strays(dialect, {})
    return sorted(name for table in chosen for name in present.get(table, ()))


def script(using: str) -> str:
    """SQL with which a person who may create triggers brings them to what the views want; "" if they are."""
    wanted, dialect = watched_tables(using), dialect_of(using)
    present, faults = dialect.present(), dialect.untrackable(wanted)
    forget_gone(using)
    statements = []
    for table, by_view in wanted.items():
        watch = together(by_view.values())
        names = dialect.names(table, watch)
        if table not in faults and present.get(table, {}).keys() != names:
            statements += dialect.drop(table, present.get(table, ()))
            statements += dialect.create(table, watch)
    for table in sorted(present.keys() - wanted.keys()):
        statements += dialect.drop(table, present[table])
    statements += dialect.drop("", _strays(dialect, wanted, faults))
    return dialect.script(statements)


def find_problems(using: str) -> Iterator[str]:
    """What is not as the views of the code want it, a sentence each."""
    wanted, dialect = watched_tables(using), dialect_of(using)
    present, faults = dialect.present(), dialect.untrackable(wanted)
    recorded = dict(WatchedTable.objects.values_list("table", "triggers"))
    for table, by_view in sorted(wanted.items()):
        views = ", ".join(sorted(by_view))
        if table in faults:
            yield f"Changes of {table}, which {views} reads, cannot be logged: {faults[table]}."
            continue
        names = dialect.names(table, together(by_view.values()))
        found = present.get(table, {})
        if found.keys() != names:
            state = "other triggers than it should" if found else "no triggers"
            yield f"{table}, which {views} reads, has {state}."
        elif set(recorded.get(table, ())) != set(found.values()):
            yield f"The triggers of {table}, which {views} reads, are not known to matviews."
    for table in sorted(present.keys() - wanted.keys()):
        yield f"{table} has triggers, but no view reads it."
    for name in sorted(_strays(dialect, wanted, faults)):
        yield f"The function {name} is left over: no trigger that is switched on calls it."
