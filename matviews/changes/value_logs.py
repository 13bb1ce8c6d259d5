"""The tables of additive views: `install` creates and drops them, and nobody else.

Triggers write to a value log, so it is there before them, and dropped after them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from django.db import connections, router

from ..databases import sums_of, triggers_of
from ..databases.trigger_spec import TriggerSpec, ValueLog
from ..models import ViewControl, ViewSums
from ..queryset import GroupSums, plan_of
from ..registry import registry

__all__ = ["columns_of", "count_values", "create", "drop_unneeded", "missing", "trim_values"]

NAME = re.compile(r"matviews_(values|sums)_[0-9a-f]{8}")
Required = Mapping[str, Mapping[str, TriggerSpec]]


class _Needed(NamedTuple):
    """The tables that a view needs."""

    label: str
    #: The table whose changes are logged.
    table: str
    log: ValueLog
    sums: GroupSums
    fingerprint: str

    @property
    def names(self) -> tuple[str, str]:
        return self.log.name, self.sums.additive.sums


def create(using: str, required: Required) -> None:
    """Create the tables that views need and that are not there, or are for other columns.

    Raises:
        DatabaseError: the role may not create tables.
    """
    dialect, controls = triggers_of(using), dict(ViewControl.objects.values_list("label", "pk"))
    for needed in _needed(using, required):
        if needed.label not in controls:
            continue
        row, present = ViewSums.objects.filter(log=needed.log.name).first(), _present(using)
        columns = columns_of(needed.sums, using)
        complete = present.issuperset(needed.names)
        if complete and row and row.columns == columns and row.view_id == controls[needed.label]:
            continue
        ViewSums.objects.filter(log=needed.log.name).delete()
        if not complete or row:
            with dialect.definitions():
                installed = dialect.installed_triggers().get(needed.table, {})
                if needed.log.name in present:
                    dialect.execute(dialect.drop(needed.table, installed))
                dialect.execute(_drop(using, needed.names))
                dialect.execute(needed.sums.create(*needed.names))
        ViewSums.objects.create(
            view_id=controls[needed.label], fingerprint=needed.fingerprint,
            log=needed.names[0], table=needed.names[1], columns=columns,
        )  # fmt: skip


def columns_of(sums: GroupSums, using: str) -> str:
    """A digest of the columns for which the tables of an additive view are created, as they are."""
    found = sums_of(using).columns(sums.additive.model._meta.db_table)
    of_view = sums_of(using).columns(sums.source.model._meta.db_table)
    key = [column.field.column or "" for column in sums.source.key]
    described = [[found.get(name) for name in sums.additive.columns], [of_view.get(k) for k in key]]
    return hashlib.sha256(repr(described).encode()).hexdigest()


def missing(using: str, required: Required) -> list[str]:
    """The statements that create the tables that are not there."""
    present = _present(using)
    return [
        statement
        for needed in _needed(using, required)
        if not present.issuperset(needed.names)
        for statement in [
            *_drop(using, sorted(present & {*needed.names})),
            *needed.sums.create(*needed.names),
        ]
    ]


def drop_unneeded(using: str, required: Required) -> None:
    """Drop the tables that no view needs any more. Call it when no trigger writes to them."""
    needed = {name for each in _needed(using, required) for name in each.names}
    ViewSums.objects.exclude(log__in=needed).delete()
    if unneeded := sorted(_present(using) - needed):
        with triggers_of(using).definitions():
            triggers_of(using).execute(_drop(using, unneeded))


def count_values(log: str, most: int) -> int:
    """How many entries a value log has, counting up to `most`."""
    using = router.db_for_write(ViewSums)
    with connections[using].cursor() as cursor:
        name = sums_of(using).name(log)
        cursor.execute(f"SELECT COUNT(*) FROM (SELECT 1 FROM {name} LIMIT {most}) counted")
        return int(cursor.fetchone()[0])


def trim_values(log: str, most: int) -> None:
    """Delete up to `most` entries of a value log that are committed. The sums lack them then."""
    using = router.db_for_write(ViewSums)
    with connections[using].cursor() as cursor:
        for statement in sums_of(using).trim(sums_of(using).name(log), most):
            cursor.execute(statement)


def _needed(using: str, required: Required) -> Iterator[_Needed]:
    for table, by_view in required.items():
        for label, spec in by_view.items():
            for log in sorted(spec.value_logs):
                plan = plan_of(registry.find(label), using)
                if plan.additive and plan.additive.additive.log == log.name:
                    yield _Needed(label, table, log, plan.additive, plan.fingerprint)


def _present(using: str) -> set[str]:
    names = connections[using].introspection.table_names()
    return {name for name in names if NAME.fullmatch(name)}


def _drop(using: str, names: Iterable[str]) -> list[str]:
    return [f"DROP TABLE IF EXISTS {sums_of(using).name(name)}" for name in names]
