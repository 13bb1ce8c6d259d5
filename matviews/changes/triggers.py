"""The triggers of the tables that views read: made, held against what the code wants, removed."""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from ..databases import Triggers, triggers_of
from ..databases.base.triggers import MISSING
from ..databases.fields import model_of_table
from ..databases.trigger_spec import TriggerSpec
from ..exceptions import TablesHeld
from ..models import TrackedTable, ViewControl
from ..queryset import apps_to_migrate
from ..registry import registry
from .change_log import enqueue
from .holding import HELD, drop_all, for_each_table
from .secret import log_secret
from .tracking_spec import Tracking, mistyped, tracked_tables, union

__all__ = [
    "drop_before_migrate",
    "find_exposed",
    "find_ownerless",
    "find_problems",
    "find_untrackable",
    "finish",
    "install",
    "is_tracked",
    "mark_missing_triggers",
    "mark_untrackable",
    "remove",
    "row_to_tracked",
    "script",
    "select_tracked",
    "untrackable_tables",
    "untracked_tables",
    "untrust",
]

logger = logging.getLogger(__name__)

Wanted = Mapping[
    str, Mapping[str, TriggerSpec]
]  # by table and view, as `tracked_tables` returns it


def untracked_tables(view_id: int, tracking: Tracking, using: str) -> set[str]:
    """The tables of which the triggers do not log, or not for this view, all that counts for it."""
    dialect = triggers_of(using)
    connection: Any = connections[using]
    tracked, table = map(connection.ops.quote_name, (TrackedTable._meta.db_table, "table"))
    marks = ", ".join(["%s"] * len(tracking.tables))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {select_tracked('tracked', dialect)} FROM {tracked} tracked "
            f"WHERE tracked.{table} IN ({marks or 'NULL'})",
            [*dialect.NAME_PATTERN, *tracking.tables],
        )
        read = [row_to_tracked(row) for row in cursor.fetchall()]
    return tracking.tables.keys() - {
        record.table
        for record, present in read
        if is_tracked(record, view_id, tracking.tables[record.table], present)
    }


_RECORD = ("table", "columns", "links", "triggers", "views")


def select_tracked(tracked: str, dialect: Triggers) -> str:
    """Columns that tell of a tracked table what `row_to_tracked` reads; their parameters are `dialect.NAME_PATTERN`."""
    names = [f"{tracked}.{dialect.connection.ops.quote_name(name)}" for name in _RECORD]
    return ", ".join([*names, dialect.installed_sql(names[0])])


def row_to_tracked(values: Sequence[Any]) -> tuple[TrackedTable, list[str]]:
    """The record of a table, and its triggers that there are, as that has them."""
    table, *others, present = values
    known = dict(zip(_RECORD[1:], (each and json.loads(each) for each in others), strict=True))
    return TrackedTable(table=table, **known), (present or "").split()


def is_tracked(
    record: TrackedTable, view_id: int, spec: TriggerSpec, present: Collection[str]
) -> bool:
    """Whether triggers log every change of a table that counts for a view, and for it.

    Args:
        record: of the table.
        view_id: primary key of the view's control.
        spec: what counts.
        present: the triggers of the table that there are, as in its record.
    """
    logged = bool(record.triggers) and set(record.triggers) <= set(present)
    return logged and _spec_of(record).covers(spec) and view_id in record.views


def _spec_of(record: TrackedTable) -> TriggerSpec:
    """What the triggers of a record do."""
    columns = None if record.columns is None else frozenset(record.columns)
    return TriggerSpec(columns, frozenset(record.links))


def mark_missing_triggers(using: str) -> None:
    """Note which triggers are gone, so that `install` tells the views of it when they are back, and log it once.

    Those that are back by now, as they were, are taken up again, and the views are told. Others that have
    their names are not.
    """
    dialect = triggers_of(using)
    records = list(TrackedTable.objects.order_by("pk"))
    present = dialect.installed_triggers()
    for record in records:
        found = present.get(record.table, {})
        if set(record.triggers).issubset(found.values()):
            continue
        names = [made.partition(":")[0] for made in record.triggers]
        others = dialect.replaced(record.table, _spec_of(record))
        back = names if found.keys() - others >= set(names) else []
        if back:
            enqueue(record.views, _not_logged(record.table))
        triggers = sorted(found[name] for name in back)
        # Not if somebody has just installed others, which were not there yet when we looked.
        unchanged = TrackedTable.objects.filter(pk=record.pk, triggers=record.triggers)
        if _record_present(dialect, unchanged, triggers):
            _log_gone(record, back=bool(back))


def _record_present(
    dialect: Triggers, records: QuerySet[TrackedTable], triggers: list[str]
) -> bool:
    """Record which triggers are present, in those of the records that nobody has locked; whether there are any."""
    if not dialect.connection.features.has_select_for_update:
        return bool(records.update(triggers=triggers))
    with transaction.atomic(using=dialect.using):
        free = records.order_by("pk").select_for_update(skip_locked=True)
        keys = list(free.values_list("pk", flat=True))
        return bool(TrackedTable.objects.filter(pk__in=keys).update(triggers=triggers))


def _log_gone(record: TrackedTable, *, back: bool) -> None:
    labels = ViewControl.objects.filter(pk__in=record.views).values_list("label", flat=True)
    what = (
        "triggers were disabled or made anew, so changes may be missing from the log: a full refresh follows"
        if back
        else "changes are not logged, for triggers are missing or disabled: every refresh is a full one until "
        "`manage.py update_materialized_views --triggers install` has run"
    )
    logger.warning("%s table=%s views=%s", what, record.table, ",".join(labels))


def mark_untrackable(using: str) -> dict[str, str]:
    """Believe no more in the triggers of tables that have become such as no triggers tell all of.

    Returns:
        The tables that were believed in until now, and what has become of them.
    """
    believed = [each.table for each in TrackedTable.objects.order_by("pk") if each.triggers]
    dialect = triggers_of(using)
    faults = dialect.untrackable_tables(believed)
    records = TrackedTable.objects.filter(table__in=faults)
    return faults if faults and _record_present(dialect, records, []) else {}


def untrackable_tables(tables: Collection[str], using: str) -> dict[str, str]:
    """The tables of which no triggers tell every change, and why."""
    return triggers_of(using).untrackable_tables(tables) if tables else {}


def untrust(views: Collection[int]) -> set[int]:
    """Believe no more that changes are logged for some views, until `install` does; in a transaction.

    Returns:
        Those for which that was believed until now, as the primary keys of their controls.
    """
    untrusted: set[int] = set()
    believed = [
        each.pk for each in TrackedTable.objects.all() if not set(views).isdisjoint(each.views)
    ]
    records = TrackedTable.objects.filter(pk__in=believed).order_by("pk")
    for record in records.select_for_update():  # no others: somebody may hold them
        if gone := set(views).intersection(record.views):
            untrusted |= gone
            left = sorted(set(record.views) - gone)
            TrackedTable.objects.filter(pk=record.pk).update(views=left)
    return untrusted


def _not_logged(table: str) -> str:
    return f"changes of {table} were not logged before, or otherwise"


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
    if orphans := _orphans(dialect, wanted):
        with dialect.definitions():
            dialect.execute(dialect.drop("", orphans))


def _orphans(dialect: Triggers, wanted: Wanted, faults: Collection[str] = ()) -> set[str]:
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
    ours = _are_ours(dialect, table, spec, present)
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
            enqueue(told, _not_logged(table))
            record.pending = ""
            record.triggers = sorted(present.get(name, name) for name in names)
            record.save()


def _record_pending(dialect: Triggers, table: str, version: str) -> TrackedTable:
    """Record that triggers of a version are to be made: if making them fails, `matviews.maintain` tries again."""
    with dialect.definitions():
        if not TrackedTable.objects.filter(table=table).update(pending=version):
            TrackedTable.objects.get_or_create(table=table, defaults={"pending": version})
        return TrackedTable.objects.get(table=table)


def _are_ours(dialect: Triggers, table: str, spec: TriggerSpec, present: Mapping[str, str]) -> bool:
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
        if table not in faults and not _are_ours(dialect, table, spec, present.get(table, {})):
            statements += dialect.drop(table, present.get(table, ()))
            statements += dialect.create(table, spec)
    for table in sorted(present.keys() - wanted.keys()):
        statements += dialect.drop(table, present[table])
    statements += dialect.drop("", _orphans(dialect, wanted, faults))
    return dialect.script(statements)


def find_exposed(using: str) -> Iterator[str]:
    """What of ours any role may use that may write at all, a sentence each."""
    for name in triggers_of(using).exposed():
        yield f"Any role may use {name}, which is for the roles of matviews alone."


def find_ownerless(using: str) -> Iterator[str]:
    """The triggers that no write gets past, for their owner is gone, a sentence each."""
    for name, owner in sorted(triggers_of(using).ownerless().items()):
        yield f"The trigger {name} runs as {owner}, and there is no such account: every write to its table fails."


def find_untrackable(using: str) -> Iterator[str]:
    """The tables whose changes no trigger would log, and why, a sentence each."""
    wanted = tracked_tables(using)
    for table, reason in sorted(triggers_of(using).untrackable_tables(wanted).items()):
        yield _cannot_be_logged(table, wanted[table], reason)


def _cannot_be_logged(table: str, views: Iterable[str], reason: str) -> str:
    return (
        f"Changes of {table}, which {', '.join(sorted(views))} reads, cannot be logged: {reason}."
    )


def find_problems(using: str, *, migrated: bool = True) -> Iterator[str]:
    """What is not as the views of the code want it, a sentence each.

    Args:
        using: alias of the database.
        migrated: whether all migrations should have run. If not, nothing is said of tables, and of views,
            that those which have yet to run may make; `install` follows them.
    """
    wanted, dialect = tracked_tables(using), triggers_of(using)
    due = wanted if migrated else _without(_to_be_made(wanted, dialect), wanted)
    present, faults = dialect.installed_triggers(), dialect.untrackable_tables(wanted)
    recorded = dict(TrackedTable.objects.values_list("table", "triggers"))
    for table, by_view in sorted(due.items()):
        views = ", ".join(sorted(by_view))
        if table in faults:
            yield _cannot_be_logged(table, by_view, faults[table])
            continue
        found = present.get(table, {})
        if not _are_ours(dialect, table, union(by_view.values()), found):
            state = "other triggers than it should" if found else "no triggers"
            yield f"{table}, which {views} reads, has {state}."
        elif set(recorded.get(table, ())) != set(found.values()):
            yield f"The triggers of {table}, which {views} reads, are not known to matviews."
    for table in sorted(present.keys() - wanted.keys()):
        yield f"{table} has triggers, but no view reads it."
    for name in sorted(_orphans(dialect, wanted, faults)):
        yield f"The function {name} is left over: no trigger that is switched on calls it."


def _to_be_made(wanted: Wanted, dialect: Triggers) -> set[str]:
    """The tables of views, and those that they read, that pending migrations may make."""
    tables = {_own_table(label) for by_view in wanted.values() for label in by_view} | wanted.keys()
    faults = dialect.untrackable_tables(tables)
    missing = {table: model_of_table(table) for table, why in faults.items() if why == MISSING}
    pending = apps_to_migrate(dialect.using) if missing else set()
    return {table for table, model in missing.items() if model and model._meta.app_label in pending}


def _without(tables: Collection[str], wanted: Wanted) -> dict[str, dict[str, TriggerSpec]]:
    """What is wanted, without some tables, and without the views whose own table is among them."""
    left = {
        table: {label: spec for label, spec in by_view.items() if _own_table(label) not in tables}
        for table, by_view in wanted.items()
        if table not in tables
    }
    return {table: by_view for table, by_view in left.items() if by_view}


def _own_table(label: str) -> str:
    return registry.find(label).model._meta.db_table
