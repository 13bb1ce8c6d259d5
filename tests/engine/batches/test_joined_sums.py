"""Additive views with lookups: rows are added with what the sums know of other tables."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import connection, models
from django.db.models import Count, F, FilteredRelation, Q, Sum
from django.db.models.functions import Upper

from matviews import changes, engine, untracked
from matviews.changes import value_logs
from matviews.engine.batches import sums as engine_sums
from matviews.models import ViewShard, ViewSums
from matviews.queryset import GroupSums, check_source
from matviews.registry import registry
from matviews.states import RefreshStrategy
from tests.helpers.current import differences_now
from tests.helpers.engine import held_open
from tests.helpers.joined_views import SHAPES, Shops
from tests.helpers.sum_histories import trim_all
from tests.helpers.sums import kept_of, sums_differ
from tests.helpers.tables import defined, derived_view, execute, made, model, refreshed
from tests.helpers.view_classes import run

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def shops(transactional_db: None, alone: None, request: pytest.FixtureRequest) -> Iterator[Shops]:
    """Some sales and a view of them, refreshed; of the shape that a test names."""
    with Shops(getattr(request, "param", "by zone")).tracked() as made:
        made.fill()
        refreshed(made.View)
        yield made


def verified(shops: Shops) -> bool:
    """Whether the view is as its source, and its sums with what is logged too."""
    return engine.verify(shops.View).equal and sums_differ(shops.View) == 0


def _sell(shops: Shops) -> None:
    [customer, *_others] = shops.Customer._base_manager.order_by("pk")
    product = shops.Product._base_manager.order_by("-pk")[0]
    shops.Sale._base_manager.create(customer=customer, seller=customer, product=product, qty=7)


def _pass_on(shops: Shops) -> None:
    """Sales get another customer, who moves to another region at the same time."""
    first, second, *_others = shops.Customer._base_manager.order_by("pk")
    shops.Sale._base_manager.filter(customer=first, kind=0).update(customer=second)
    shops.Customer._base_manager.filter(pk=second.pk).update(region=first.region_id, rank=1)
    _sell(shops)


def _give_back(shops: Shops) -> None:
    """A lookup changes twice, and is as before in the end; its number goes to another one."""
    region = shops.Region._base_manager.order_by("pk")[0]
    rows = shops.Region._base_manager.filter(pk=region.pk)
    rows.update(zone=9)
    rows.update(zone=region.zone)
    rows.delete()
    shops.Region._base_manager.create(pk=region.pk, zone=5)
    _sell(shops)


CHANGES: dict[str, Callable[[Shops], object]] = {
    "opened": lambda shops: shops.Region._base_manager.create(zone=2),
    "sold": _sell,
    "renamed": lambda shops: shops.Region._base_manager.filter(zone=1).update(zone=7),
    "re-parented": lambda shops: shops.Customer._base_manager.filter(rank=2).update(
        region=shops.Region._base_manager.order_by("pk")[0]
    ),
    "found": lambda shops: shops.Customer._base_manager.filter(region=None).update(
        region=shops.Region._base_manager.order_by("-pk")[0], segment=2
    ),
    "deleted": lambda shops: shops.Region._base_manager.order_by("-pk")[0].delete(),
    "left out": lambda shops: shops.Customer._base_manager.filter(segment=1).update(rank=5),
    "dearer": lambda shops: shops.Product._base_manager.update(price=F("price") + 3),
    "cheaper": lambda shops: shops.Product._base_manager.filter(brand=2).update(price=1, brand=1),
    "respelled": lambda shops: shops.Customer._base_manager.filter(rank=1).update(
        nick=Upper("nick")
    ),
    "passed on": _pass_on,
    "given back": _give_back,
}


@pytest.mark.parametrize("shops", SHAPES, indirect=True)
def test_what_changes_is_added_with_what_the_sums_know(shops: Shops) -> None:
    for change in CHANGES.values():
        change(shops)
        refresh = run(shops.View)
        assert {each.strategy for each in refresh.runs.all()} <= {RefreshStrategy.BY_KEYS, ""}
        assert verified(shops)
    assert not kept_of(shops.View).reason.startswith("sums were")
    for change in CHANGES.values():
        change(shops)
    refreshed(shops.View)
    assert verified(shops)
    assert not any(changes.count_values(log, 1) for log in kept_of(shops.View).logs)


@pytest.mark.parametrize("many", [False, True])
def test_many_rows_behind_a_changed_lookup_recompute_all(
    shops: Shops, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(engine_sums, "FEW_ROWS", 2)
    shops.Region._base_manager.filter(zone=1).update(zone=3)
    refreshed(shops.View)

    assert (kept_of(shops.View).reason == engine_sums.MOVED) == many
    assert verified(shops)


def test_a_view_with_lookups_is_read_as_of_now(shops: Shops) -> None:
    for change in CHANGES.values():
        change(shops)
        assert differences_now(shops.View) == []
        if change is CHANGES["re-parented"]:
            refreshed(shops.View)


def test_it_is_read_from_its_sums_while_no_change_of_a_lookup_waits(shops: Shops) -> None:
    def totals() -> dict[Any, Any]:
        return dict(shops.View.current.values_list("zone", "sales"))

    right = totals()
    execute(f"UPDATE {kept_of(shops.View).table} SET matviews_rows = matviews_rows + 100")
    first = shops.Sale._base_manager.filter(customer__region__zone=1)[0]
    shops.Sale._base_manager.filter(pk=first.pk).delete()
    wrong = {zone: sales + 100 - (zone == 1) for zone, sales in right.items()}
    assert totals() == wrong, "sums and what waits"

    shops.Customer._base_manager.filter(pk=first.customer_id).update(rank=9)
    assert totals() == {**right, 1: right[1] - 1}, "by keys"
    shops.Customer._base_manager.filter(pk=first.customer_id).update(nick="zz")
    refreshed(shops.View)
    assert totals() == wrong, "no view reads this column"


@pytest.mark.parametrize("how", ["untracked", "truncated", "incomplete", "trimmed", "gone"])
def test_lookups_that_nobody_logged_recompute_all(shops: Shops, how: str) -> None:
    rows, kept = shops.Region._base_manager, kept_of(shops.View)
    table, log = shops.Region._meta.db_table, kept.lookups[-1]
    if how == "untracked":
        with untracked(shops.Region):
            rows.filter(zone=1).update(zone=3)
    elif how == "truncated":
        execute(f"DELETE FROM {table}" if connection.vendor == "sqlite" else f"TRUNCATE {table}")
        engine.mark_truncated()
    elif how == "incomplete":
        rows.filter(zone=1).update(zone=3)
        execute(f"DELETE FROM {log}", f"INSERT INTO {log} (matviews_weight) VALUES (NULL)")
    elif how == "trimmed":
        rows.filter(zone=1).update(zone=3)
        trim_all()
        assert kept_of(shops.View).drain_number == ViewSums.STALE
    elif connection.vendor != "sqlite":  # a trigger there cannot ask whether a table is there
        execute(f"DROP TABLE {log}")
        rows.filter(zone=1).update(zone=3)
    _sell(shops)
    refreshed(shops.View)

    assert engine.verify(shops.View).equal
    changes.install(engine.alias())
    rows.filter(zone=2).update(zone=4)
    for _refresh in range(2):
        _sell(shops)
        refreshed(shops.View)
        assert verified(shops)


@pytest.mark.only_on("sqlite", "mariadb", reason="has no REPLACE")
def test_a_replaced_lookup_is_not_lost(shops: Shops) -> None:
    table = shops.Customer._meta.db_table
    [customer, *_others] = shops.Customer._base_manager.order_by("pk")
    for rank in (8, 9):
        execute(
            f"REPLACE INTO {table} (id, region_id, segment, {connection.ops.quote_name('rank')}, "
            f"nick, owner) VALUES ({customer.pk}, NULL, 1, {rank}, 'a', 0)"
        )
        refreshed(shops.View)
        assert verified(shops)


@pytest.mark.only_on("postgres", "mariadb", reason="locks the whole database")
@pytest.mark.parametrize("which", ["Sale", "Region"])
def test_no_sums_are_used_before_all_triggers_write_to_their_logs(
    shops: Shops, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is locked keeps triggers that write to no value log."""
    with monkeypatch.context() as patch:
        patch.setattr(value_logs, "create", mock.Mock(return_value=frozenset()))
        changes.install(engine.alias())
    refreshed(shops.View)
    rows = shops.Region._base_manager
    with held_open(getattr(shops, which)._base_manager.create):
        assert changes.install(engine.alias())
        for zone in (3, 4):
            _sell(shops)
            rows.filter(pk=rows.order_by("pk")[0].pk).update(zone=zone)
            refreshed(shops.View)
            assert engine.verify(shops.View).equal

    assert not changes.finish(engine.alias())
    for change in (CHANGES["sold"], CHANGES["re-parented"]):
        change(shops)
        refreshed(shops.View)
        assert verified(shops)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            lambda shops: shops.Region._base_manager.values("zone").annotate(
                sales=Count("joinedcustomer")
            ),
            "of which a row may match several rows",
        ),
        (
            lambda shops: shops.Customer._base_manager.values(
                zone=F("region__joinedcustomer__rank")
            ).annotate(sales=Count("pk")),
            "joins shapes_joinedcustomer to itself",
        ),
        (
            lambda shops: shops.Sale._base_manager.annotate(
                large=FilteredRelation("customer", condition=Q(customer__rank__gt=1))
            ).values(zone=F("large__segment")).annotate(sales=Sum("qty")),
            "on a condition",
        ),
    ],
)  # fmt: skip
def test_joins_that_are_no_lookups_are_refused(shops: Shops, source: Any, reason: str) -> None:
    view = shops.View
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "source", classmethod(lambda cls: source(shops)))
        found = check_source(registry.find(view), engine.alias())
    assert any(reason in each.msg for each in found if each.id == "matviews.E025")


@pytest.mark.usefixtures("alone")
def test_a_lookup_that_no_index_keeps_unique_leaves_the_source(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two rows with one key, the entries do not tell which has changed."""
    region = model(
        "LooseRegion",
        code=models.IntegerField(primary_key=True),
        zone=models.IntegerField(),
        meta={"db_table": "made_region", "managed": False},
    )
    sale = model(
        "LooseSale",
        region=models.ForeignKey(region, models.DO_NOTHING, db_constraint=False, related_name="+"),
    )
    view = derived_view(
        lambda cls: sale._base_manager.values(zone=F("region__zone")).annotate(sales=Count("pk")),
        key=["zone"],
        options={"additive": True},
        zone=models.IntegerField(unique=True),
        sales=models.BigIntegerField(),
    )
    table = "CREATE TABLE made_region (code integer NOT NULL, zone integer NOT NULL)"
    with defined(table, undone=("DROP TABLE made_region",)), made(sale, view):
        changes.install(engine.alias())
        execute("INSERT INTO made_region VALUES (1, 1), (1, 2)")
        sale._base_manager.create(region_id=1)
        refreshed(view)
        assert "no unique index of made_region ensures that code is unique" in caplog.text

        execute("UPDATE made_region SET zone = 3 WHERE zone = 1")
        sale._base_manager.create(region_id=1)
        refreshed(view)

        assert engine.verify(view).equal
        changes.remove(engine.alias())


@pytest.mark.usefixtures("alone")
@pytest.mark.only_on("postgres", "mariadb", reason="SQLite locks the whole database")
def test_a_running_batch_has_it_noticed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with Shops().tracked() as shops:
        refreshed(shops.View)
        monkeypatch.setattr(GroupSums, "misfit", lambda _sums: "another table")
        with held_open(lambda: list(ViewShard.objects.select_for_update())):
            engine.distrust_misfits()
        assert kept_of(shops.View).drain_number >= 0

        engine.distrust_misfits()
        assert kept_of(shops.View).drain_number == ViewSums.FAILED


@pytest.mark.usefixtures("alone")
def test_entries_of_a_log_that_comes_into_use_meanwhile_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shops = Shops("by zone")
    with made(shops.Region, shops.Customer, shops.Product, shops.Sale, shops.View):
        shops.fill()
        present = changes.present_logs

        def later() -> Any:
            """Another process installs and refreshes, and somebody writes."""
            changes.install(engine.alias())
            refreshed(shops.View)
            shops.Sale._base_manager.create(customer=shops.Customer.objects.earliest("pk"), qty=7)
            return present()

        with monkeypatch.context() as patch:
            patch.setattr(changes, "present_logs", later)
            engine.trim_value_logs()
        refreshed(shops.View)

        assert engine.verify(shops.View).equal
        assert sums_differ(shops.View) == 0
        changes.remove(engine.alias())
