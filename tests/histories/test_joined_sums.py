"""Random histories of additive views with lookups, which come, go, change and are re-parented.

Whenever a refresh is over, the sums with what is logged of all tables are as the source.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from django.db import connection
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import engine, untracked
from matviews.queryset import GroupSums
from tests.helpers.joined_views import SHAPES, Shops
from tests.helpers.state_machines import FOUND
from tests.helpers.sum_histories import forget_values, run_histories, trim_all
from tests.helpers.sums import kept_of
from tests.helpers.writers import WRITERS, Write
from tests.histories.conftest import RunRandom

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    # Who is killed closes nothing, nor do those who are only as good as killed.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

NUMBERS = st.sampled_from([None, 0, 1, 2, 5, -3])
FEW, PARTS, NICKS = st.integers(1, 3), st.integers(0, 3), st.sampled_from("aAb")
#: Each writer has lookups of its own, to which sales of all of them refer; or to nothing.
OWN = st.integers(1, 2)
LOOKUPS = st.sampled_from([None, 1, 2, 11, 12, 21, 22, 99])


def _of(sql: str, *chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    return st.tuples(st.just(sql), st.tuples(*chosen))


def _insert(table: str, columns: str, *chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    """A lookup with a number of its own, unless it is there."""
    values = ", ".join(["%s"] * len(chosen))
    return _of(
        f"INSERT INTO shapes_{table} (id, owner, {columns}) SELECT {{owner}}0 + number, {{owner}}, "
        f"{values} FROM (SELECT %s AS number) chosen WHERE NOT EXISTS "
        f"(SELECT 1 FROM shapes_{table} there WHERE there.id = {{owner}}0 + number)",
        *chosen, OWN,
    )  # fmt: skip


def _update(table: str, column: str, to: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    where = "owner = {owner} AND id = {owner}0 + %s"
    return _of(f"UPDATE shapes_{table} SET {column} = %s WHERE {where}", to, OWN)


def _delete(table: str) -> st.SearchStrategy[Write]:
    return _of(f"DELETE FROM shapes_{table} WHERE owner = {{owner}} AND id = {{owner}}0 + %s", OWN)


SELL = (
    "INSERT INTO shapes_joinedsale (customer_id, seller_id, product_id, kind, qty, owner) "
    "VALUES (%s, %s, %s, %s, %s, {owner})"
)
PARTLY = "WHERE owner = {owner} AND id %% 4 = %s"
SALES = [
    _of(SELL, LOOKUPS, LOOKUPS, LOOKUPS, FEW, NUMBERS),
    _of(f"UPDATE shapes_joinedsale SET customer_id = %s {PARTLY}", LOOKUPS, PARTS),
    _of(f"UPDATE shapes_joinedsale SET product_id = %s {PARTLY}", LOOKUPS, PARTS),
    _of(f"UPDATE shapes_joinedsale SET qty = %s {PARTLY}", NUMBERS, PARTS),
    _of(f"DELETE FROM shapes_joinedsale {PARTLY}", PARTS),
]
OF_LOOKUPS = [
    _insert("joinedregion", "zone", NUMBERS),
    _update("joinedregion", "zone", NUMBERS),
    _delete("joinedregion"),
    _insert("joinedcustomer", "region_id, segment, rank, nick", LOOKUPS, FEW, FEW, NICKS),
    _update("joinedcustomer", "region_id", LOOKUPS),
    _update("joinedcustomer", "rank", FEW),
    _update("joinedcustomer", "nick", NICKS),
    _delete("joinedcustomer"),
    _insert("joinedproduct", "brand, price", FEW, FEW),
    _update("joinedproduct", "brand", FEW),
    _update("joinedproduct", "price", FEW),
    _delete("joinedproduct"),
]
WRITES: st.SearchStrategy[Write] = st.one_of(*SALES, SALES[0], SALES[0], *OF_LOOKUPS)


def _histories(shops: Shops, examples: int, **options: Any) -> None:
    tables = [shops.Region, shops.Customer, shops.Product, shops.Sale]
    fill = partial(_fill, shops)
    run_histories(shops.View, tables, WRITES, _besides(shops), examples, fill, **options)


def _fill(shops: Shops) -> None:
    """Lookups of each writer, and a sale behind each."""
    for owner in range(3):
        for own in (1, 2):
            pk = 10 * owner + own
            known = {"pk": pk, "owner": owner}
            shops.Region._base_manager.create(zone=own, **known)
            shops.Customer._base_manager.create(region_id=pk, segment=own, rank=own, **known)
            shops.Product._base_manager.create(brand=own, price=own, **known)
            shops.Sale._base_manager.create(
                customer_id=pk, seller_id=pk, product_id=pk, qty=own, owner=(owner + own) % 3
            )


def _besides(shops: Shops) -> dict[str, Callable[[], object]]:
    """What somebody else may do beside the writers."""
    key = (1,) * len(SHAPES[shops.name].key)
    return {
        "full": lambda: engine.mark_dirty(shops.View),
        "keys": lambda: engine.mark_dirty(shops.View, [key]),
        "trim": trim_all,
        "untracked": lambda: _load(shops),
        "incomplete": lambda: forget_values(kept_of(shops.View).logs[-1]),
    }


def _load(shops: Shops) -> None:
    with untracked(shops.Customer):
        shops.Customer._base_manager.filter(owner=0).update(rank=2)


RARE = ("by seller's segment", "large zones")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "shape",
    [pytest.param(name, marks=[pytest.mark.long] * (name in RARE)) for name in SHAPES],
)
def test_nothing_is_counted_twice_or_lost(run_random: RunRandom, shape: str) -> None:
    with Shops(shape).tracked() as shops:
        run_random(partial(_histories, shops), long=10_000)


def _of_now(sums: GroupSums, rows: str = "", lookups: Mapping[str, str] | None = None) -> Any:
    """Entries are added with the lookups of now, whatever has changed of them."""
    return LOGGED(sums, rows, {})


def _of_earlier(sums: GroupSums, rows: str = "", lookups: Mapping[str, str] | None = None) -> Any:
    """What has changed of lookups is of another snapshot than what they are."""
    logs, copies = sums.additive.lookup_logs, dict[str, str]()
    if lookups != {}:
        with connection.cursor() as cursor:
            for number, (table, log) in enumerate(logs.items()):
                copies[table] = f"copied_{number}"
                cursor.execute(f"DROP TABLE IF EXISTS copied_{number}")
                cursor.execute(
                    f"CREATE TEMPORARY TABLE copied_{number} AS SELECT * FROM {log.name}"
                )
    return LOGGED(sums, rows, copies)


LOGGED = GroupSums.logged


@pytest.mark.finds_fault
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_of_now, id="lookups of now"),
        pytest.param(_of_earlier, id="two snapshots"),
    ],
)
def test_the_histories_find_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault is _of_earlier and not WRITERS:
        pytest.skip("nobody else can commit in between")
    monkeypatch.setattr(GroupSums, "logged", fault)

    with Shops().tracked() as shops, pytest.raises(FOUND):
        _histories(
            shops, 500, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False
        )
