"""Triggers that suffice for any query of this app's views, not only for those they have now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from matviews import changes, engine
from matviews.changes import QueuedChange, triggers
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import TrackedTable, ViewControl

from .models import Customer, Order, Product, Region, Tag
from .models.grouped import CustomerTotal

__all__ = ["everything_tracked", "newest_only", "track_for"]

TABLES: list[type[Any]] = [
    Region, Customer, Product, Tag, Order, Order.tags.through, CustomerTotal,
]  # fmt: skip
# Columns by which rows may hang on the key of a view.
LINKS = {
    "id", "customer_id", "region_id", "referrer_id", "product_id", "order_id", "tag_id", "token",
    "stock keeping unit", "basket", "slot", "status", "shipped_on", "name", "quantity", "placed_at",
}  # fmt: skip


@contextmanager
def everything_tracked() -> Iterator[None]:
    """Every column of every source is watched, for no view as yet."""
    wanted = {}
    for model in TABLES:
        columns = frozenset(field.column for field in model._meta.local_concrete_fields)
        wanted[model._meta.db_table] = {"any": TriggerSpec(columns, columns & LINKS)}
    with mock.patch.object(triggers, "tracked_tables", return_value=wanted):
        changes.install(engine.alias())
        yield
        changes.remove(engine.alias())


def track_for(view: type[Any] | None) -> None:
    """What is logged is for this view alone, or for none; no view reads its own table."""
    TrackedTable.objects.update(views=[])
    if view:
        others = TrackedTable.objects.exclude(table=view._meta.db_table)
        others.update(views=[ViewControl.objects.get(label=view._meta.label).pk])


def newest_only(taken: list[QueuedChange]) -> list[QueuedChange]:
    """What is left of a queue if of each table one link is kept, the last one."""
    last = {each.table: each for each in taken}
    return [
        each._replace(links=each.links[-1:]) if isinstance(each.links, list) else each
        for each in last.values()
    ]
