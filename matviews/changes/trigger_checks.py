"""What is wrong with the triggers of the tables that views read, a sentence each."""

from collections.abc import Collection, Iterable, Iterator

from ..databases import Triggers, triggers_of
from ..databases.base.triggers import MISSING
from ..databases.fields import model_of_table
from ..databases.trigger_spec import TriggerSpec
from ..models import TrackedTable
from ..queryset import apps_to_migrate
from ..registry import registry
from .tracking_spec import tracked_tables, union
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
    recorded = dict(TrackedTable.objects.values_list("table", "triggers"))
    for table, by_view in sorted(due.items()):
        views = ", ".join(sorted(by_view))
        if table in faults:
            yield _cannot_be_logged(table, by_view, faults[table])
            continue
        found = present.get(table, {})
        if not are_up_to_date(dialect, table, union(by_view.values()), found):
            yield (
                f"The triggers on {table} (read by {views}) are "
                f"{'out of date' if found else 'missing'}."
            )
        elif set(recorded.get(table, ())) != set(found.values()):
            yield (
                f"The triggers on {table} (read by {views}) are not the ones that matviews "
                f"recorded."
            )
    for table in sorted(present.keys() - required.keys()):
        yield f"{table} has triggers, but no view reads it."
    for name in sorted(find_orphans(dialect, required, faults)):
        yield f"The function {name} is left over: no enabled trigger calls it."


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
