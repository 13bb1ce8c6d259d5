"""Whether everything is right in the end: rows, ledgers, and nothing left over."""

from collections.abc import Callable, Iterator
from typing import Any

from django.db import connection, models

from matviews import changes, engine
from matviews.changes import find_problems
from matviews.models import (
    Change,
    DirtyKeys,
    ParkedKey,
    Refresh,
    ViewChange,
    ViewControl,
    ViewShard,
    ViewSums,
)
from matviews.queryset import stages
from matviews.states import RefreshState
from tests.helpers.sums import sums_differ

from . import oracle
from .comparison import ledger_faults
from .models import Item, Ledger, Visited
from .recovery import late_views

__all__ = ["left_over", "verdict"]


def left_over() -> list[str]:
    """What is still to be done, or was left behind: empty once everything is at rest."""
    return [f"{what}: {found}" for what, look in _LOOKS.items() if (found := look())]


def _pending() -> list[str]:
    """Changes that a phase has yet to process."""
    counts = {model.__name__: model.objects.count() for model in (Change, ViewChange, DirtyKeys)}
    return [f"{count} {name}" for name, count in counts.items() if count]


def _open_refreshes() -> list[str]:
    rows = Refresh.objects.filter(state__in=(RefreshState.OPEN, RefreshState.MERGED))
    return [f"{pk} of {label}" for pk, label in rows.values_list("pk", "view__label")]


def _claims() -> list[str]:
    return [
        f"token {each.token} of {each} by {each.worker}"
        for each in ViewShard.objects.select_related("view")
        if each.is_claimed
    ]


def _transactions() -> list[Any]:
    """Transactions of other sessions, which may hold locks."""
    queries = {
        "postgresql": (
            "SELECT pid, state, query FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database() AND xact_start IS NOT NULL "
            "AND backend_type = 'client backend'"
        ),
        "mysql": (
            "SELECT trx_mysql_thread_id, trx_state, trx_query FROM information_schema.innodb_trx "
            "WHERE trx_mysql_thread_id <> CONNECTION_ID()"
        ),
    }
    with connection.cursor() as cursor:
        cursor.execute(queries[connection.vendor])
        return list(cursor.fetchall())


def _unused_sums() -> list[str]:
    """Additive views that are refreshed without their sums, or have values to add."""
    found = {
        "without sums": [each for each in ViewSums.objects.all() if each.drain_number < 0],
        "with values to add": [
            each for each in ViewSums.objects.all() if changes.count_values(each.log, 1)
        ],
    }
    return [f"{each.view.label} {what}" for what, sums in found.items() for each in sums]


def _held_views() -> list[str]:
    held = [each for each in ViewControl.objects.all() if each.held or each.suspended_at]
    return [each.label for each in held]


_LOOKS: dict[str, Callable[[], Any]] = {
    "open refreshes": _open_refreshes,
    "changes to process": _pending,
    "parked keys": lambda: list(ParkedKey.objects.values_list("key", "message")),
    "views not on time": late_views,
    "views held": _held_views,
    "additive views": _unused_sums,
    "claims": _claims,
    "staging tables": lambda: list(stages(engine.alias()).values()),
    "open transactions": _transactions,
    "triggers": lambda: list(find_problems(engine.alias())),
}


def verdict() -> list[str]:
    """What is wrong, a line each."""
    return [*_wrong_rows(), *_wrong_sums(), *_wrong_ledgers()]


def _wrong_rows() -> Iterator[str]:
    for view in oracle.VIEWS:
        label = view._meta.label
        for line in oracle.differences(view):
            yield f"{label} is wrong: {line}"
        found = engine.verify(view)
        if found.missing or found.differing or found.surplus:
            yield (
                f"{label} differs by verify: {found.missing} missing, {found.differing} differing, "
                f"{found.surplus} surplus"
            )


def _wrong_sums() -> Iterator[str]:
    for view in oracle.ADDITIVE:
        if groups := sums_differ(view):
            yield f"{view._meta.label} has {groups} groups of wrong sums"


def _wrong_ledgers() -> Iterator[str]:
    items = set(Item.objects.values_list("pk", flat=True))
    ledgers: tuple[type[models.Model], ...] = (Ledger, Visited)
    for ledger in ledgers:
        keys = ledger._base_manager.values_list("key", flat=True)
        for line in ledger_faults(items, list(keys)):
            yield f"{ledger._meta.label}: {line}"
