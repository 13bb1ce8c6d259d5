"""What is wrong with the triggers of the tables that views read, a sentence each."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from ..databases import Triggers, triggers_of
from ..databases.base.triggers import MISSING
from ..databases.fields import model_of_table
from ..databases.trigger_spec import TriggerSpec, is_covered
from ..models import TrackedTable, ViewControl
from ..queryset import apps_to_migrate
from ..registry import registry
from . import value_logs
from .tracking_spec import tracked_tables
from .triggers import RequiredTriggers, are_up_to_date, find_orphans

__all__ = ["find_exposed", "find_ownerless", "find_problems", "find_untrackable"]


def find_exposed(using: str) -> Iterator[str]:
    """What any role may use, although only the roles of matviews should."""
    for name in triggers_of(using).exposed():
        yield f"Any role may use {name}; only the roles of matviews should."


def find_ownerless(using: str) -> Iterator[str]:
    """The triggers that make every write fail because their owner is gone."""
    for name, owner in sorted(triggers_of(using).ownerless().items()):
        yield (
            f"The trigger {name} runs as {owner}, an account that does not exist: every write to "
            f"its table fails."
        )


def find_untrackable(using: str) -> Iterator[str]:
    """The tables whose changes triggers cannot log, and why."""
    required = tracked_tables(using)
    for table, reason in sorted(triggers_of(using).untrackable_tables(required).items()):
        yield _cannot_be_logged(table, required[table], reason)


def _cannot_be_logged(table: str, views: Iterable[str], reason: str) -> str:
    return f"Changes to {table} (read by {', '.join(sorted(views))}) cannot be logged: {reason}."


def find_problems(using: str, *, migrated: bool = True) -> Iterator[str]:
    """Where the triggers are not what the views require.

    Args:
        using: alias of the database.
        migrated: whether all migrations should have run. If not, tables and views that the pending
            ones may create are left out: `install` follows them.
    """
    required, dialect = tracked_tables(using), triggers_of(using)
    due = required if migrated else _without(_tables_to_create(required, dialect), required)
    present, faults = dialect.installed_triggers(), dialect.untrackable_tables(required)
    lacking = dialect.lacking(due)
    recorded = {record.table: record for record in TrackedTable.objects.order_by("pk")}
    controls = dict(ViewControl.objects.values_list("label", "pk"))
    for table, by_view in sorted(due.items()):
        views = ", ".join(sorted(by_view))
        if table in faults:
            yield _cannot_be_logged(table, by_view, faults[table])
            continue
        found, spec = present.get(table, {}), value_logs.installable(using, by_view)
        if not are_up_to_date(dialect, table, spec, found):
            yield (
                f"The triggers on {table} (read by {views}) are "
                f"{'out of date' if found else 'missing'}."
            )
        elif table in lacking:
            yield (
                f"These partitions or parents of {table} (read by {views}) have no triggers, or "
                f"disabled ones: {', '.join(lacking[table])}."
            )
        else:
            yield from _faults_of_record(table, by_view, recorded.get(table), found, controls)
        yield from value_logs.find_unusable(using, by_view)
    for table in sorted(present.keys() - required.keys()):
        yield f"{table} has triggers, but no view reads it."
    for name in sorted(find_orphans(dialect, required, faults)):
        yield f"The function {name} is left over: no enabled trigger calls it."


def _faults_of_record(
    table: str,
    by_view: Mapping[str, TriggerSpec],
    record: TrackedTable | None,
    found: Mapping[str, str],
    controls: Mapping[str, int],
) -> Iterator[str]:
    """Where the record of a table differs from its triggers, or from what the views read."""
    if record is None or set(record.triggers) != set(found.values()):
        views = ", ".join(sorted(by_view))
        yield (
            f"The triggers on {table} (read by {views}) are not the ones that matviews recorded."
        )
        return
    for view in sorted(_with_other_columns(record, by_view, controls)):
        yield f"{view} reads columns of {table} other than those recorded."


def _with_other_columns(
    record: TrackedTable, by_view: Mapping[str, TriggerSpec], controls: Mapping[str, int]
) -> set[str]:
    """The views that read columns that are not recorded for them."""
    return {
        label
        for label in by_view.keys() & controls.keys()
        if controls[label] in record.views
        and not is_covered(by_view[label].columns, record.columns_read(controls[label]))
    }


def _tables_to_create(required: RequiredTriggers, dialect: Triggers) -> set[str]:
    """The tables that pending migrations may create: those of views, and those that they read."""
    tables = {
        _own_table(label) for by_view in required.values() for label in by_view
    } | required.keys()
    faults = dialect.untrackable_tables(tables)
    missing = {table: model_of_table(table) for table, why in faults.items() if why == MISSING}
    pending = apps_to_migrate(dialect.using) if missing else set()
    return {table for table, model in missing.items() if model and model._meta.app_label in pending}


def _without(
    tables: Collection[str], required: RequiredTriggers
) -> dict[str, dict[str, TriggerSpec]]:
    """The requirements without some tables, and without the views whose own table is among them."""
    left = {
        table: {label: spec for label, spec in by_view.items() if _own_table(label) not in tables}
        for table, by_view in required.items()
        if table not in tables
    }
    return {table: by_view for table, by_view in left.items() if by_view}


def _own_table(label: str) -> str:
    return registry.find(label).model._meta.db_table
