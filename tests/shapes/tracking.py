"""Triggers that suffice for any query of this app's views, not only for those they have now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from matviews import changes, engine
from matviews.changes import QueuedChange, tracking_of, triggers
from matviews.databases.trigger_spec import TriggerSpec
from matviews.models import TrackedTable, ViewControl
from matviews.queryset import plan_of
from matviews.registry import registry

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
    """Every column of every source is watched and recorded, for no view as yet."""
    wanted = {}
    for model in TABLES:
        columns = frozenset(field.column for field in model._meta.local_concrete_fields)
        wanted[model._meta.db_table] = {
            "any": TriggerSpec(columns, columns & LINKS),
            "none": TriggerSpec(frozenset()),
        }
    with mock.patch.object(triggers, "tracked_tables", return_value=wanted):
        changes.install(engine.alias())
        yield
        changes.remove(engine.alias())


def track_for(view: type[Any] | None, *, whatever_it_reads: bool = False) -> None:
    """What is logged is for this view alone, or for none; no view reads its own table.

    It gets changes of the columns that its query reads now, or of all columns.
    """
    TrackedTable.objects.update(views=[], view_columns={})
    if not view:
        return
    pk = ViewControl.objects.get(label=view._meta.label).pk
    specs = tracking_of(plan_of(registry.find(view), engine.alias())).tables
    for record in TrackedTable.objects.exclude(table=view._meta.db_table):
        columns = None
        if not whatever_it_reads:
            columns = specs.get(record.table, TriggerSpec(frozenset())).columns
        record.views = [pk]
        record.view_columns = {} if columns is None else {str(pk): sorted(columns)}
        record.save()


def newest_only(taken: list[QueuedChange]) -> list[QueuedChange]:
    """What is left of a queue if of each table one link is kept, the last one."""
    last = {each.table: each for each in taken}
    return [
        each._replace(links=each.links[-1:]) if isinstance(each.links, list) else each
        for each in last.values()
    ]
