"""Items to work on, faults for hooks, and whether the view `Ledger` has each item exactly once."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import models

from tests.chaos.comparison import ledger_faults
from tests.sample.models import Fault, Item, Ledger


def add_items(count: int) -> None:
    Item.objects.bulk_create([Item(value=number) for number in range(count)])


@contextmanager
def fault(
    view: type[models.Model], hook: str, action: str, *, seconds: float = 0
) -> Iterator[Fault]:
    """While this lasts, a hook of a view does what `action` says, in every process."""
    made = Fault.objects.create(view=view.__name__, hook=hook, action=action, seconds=seconds)
    try:
        yield made
    finally:
        made.delete()


def assert_each_item_once() -> None:
    items = set(Item.objects.values_list("pk", flat=True))
    assert ledger_faults(items, list(Ledger.objects.values_list("key", flat=True))) == []
