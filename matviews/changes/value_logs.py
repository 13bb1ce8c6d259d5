"""The tables of additive views: `install` creates and drops them, and nobody else.

Triggers write to a value log, so it is there before them, and dropped after them. A view has a
`ViewSums` only while the triggers of its table write to its log, or are about to.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from django.db import DatabaseError, connections, router

from ..databases import Triggers, sums_of, triggers_of
from ..databases.trigger_spec import TriggerSpec, ValueLog
from ..exceptions import MatviewsError
from ..logs import log as write_log
from ..models import TrackedTable, ViewControl, ViewSums
from ..queryset import GroupSums, plan_of
from ..redact import error_text
from ..registry import registry
from .tracking_spec import union

__all__ = [
    "are_valued", "count_values", "create", "drop_unneeded", "find_unusable", "forget",
    "installable", "missing", "present_logs", "trim_values",
]  # fmt: skip

logger = logging.getLogger(__name__)

NAME = re.compile(r"matviews_(values|sums)_[0-9a-f]{8}")
ByView = Mapping[str, TriggerSpec]


class _Needed(NamedTuple):
    """The tables that a view needs because of one that it reads."""

    label: str
    #: The table that it reads.
    table: str
    log: ValueLog
    sums: GroupSums
    fingerprint: str

    @property
    def is_first(self) -> bool:
        """Whether it is the table whose rows are aggregated."""
        return self.table == self.sums.additive.table


def create(dialect: Triggers, by_view: ByView) -> frozenset[ValueLog]:
    """Create the tables that views need and that are missing or have other columns.

    A view whose tables cannot be created is refreshed from its source, as the log says.

    Args:
        dialect: of the database.
        by_view: what the views that read one table require of its triggers.

    Returns:
        The logs that the triggers may write to.

    Raises:
        DatabaseError: a table stayed locked.
    """
    found, controls = set(), dict(ViewControl.objects.values_list("label", "pk"))
    for needed in _needed(dialect.using, by_view):
        if needed.label not in controls:
            continue
        reason = needed.sums.misfit()
        try:
            if not reason:
                with dialect.definitions():
                    _create(dialect, needed, controls[needed.label])
                found.add(needed.log)
        except DatabaseError as error:
            if dialect.is_locked(error):
                raise
            reason = error_text(error)
        if reason:
            sentence = "an additive view is refreshed from its source"
            write_log(logger, logging.WARNING, sentence, view=needed.label, reason=reason)
    return frozenset(found)


def _create(dialect: Triggers, needed: _Needed, view_id: int) -> None:
    own = ViewSums.objects.filter(log=needed.sums.additive.log)
    row = own.first()
    fit = needed.sums.fit_of(needed.table)
    if fit and (not needed.is_first or (row and row.view_id == view_id)):
        return
    if not fit:
        dialect.execute(_drop(dialect.using, needed.sums.names_of(needed.table)))
        dialect.execute(needed.sums.create(needed.table))
    if not needed.is_first:
        own.update(drain_number=ViewSums.STALE)
        return
    own.delete()
    ViewSums.objects.create(
        view_id=view_id,
        fingerprint=needed.fingerprint,
        log=needed.log.name,
        lookups=sorted(each.name for each in needed.sums.additive.lookup_logs.values()),
        table=needed.sums.additive.sums,
    )


def forget(table: str, views: Collection[int], logs: Iterable[ValueLog]) -> None:
    """Keep views from using their sums, unless triggers are about to write to the value logs.

    Args:
        table: the table whose triggers write to the logs.
        views: primary keys of the controls of the views that read it, or have read it.
        logs: the logs.
    """
    kept = [log.name for log in logs]
    for row in ViewSums.objects.filter(view__in=views).exclude(log__in=kept).select_related("view"):
        if _source_of(row, router.db_for_write(ViewSums)) in ("", table):
            row.delete()


def _source_of(row: ViewSums, using: str) -> str:
    """The table whose changes are in a value log; "" if the view needs another one."""
    try:
        sums = plan_of(registry.find(row.view.label), using).additive
    except MatviewsError:  # no such view any more, or one that is invalid
        return ""
    if sums is None or sums.additive.log != row.log:
        return ""
    return sums.additive.table


def installable(using: str, by_view: ByView) -> TriggerSpec:
    """What triggers log for the views that read a table, if the tables can all be created."""
    logs = {each.log for each in _needed(using, by_view) if not each.sums.misfit()}
    return replace(union(by_view.values()), value_logs=frozenset(logs))


def find_unusable(using: str, by_view: ByView) -> Iterator[str]:
    """The additive views whose tables cannot be used, a sentence each."""
    used = set(ViewSums.objects.values_list("log", flat=True))
    for needed in _needed(using, by_view):
        reason = needed.sums.misfit()
        if not needed.is_first:
            continue
        if reason:
            yield f"{needed.label} cannot be additive: {reason}. It is refreshed from its source."
        elif needed.log.name not in used or not needed.sums.fit():
            yield (
                f"The tables of the additive view {needed.label} are missing, out of date or not "
                f"recorded, so it is refreshed from its source."
            )


def missing(using: str, by_view: ByView) -> list[str]:
    """The statements that create the tables that are missing or out of date."""
    return [
        statement
        for needed in _needed(using, by_view)
        if not needed.sums.misfit() and not needed.sums.fit_of(needed.table)
        for statement in [
            *_drop(using, needed.sums.names_of(needed.table)),
            *needed.sums.create(needed.table),
        ]
    ]


def drop_unneeded(using: str, required: Mapping[str, ByView]) -> None:
    """Drop the tables that no view needs any more. Call it when no trigger writes to them."""
    needed = {
        name
        for by_view in required.values()
        for each in _needed(using, by_view)
        for name in each.sums.names
    }
    ViewSums.objects.exclude(log__in=needed).delete()
    if unneeded := sorted(_present(using) - needed):
        with triggers_of(using).definitions():
            triggers_of(using).execute(_drop(using, unneeded))


def present_logs() -> set[str]:
    """The names of the value logs that exist, needed or not."""
    using = router.db_for_write(ViewSums)
    return {name for name in _present(using) if name.startswith("matviews_values_")}


def are_valued(logs: Mapping[str, ValueLog]) -> bool:
    """Whether the triggers of tables write to their value logs, according to the records.

    They may be of another version: a table that was locked still has the old ones.
    """
    records = TrackedTable.objects.filter(table__in=logs).values_list("table", "value_logs")
    written = {(table, *each) for table, found in records for each in map(tuple, found)}
    return all((table, log.name, *log.columns) in written for table, log in logs.items())


def count_values(log: str, most: int) -> int:
    """How many entries a value log has, counting up to `most`."""
    using = router.db_for_write(ViewSums)
    with connections[using].cursor() as cursor:
        name = sums_of(using).name(log)
        cursor.execute(f"SELECT COUNT(*) FROM (SELECT 1 FROM {name} LIMIT {most}) counted")
        return int(cursor.fetchone()[0])


def trim_values(log: str, most: int) -> None:
    """Delete up to `most` committed entries of a value log, so that the sums lack them."""
    using = router.db_for_write(ViewSums)
    sums_of(using).trim(sums_of(using).name(log), most)


def _needed(using: str, by_view: ByView) -> Iterator[_Needed]:
    for label, spec in by_view.items():
        for log in sorted(spec.value_logs):
            plan = plan_of(registry.find(label), using)
            if plan.additive:
                for table, own in plan.additive.additive.logs.items():
                    if own.name == log.name:
                        yield _Needed(label, table, log, plan.additive, plan.fingerprint)


def _present(using: str) -> set[str]:
    return {name for name in sums_of(using).present() if NAME.fullmatch(name)}


def _drop(using: str, names: Iterable[str]) -> list[str]:
    tables = sums_of(using)
    return [f"DROP TABLE IF EXISTS {tables.name(tables.home(name))}" for name in names]
