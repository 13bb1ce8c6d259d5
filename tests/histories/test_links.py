"""Changes between a refresh's steps (take, look up, compute): no key of several tables is missed.

The steps are those of the engine, without its bookkeeping, so that there is time for many short
histories; what is written between them stands for what others commit then.
"""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest

from matviews.changes import QueuedChange, tracking_of
from matviews.databases.trigger_spec import TriggerSpec
from matviews.engine import alias
from matviews.engine.tracking.resolve import resolve
from matviews.models import Change
from matviews.phases import Phase
from matviews.queryset import Plan, plan_of
from matviews.queryset.sql import lookups
from matviews.registry import registry
from tests.histories.conftest import RunRandom
from tests.shapes.models import Customer, Order, Product, Region, Tag
from tests.shapes.models.grouped import (
    DayRegion,
    DayTotal,
    MomentTotal,
    ReferredSlot,
    RegionDay,
    RegionTotal,
    SlotRegion,
    TagRegion,
)
from tests.shapes.oracle import differences
from tests.shapes.query import Query
from tests.shapes.tracking import everything_tracked

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

SPREAD: list[type[Any]] = [RegionDay, SlotRegion, DayRegion, TagRegion, ReferredSlot]
VIEWS: list[type[Any]] = [*SPREAD, DayTotal, MomentTotal, RegionTotal]
MOMENTS = [
    datetime(2024, 3, 10, 4, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 3, 10, 5, 0, tzinfo=UTC),
    datetime(2024, 11, 3, 4, 30, tzinfo=UTC),
]


@pytest.fixture(autouse=True)
def _watched(transactional_db: None) -> Iterator[None]:
    with everything_tracked():
        yield
    for view in VIEWS:
        view.query = Query()


class History:
    """A small shop, a view of it, and what happens to them.

    Args:
        view: the view.
        seed: what chooses.
    """

    def __init__(self, view: type[Any], seed: int) -> None:
        self.view, self.chance = view, random.Random(seed)
        view.query = Query(
            rows=self.chance.choice([0, 0, 1, 5, 8, 10]),
            form=self.chance.randrange(3),
            bound=self.chance.randrange(3),
        )
        for model in (Order.tags.through, Order, Customer, Region, Product, Tag, view, Change):
            model._base_manager.all().delete()
        Region.objects.bulk_create(Region(pk=pk, name="ab"[pk % 2]) for pk in (1, 2, 3))
        Tag.objects.bulk_create(Tag(pk=pk, label=str(pk)) for pk in (1, 2))
        Product.objects.create(sku="a", name="a", price=2)
        for pk in (1, 2, 3):
            Customer.objects.create(pk=pk, name=str(pk), active=True, **self.of_customer())
        for pk in range(1, 6):
            self.order(pk)
        Change.objects.all().delete()
        for phase in Phase:
            self.plan.statements().do(phase, (None, None))

    @property
    def plan(self) -> Plan:
        return plan_of(registry.find(self.view), alias())

    def order(self, pk: int) -> None:
        values = {**self.of_order(), "price": self.chance.randrange(3), "paid": True}
        Order.objects.update_or_create({"product_id": "a", **values}, pk=pk)
        Order.tags.through.objects.get_or_create(order_id=pk, tag_id=self.chance.choice([1, 2]))

    def of_order(self) -> dict[str, Any]:
        return {
            "customer_id": self.chance.choice([None, *self.keys(Customer)]),
            "slot": self.chance.choice([None, 1, 2]),
            "shipped_on": self.chance.choice([None, date(2024, 2, 28), date(2024, 2, 29)]),
            "placed_at": self.chance.choice([None, *MOMENTS]),
        }

    def of_customer(self) -> dict[str, Any]:
        return {
            "region_id": self.chance.choice([None, *self.keys(Region)]),
            "referrer_id": self.chance.choice([None, *self.keys(Customer)]),
        }

    def keys(self, model: type[Any]) -> list[Any]:
        return sorted(model._base_manager.values_list("pk", flat=True))

    def one(self, values: dict[str, Any]) -> dict[str, Any]:
        name = self.chance.choice(sorted(values))
        return {name: values[name]}

    def write(self) -> None:
        """What somebody commits."""
        pk, kind = self.chance.randrange(1, 7), self.chance.random()
        if kind < 0.35:
            Order.objects.filter(pk=pk).update(**self.one(self.of_order()))
        elif kind < 0.5:
            self.order(pk)
        elif kind < 0.6:
            Order.tags.through.objects.filter(order=pk).delete()
            Order.objects.filter(pk=pk)._raw_delete(alias())
        elif kind < 0.75:
            Customer.objects.filter(pk=1 + pk % 3).update(**self.one(self.of_customer()))
        elif kind < 0.85:
            Region.objects.filter(pk=1 + pk % 3).update(name=self.chance.choice("ab"))
        elif kind < 0.9:
            Customer.objects.filter(pk=1 + pk % 3).delete()
        elif 1 + pk % 3 not in self.keys(Customer):
            Customer.objects.create(pk=1 + pk % 3, name="", **self.of_customer())
        else:
            Order.tags.through.objects.filter(order=pk, tag=2).delete()

    def perhaps(self) -> None:
        while self.chance.random() < 0.3:
            self.write()

    def refresh(self) -> None:
        """Take what is logged, look up its keys, compute them, with changes between the steps."""
        plan, changes = self.plan, list(Change.objects.all())
        specs = tracking_of(plan).tables
        Change.objects.filter(pk__in=[each.pk for each in changes]).delete()
        self.perhaps()
        taken = [
            QueuedChange(each.table, each.links[0], each.links[1:], each.logged_at)
            for each in changes
            if each.links and each.table in specs and _concerns(each, specs[each.table])
        ]
        keys, reason, too_many = resolve(plan, taken, self.chance.choice([0, 1, 3, 10_000]))
        if too_many:  # otherwise these are all of them, however few were asked for
            keys, reason, too_many = resolve(plan, taken, 10_000)
        assert keys is not None, reason
        for phase in Phase:
            left = sorted(keys, key=repr)
            while left:
                self.perhaps()
                some, left = left[:2], left[2:]
                plan.key_batch_runner().run_keys(phase, some)


def _concerns(change: Change, spec: TriggerSpec) -> bool:
    """Whether a change is one of columns that the view reads."""
    changed, read = change.changed, spec.columns
    return changed is None or read is None or not read.isdisjoint(changed)


def check(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One history, which ends with a refresh that nobody disturbs."""
    view = VIEWS[seed % len(VIEWS)]
    history = History(view, seed)
    fetched = lookups._fetched
    with monkeypatch.context() as patch:

        def disturbed(*arguments: Any) -> Any:
            history.perhaps()
            return fetched(*arguments)

        patch.setattr(lookups, "_fetched", disturbed)
        for _round in range(3):
            history.perhaps()
            history.write()
            history.refresh()
        patch.setattr(history, "perhaps", lambda: None)
        history.refresh()
    assert differences(view) == [], f"seed {seed}"


def check_many(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(count):
        check(seed, monkeypatch)


def test_no_key_is_missed_whatever_happens_between_the_steps(
    run_random: RunRandom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(count: int) -> None:
        for _ in range(count):
            check(random.randrange(10**9), monkeypatch)

    run_random(run, long=10_000)


@pytest.mark.finds_fault
@pytest.mark.parametrize("fault", ["_in_view", "_in_source", "_looked_up"])
def test_the_histories_find_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, fault, lambda *_arguments: set())

    with pytest.raises(AssertionError, match="seed"):
        check_many(1000, monkeypatch)
