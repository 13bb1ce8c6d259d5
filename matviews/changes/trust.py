"""Whether the log of a table can be trusted: which triggers are recorded, and whether they are there."""

import json
import logging
from collections.abc import Collection, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from ..databases import Triggers, triggers_of
from ..databases.trigger_spec import TriggerSpec
from ..models import TrackedTable, ViewControl
from .change_log import enqueue
from .tracking_spec import Tracking

__all__ = [
    "is_tracked", "mark_missing_triggers", "mark_untrackable", "not_logged", "row_to_tracked",
    "select_tracked", "untrackable_tables", "untracked_tables", "untrust",
]  # fmt: skip

logger = logging.getLogger(__name__)

_RECORD = ("table", "columns", "links", "triggers", "views")


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
            enqueue(record.views, not_logged(record.table))
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


def not_logged(table: str) -> str:
    return f"changes of {table} were not logged before, or otherwise"
