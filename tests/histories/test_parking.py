"""Random histories of poison: rows are right unless parked, and all are in the end."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
from django.db import models
from django.db.models import Count, F, Q, Sum
from hypothesis import HealthCheck, given, settings

from matviews import changes, engine
from matviews.models import ParkedKey, Period, Refresh, RefreshSchedule, ViewControl
from matviews.phases import Phase
from matviews.states import RefreshState, RefreshStrategy
from matviews.tasks import inline, polling
from tests.helpers.poison import KINDS, Poisoned
from tests.helpers.sums import kept_of, sums_differ
from tests.helpers.tables import alone, derived_view, made, model, refreshed

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

COUNT = 12
KEYS = st.lists(st.integers(1, COUNT), min_size=1, max_size=4, unique=True)
NO_KEYS = st.just(list[int]())
#: What happens to a view, whatever it reads.
TO_THE_VIEW = st.one_of(
    st.tuples(st.sampled_from(["mark", "later", "look", "refresh"]), st.just(""), NO_KEYS),
    st.tuples(st.just("refresh"), st.just(""), NO_KEYS),
    st.tuples(st.just("phase"), st.sampled_from(list(Phase)), NO_KEYS),
    st.tuples(st.just("pin"), st.sampled_from(["", *RefreshStrategy]), NO_KEYS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("poison"), st.sampled_from(KINDS), KEYS),
        st.tuples(st.sampled_from(["heal", "change", "remove", "add"]), st.just(""), KEYS),
        TO_THE_VIEW,
    ),
    min_size=3,
    max_size=14,
)
RANDOM = settings(
    max_examples=3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def take(step: tuple[str, Any, list[int]], source: Poisoned, batch_size: int) -> None:
    """One step of a history."""
    what, detail, keys = step
    if what == "poison":
        source.poison(detail, *keys)
    elif what == "heal":
        source.heal(*keys)
    elif what == "change":
        source.change(*keys)
    elif what == "remove":
        source.Row.objects.filter(k__in=keys).delete()
    elif what == "add":
        present = source.Row.objects.values_list("k", flat=True)
        source.add(*(set(keys) - set(present)))
    else:
        take_of_view(step, source.View, batch_size)


def take_of_view(step: tuple[str, Any, list[int]], view: type[Any], batch_size: int) -> None:
    what, detail, _keys = step
    if what == "mark":
        view.mark_dirty()
    elif what == "later":
        ParkedKey.objects.update(retry_at=F("first_seen"))
    elif what == "pin":
        ViewControl.objects.filter(label=view._meta.label).update(strategy=detail)
    elif what == "look":
        look(view)
    else:
        phases = [detail] if what == "phase" else None
        refreshed(view, phases=phases, batch_size=batch_size)


def follow(view: type[Any]) -> None:
    """Refresh a view on change."""
    RefreshSchedule.objects.create(
        view=ViewControl.objects.get(label=view._meta.label),
        on_change=True, every=0, period=Period.SECONDS,
    )  # fmt: skip


def look(view: type[Any]) -> None:
    """What a look for refreshes that are due on change requests is done."""
    polling.request_due(engine.ChangePoller([view._meta.label]))
    for refresh in Refresh.objects.filter(state=RefreshState.OPEN):
        ended = inline.run_to_end(refresh)
        assert (ended.state, ended.error) == (RefreshState.SUCCEEDED, "")


def check(source: Poisoned) -> None:
    """All keys but the parked ones are as in the source, and verify agrees."""
    in_source = set(source.Row.objects.values_list("k", flat=True))
    in_view = set(source.View.objects.values_list("ref", flat=True))
    parked = source.parked()
    assert source.right() - parked == in_source - parked
    assert in_view - parked == in_source - parked
    assert source.View.verify().equal


def beside(source: Poisoned) -> type[Any]:
    """A view of the same table that reads fewer columns, so that the log says which changed."""
    return derived_view(
        lambda cls: source.Row._base_manager.values(ref=F("number")).annotate(n=Count("pk")),
        name="Beside",
        ref=models.IntegerField(unique=True),
        n=models.IntegerField(),
    )


@pytest.mark.parametrize("staged", [False, True], ids=["windowed", "staged"])
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
@RANDOM
@given(steps=STEPS, batch_size=st.sampled_from([2, 5, 100]))
def test_histories(*, steps: Any, batch_size: int, staged: bool, tracked: bool) -> None:
    with alone():
        source = Poisoned(staged=staged)
        other = beside(source)
        with made(other), source.ready(tracked=tracked):
            source.fill(COUNT)
            if tracked:
                follow(source.View)
            for step in steps:
                take(step, source, batch_size)
                if step[0] == "refresh" or (step[0] == "look" and tracked):
                    check(source)
            # When the data is healed and time has passed
            source.heal(*range(1, COUNT + 1))
            ParkedKey.objects.update(retry_at=F("first_seen"))
            source.refresh(batch_size=batch_size)
            # Then everything is right, at the latest after the rows that were in the way are gone
            if source.parked():
                ParkedKey.objects.update(retry_at=F("first_seen"))
                source.refresh(batch_size=batch_size)
            assert not source.parked()
            check(source)
            refreshed(other)
            assert other.verify().equal


SHOPS = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
ADDITIVE_STEPS = st.lists(
    st.one_of(
        # A negative total is refused, one of NULL too, and one that another shop has.
        st.tuples(st.just("sell"), st.sampled_from([None, -50, -7, 1, 2, 3, 9]), SHOPS),
        st.tuples(st.just("sell"), st.sampled_from([1, 2, 3, 9]), SHOPS),
        st.tuples(st.just("change"), st.sampled_from([None, -50, 2, 50]), SHOPS),
        st.tuples(st.sampled_from(["cancel", "close"]), st.just(""), SHOPS),
        st.tuples(st.just("move"), st.integers(1, 4), SHOPS),
        TO_THE_VIEW,
    ),
    min_size=3,
    max_size=14,
)


class Shops:
    """Sales, and an additive view of their totals by shop, in which not every total fits."""

    def __init__(self) -> None:
        self.Sale = sale = model(
            "Sale",
            shop=models.IntegerField(db_index=True),
            qty=models.IntegerField(null=True),
        )
        self.View = derived_view(
            lambda cls: sale._base_manager.values("shop").annotate(
                sales=Count("pk"), total=Sum("qty")
            ),
            name="ShopTotal",
            options={"additive": True},
            key=["shop"],
            shop=models.IntegerField(unique=True),
            sales=models.IntegerField(),
            total=models.BigIntegerField(unique=True),
            meta={
                "constraints": [
                    models.CheckConstraint(condition=Q(total__gte=0), name="made_total")
                ]
            },
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        with made(self.Sale, self.View):
            changes.install(engine.alias())
            try:
                yield
            finally:
                changes.remove(engine.alias())

    def take(self, step: tuple[str, Any, list[int]], batch_size: int) -> None:
        what, detail, shops = step
        sales = self.Sale._base_manager.filter(shop__in=shops)
        if what == "sell":
            for shop in shops:
                self.Sale._base_manager.create(shop=shop, qty=detail)
        elif what == "change":
            sales.update(qty=detail)
        elif what == "cancel":
            first = list(sales.order_by("pk").values_list("pk", flat=True)[:1])
            self.Sale._base_manager.filter(pk__in=first).delete()
        elif what == "close":
            sales.delete()
        elif what == "move":
            sales.update(shop=detail)
        else:
            take_of_view(step, self.View, batch_size)

    def heal(self) -> None:
        self.Sale._base_manager.all().delete()
        for shop in range(1, 5):
            self.Sale._base_manager.create(shop=shop, qty=100 + shop)

    def check(self) -> None:
        parked = {key for [key] in ParkedKey.objects.values_list("key", flat=True)}
        counts, totals = Counter[int](), dict[int, int]()
        for shop, qty in self.Sale._base_manager.values_list("shop", "qty"):
            counts[shop] += 1
            if qty is not None:
                totals[shop] = totals.get(shop, 0) + qty
        right = {
            shop: (count, totals.get(shop)) for shop, count in counts.items() if shop not in parked
        }
        rows = self.View._base_manager.exclude(shop__in=parked)
        assert {
            shop: (sales, total)
            for shop, sales, total in rows.values_list("shop", "sales", "total")
        } == right
        assert self.View.verify().equal
        if kept_of(self.View).drain_number >= 0:
            assert sums_differ(self.View) == 0


@RANDOM
@given(steps=ADDITIVE_STEPS, batch_size=st.sampled_from([2, 100]))
def test_histories_of_additive_views(*, steps: Any, batch_size: int) -> None:
    with alone():
        shops = Shops()
        with shops.ready():
            follow(shops.View)
            for shop in range(1, 5):
                shops.Sale._base_manager.create(shop=shop, qty=shop)
            refreshed(shops.View)
            for step in steps:
                shops.take(step, batch_size)
                if step[0] in ("refresh", "look"):
                    shops.check()
            shops.heal()
            for _again in range(2):
                ParkedKey.objects.update(retry_at=F("first_seen"))
                refreshed(shops.View, batch_size=batch_size)
            assert not ParkedKey.objects.exists()
            shops.check()
