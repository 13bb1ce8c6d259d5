"""Random histories of additive views: no change is counted twice, or not at all.

Others write in transactions of their own, which end by a commit or a rollback between any two
statements of a refresh, or after it. The refresh may be killed before any statement. Whenever it is
over, the sums with what is logged are as the source, and so is the view once nobody writes.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.db.models import Q
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from matviews import engine, untracked
from matviews.databases.keys import Key
from matviews.engine.batches import sums as engine_sums
from matviews.queryset import GroupSums, add
from tests.helpers.additive_views import Sales, counted, extremes
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

SHOPS, NUMBERS = st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 0, 1, 2, 5, -3])
INSERT = "INSERT INTO shapes_sale (shop, qty, kind, note, owner) VALUES (%s, %s, %s, '', {owner})"
UPDATE = "UPDATE shapes_sale SET {} = %s WHERE owner = {{owner}} AND id %% 4 = %s"
DELETE = "DELETE FROM shapes_sale WHERE owner = {owner} AND id %% 4 = %s"


def _of(sql: str, *chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    return st.tuples(st.just(sql), st.tuples(*chosen))


PARTS, KINDS = st.integers(0, 3), st.sampled_from([1, 2, 9])
CODES = st.integers(1, 3)
INTO = "INTO shapes_sale (shop, qty, kind, code, note, owner) VALUES (%s, %s, %s, %s, '', {owner})"
#: Triggers of SQLite do not say what was replaced, and those of MariaDB what was left alone.
REPLACEMENTS = {
    "sqlite": [
        _of(f"{verb} {INTO}", SHOPS, NUMBERS, KINDS, CODES)
        for verb in ("REPLACE", "INSERT OR IGNORE")
    ],
    "mysql": [
        _of(
            "UPDATE IGNORE shapes_sale SET code = {owner}0 + %s, shop = %s, qty = %s "
            "WHERE owner = {owner} AND id %% 4 = %s",
            CODES, SHOPS, NUMBERS, PARTS,
        )
    ],
}  # fmt: skip
WRITES: st.SearchStrategy[Write] = st.one_of(
    _of(INSERT, SHOPS, NUMBERS, KINDS),
    _of(INSERT, SHOPS, NUMBERS, KINDS),
    _of(UPDATE.format("qty"), NUMBERS, PARTS),
    _of(UPDATE.format("shop"), SHOPS, PARTS),
    _of(UPDATE.format("kind"), KINDS, PARTS),
    _of(UPDATE.format("note"), st.sampled_from("ab"), PARTS),
    _of(DELETE, PARTS),
    *REPLACEMENTS.get(connection.vendor, ()),
)


def _histories(sales: Sales, examples: int, **options: Any) -> None:
    run_histories(sales.View, [sales.Sale], WRITES, _besides(sales), examples, **options)


def _besides(sales: Sales) -> dict[str, Callable[[], object]]:
    """What somebody else may do beside the writers."""
    return {
        "full": lambda: engine.mark_dirty(sales.View),
        "keys": lambda: engine.mark_dirty(sales.View, [1, 2]),
        "trim": trim_all,
        "untracked": lambda: _load(sales),
        "incomplete": lambda: forget_values(kept_of(sales.View).log),
    }


def _load(sales: Sales) -> None:
    with untracked(sales.Sale):
        sales.Sale._base_manager.filter(owner=0).update(qty=4)


def hiding(rows: Any) -> Any:
    """Groups come and go with their condition, too."""
    return counted(rows).filter(Q(sales__gt=1) | Q(total__lt=0))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "source",
    [pytest.param(counted, marks=pytest.mark.long), hiding, extremes],
    ids=["all", "some", "extremes"],
)
def test_nothing_is_counted_twice_or_lost(run_random: RunRandom, source: Any) -> None:
    with Sales(source).tracked() as sales:
        run_random(partial(_histories, sales), long=10_000)


def _not_deleted(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Any:
    """The entries are added, and are still there for the next batch."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE kept_entries AS SELECT * FROM {log}")
        cut = add(sums, log, table, recomputed)
        cursor.execute(f"INSERT INTO {log} SELECT * FROM kept_entries")
        cursor.execute("DROP TABLE kept_entries")
    return cut


def _deleted_later(sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()) -> Any:
    """What commits while the entries are added is deleted with them."""
    cut = add(sums, log, table, recomputed)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute(f"DELETE FROM {log}")
    return cut


def _built_in_two(sums: GroupSums, log: str, table: str) -> None:
    """The sums are of one snapshot, and the entries that are deleted of another."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table}")
        totals = sums.totals()
        columns = ", ".join(sums.columns.all)
        cursor.execute(f"INSERT INTO {table} ({columns}) {totals.text}", totals.params)
        cursor.execute(f"DELETE FROM {log}")


def _recomputed_in_two(
    sums: GroupSums, log: str, table: str, recomputed: Collection[Key] = ()
) -> Any:
    """Groups are recomputed from a later snapshot than that of the entries."""
    cut = add(sums, log, table)
    if recomputed:
        among = sums.among(sums.keys(recomputed))
        totals, columns = sums.totals(within=sums.keys(recomputed)), ", ".join(sums.columns.all)
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table} WHERE {among.text}", among.params)
            cursor.execute(f"INSERT INTO {table} ({columns}) {totals.text}", totals.params)
    return cut


@pytest.mark.finds_fault
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("add", _not_deleted, id="not deleted"),
        pytest.param("add", _deleted_later, id="deleted later", marks=pytest.mark.long),
        pytest.param("build", _built_in_two, id="built in two", marks=pytest.mark.long),
        pytest.param("add", _recomputed_in_two, id="recomputed in two"),
    ],
)
def test_the_histories_find_a_fault(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault is not _not_deleted and not WRITERS:
        pytest.skip("nobody else can commit in between")
    monkeypatch.setattr(engine_sums, name, fault)

    with Sales(extremes).tracked() as sales, pytest.raises(FOUND):
        _histories(
            sales, 500, phases=[Stage.generate], derandomize=True, report_multiple_bugs=False
        )
