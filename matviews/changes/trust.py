"""Whether the log of a table can be trusted, that is, whether the recorded triggers exist."""

import json
import logging
from collections.abc import Collection, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from ..databases import Triggers, triggers_of
from ..databases.base.triggers import INCOMPLETE
from ..databases.trigger_spec import TriggerSpec, is_covered
from ..logs import log
from ..models import TrackedTable, ViewControl
from .change_log import enqueue
from .tracking_spec import Tracking

__all__ = [
    "is_tracked", "mark_missing_triggers", "mark_truncated", "mark_untrackable", "not_logged",
    "row_to_tracked",
    "select_tracked", "untrackable_tables", "untracked_tables", "untrust",
]  # fmt: skip

logger = logging.getLogger(__name__)

_RECORD = (
    "table",
    "columns",
    "links",
    "recorded",
    "value_logs",
    "triggers",
    "views",
    "view_columns",
)


def untracked_tables(view_id: int, tracking: Tracking, using: str) -> set[str]:
    """The tables whose triggers do not log every change that matters to a view."""
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
    present = dialect.with_partitions({record.table: found for record, found in read})
    return tracking.tables.keys() - {
        record.table
        for record, _found in read
        if is_tracked(record, view_id, tracking.tables[record.table], present[record.table])
    }


def select_tracked(tracked: str, dialect: Triggers, unless: str = "") -> str:
    """The columns that `row_to_tracked` reads; their parameter is `dialect.NAME_PATTERN`.

    Where the condition `unless` holds, the triggers are not looked up: none is found.
    """
    names = [f"{tracked}.{dialect.connection.ops.quote_name(name)}" for name in _RECORD]
    installed = dialect.installed_sql(names[0])
    if unless:
        installed = f"CASE WHEN {unless} THEN NULL ELSE {installed} END"
    return ", ".join([*names, installed])


def row_to_tracked(values: Sequence[Any]) -> tuple[TrackedTable, list[str]]:
    """The record of a table, and its installed triggers in the form the record has."""
    table, *others, present = values
    known = dict(zip(_RECORD[1:], (value and json.loads(value) for value in others), strict=True))
    return TrackedTable(table=table, **known), (present or "").split()


def is_tracked(
    record: TrackedTable, view_id: int, spec: TriggerSpec, present: Collection[str]
) -> bool:
    """Whether triggers log every change of a table that matters to a view, on its behalf.

    Args:
        record: the record of the table.
        view_id: primary key of the view's control.
        spec: which changes matter to the view.
        present: the installed triggers of the table, in the form the record has.
    """
    logged = bool(record.triggers) and set(record.triggers) <= set(present)
    subscribed = view_id in record.views and is_covered(spec.columns, record.columns_read(view_id))
    return logged and record.spec.covers(spec) and subscribed


def mark_missing_triggers(using: str) -> bool:
    """Record which triggers are gone, and log it once, so that `install` queues full refreshes.

    Triggers that are back unchanged are trusted again, and the views get a full refresh queued.
    Others of the same name are not trusted.

    Returns:
        Whether every record is up to date; one that is locked is not.
    """
    known = True
    dialect = triggers_of(using)
    records = list(TrackedTable.objects.order_by("pk"))
    present = dialect.installed_triggers()
    for record in records:
        found = {
            name: made
            for name, made in present.get(record.table, {}).items()
            if not made.endswith(f":{INCOMPLETE}")
        }
        if set(record.triggers).issubset(found.values()):
            continue
        names = [made.partition(":")[0] for made in record.triggers]
        others = dialect.replaced(record.table, record.spec)
        back = names if found.keys() - others >= set(names) else []
        if back:
            enqueue(record.views, not_logged(record.table))
        triggers = sorted(found[name] for name in back)
        # Unless another process has installed others since we read the record.
        unchanged = TrackedTable.objects.filter(pk=record.pk, triggers=record.triggers)
        if _record_present(dialect, unchanged, triggers):
            _log_missing(record, are_back=bool(back))
        else:
            known = False
    return known


def _record_present(
    dialect: Triggers, records: QuerySet[TrackedTable], triggers: list[str]
) -> bool:
    """Write the installed triggers to those records that nobody has locked; whether any is."""
    if not dialect.connection.features.has_select_for_update:
        return bool(records.update(triggers=triggers))
    with transaction.atomic(using=dialect.using):
        free = records.order_by("pk").select_for_update(skip_locked=True)
        keys = list(free.values_list("pk", flat=True))
        return bool(TrackedTable.objects.filter(pk__in=keys).update(triggers=triggers))


def _log_missing(record: TrackedTable, *, are_back: bool) -> None:
    labels = ViewControl.objects.filter(pk__in=record.views).values_list("label", flat=True)
    message = (
        "triggers were disabled or re-created, or partitions removed, so changes may be missing "
        "from the log: a full refresh follows"
        if are_back
        else "triggers are missing or disabled, so changes are not logged: every refresh is full "
        "until `manage.py update_materialized_views --triggers install` has run"
    )
    log(logger, logging.WARNING, message, table=record.table, views=",".join(labels))


def mark_untrackable(using: str) -> dict[str, str]:
    """Stop trusting triggers on tables that became untrackable.

    Returns:
        The tables that were trusted until now, and why they no longer are.
    """
    trusted = [record.table for record in TrackedTable.objects.order_by("pk") if record.triggers]
    dialect = triggers_of(using)
    faults = dialect.unlogged(trusted) | dialect.untrackable_tables(trusted)
    records = TrackedTable.objects.filter(table__in=faults)
    return faults if faults and _record_present(dialect, records, []) else {}


def mark_truncated(using: str) -> list[str]:
    """Queue full refreshes for the views of tables that were truncated without firing a trigger.

    Returns:
        These tables.
    """
    records, dialect = list(TrackedTable.objects.order_by("pk")), triggers_of(using)
    now = dialect.storage([record.table for record in records])
    found = []
    for record in records:
        storage = now.get(record.table, "")
        if storage in ("", record.storage):
            continue
        with transaction.atomic(using=using):
            unchanged = TrackedTable.objects.filter(pk=record.pk, storage=record.storage)
            if unchanged.update(storage=storage) and dialect.was_truncated(record.storage, storage):
                enqueue(record.views, f"{record.table} was truncated or rebuilt")
                found.append(record.table)
    return found


def untrackable_tables(tables: Collection[str], using: str) -> dict[str, str]:
    """The tables that triggers cannot track, and why."""
    return triggers_of(using).untrackable_tables(tables) if tables else {}


def untrust(views: Collection[int]) -> set[int]:
    """Stop trusting the log for some views until `install` has run; in a transaction.

    Returns:
        The primary keys of the views' controls that were trusted until now.
    """
    untrusted: set[int] = set()
    trusted = [
        record.pk
        for record in TrackedTable.objects.all()
        if not set(views).isdisjoint(record.views)
    ]
    records = TrackedTable.objects.filter(pk__in=trusted).order_by("pk")
    for record in records.select_for_update():  # no others: they may be locked
        if removed := set(views).intersection(record.views):
            untrusted |= removed
            left = sorted(set(record.views) - removed)
            TrackedTable.objects.filter(pk=record.pk).update(views=left)
    return untrusted


def not_logged(table: str) -> str:
    """Why a full refresh follows the installation of triggers."""
    return f"the triggers of {table} were installed or replaced"
