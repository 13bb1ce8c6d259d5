"""Sums that cannot be right any more, because a key of a lookup may be there twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from django.db import DatabaseError, connection, models
from django.db.models import Avg, Count, F

from matviews import changes, engine
from matviews.engine.batches import sums as engine_sums
from matviews.models import ViewChange, ViewSums
from matviews.queryset import plan_of
from tests.helpers.additive_views import Sales, counted
from tests.helpers.current import differences_now
from tests.helpers.roles import as_role, database_role, may, may_work
from tests.helpers.sums import additive_of, kept_of, sums_differ
from tests.helpers.tables import defined, derived_view, execute, made, model, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("alone"),
]

TABLE = "CREATE TABLE made_region (code integer NOT NULL, zone integer NOT NULL)"
INDEX = "CREATE UNIQUE INDEX made_code ON made_region (code)"
DROP = "DROP INDEX made_code" + (" ON made_region" if connection.vendor == "mysql" else "")
UNDONE = ("DROP TABLE IF EXISTS made_child", "DROP TABLE made_region")
PARTIAL = "CREATE UNIQUE INDEX made_code ON made_region (code) WHERE zone < 5"


class Made(NamedTuple):
    Sale: Any
    View: Any

    def sell(self, region: int) -> None:
        self.Sale._base_manager.create(region_id=region)


@contextmanager
def looked_up() -> Iterator[Made]:
    """Sales by zone, of regions whose code is unique by an index that can be dropped."""
    region = model(
        "MadeRegion",
        code=models.IntegerField(unique=True, primary_key=True),
        zone=models.IntegerField(),
        meta={"managed": False, "db_table": "made_region"},
    )
    sale = model(
        "MadeSale", region=models.ForeignKey(region, models.DO_NOTHING, db_constraint=False)
    )
    view = derived_view(
        lambda cls: sale._base_manager.values(zone=F("region__zone")).annotate(sales=Count("pk")),
        options={"additive": True},
        zone=models.IntegerField(unique=True),
        sales=models.BigIntegerField(),
    )
    with defined(TABLE, INDEX, undone=UNDONE), made(sale, view):
        changes.install(engine.alias())
        try:
            execute("INSERT INTO made_region VALUES (1, 1), (2, 2)")
            found = Made(sale, view)
            found.sell(1)
            refreshed(view)
            assert kept_of(view).drain_number >= 0
            yield found
        finally:
            changes.remove(engine.alias())


def test_a_unique_index_that_is_dropped_by_hand_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with looked_up() as found:
        engine.distrust_misfits()
        assert kept_of(found.View).drain_number >= 0
        # when it is dropped, and something is there twice
        execute(DROP, "INSERT INTO made_region VALUES (1, 2)")
        engine.distrust_misfits()
        engine.distrust_misfits()
        assert caplog.text.count("is refreshed from its source") == 1
        refreshed(found.View)
        assert engine.verify(found.View).equal
        execute("UPDATE made_region SET zone = 3 WHERE zone = 1")
        found.sell(1)
        assert differences_now(found.View) == []
        refreshed(found.View)
        assert engine.verify(found.View).equal
        assert kept_of(found.View).drain_number == ViewSums.FAILED
        # and when it is back
        execute("DELETE FROM made_region WHERE code = 1 AND zone = 2", INDEX)
        engine.mark_dirty(found.View)
        refreshed(found.View)
        found.sell(1)
        refreshed(found.View)
        assert kept_of(found.View).drain_number >= 0
        assert sums_differ(found.View) == 0
        assert engine.verify(found.View).equal


def invalid_index() -> None:
    """One that is left behind by a failed CREATE INDEX CONCURRENTLY."""
    execute("INSERT INTO made_region VALUES (1, 9)")
    with pytest.raises(DatabaseError):
        execute("CREATE UNIQUE INDEX CONCURRENTLY made_code ON made_region (code)")


def test_an_index_that_is_soon_there_again_leaves_nothing_wrong() -> None:
    """No maintenance has seen that it was gone, only a batch."""
    with looked_up() as made:
        execute(DROP, "INSERT INTO made_region VALUES (1, 9)")
        refreshed(made.View)
        assert differences_now(made.View) == []
        execute(
            "DELETE FROM made_region WHERE code = 1", "INSERT INTO made_region VALUES (1, 2)", INDEX
        )
        refreshed(made.View)
        made.sell(1)
        refreshed(made.View)

        assert engine.verify(made.View).equal
        assert differences_now(made.View) == []


@pytest.mark.only_on("sqlite", "postgres", reason="others have no partial indexes")
def test_a_partial_index_keeps_nothing_unique() -> None:
    with looked_up() as shop:
        execute(DROP, PARTIAL, "INSERT INTO made_region VALUES (1, 9)")
        engine.distrust_misfits()

        assert kept_of(shop.View).drain_number == ViewSums.FAILED
        shop.sell(1)
        assert differences_now(shop.View) == []
        refreshed(shop.View)
        assert engine.verify(shop.View).equal


@pytest.mark.only_on("postgres", reason="others have no invalid indexes")
def test_an_index_that_was_never_completed_keeps_nothing_unique() -> None:
    with looked_up() as shop:
        execute(DROP)
        invalid_index()
        engine.distrust_misfits()

        assert kept_of(shop.View).drain_number == ViewSums.FAILED
        refreshed(shop.View)
        assert engine.verify(shop.View).equal


UNIQUE = {
    "CREATE UNIQUE INDEX made_code ON made_region (code)": True,
    "ALTER TABLE made_region ADD PRIMARY KEY (code)": True,
    "CREATE UNIQUE INDEX made_code ON made_region (code) INCLUDE (zone)": True,
    "ALTER TABLE made_region ADD UNIQUE (code) DEFERRABLE INITIALLY DEFERRED": True,
    "CREATE UNIQUE INDEX made_code ON made_region (code, zone)": False,
    "CREATE UNIQUE INDEX made_code ON made_region (abs(code))": False,
    "CREATE INDEX made_code ON made_region (code)": False,
    "CREATE TABLE made_child () INHERITS (made_region)": False,
}


@pytest.mark.only_on("postgres", reason="others have not all of these")
@pytest.mark.parametrize("made_by", UNIQUE)
def test_only_what_keeps_all_rows_unique_counts(made_by: str) -> None:
    with looked_up() as shop:
        sums = additive_of(shop.View)
        assert sums is not None
        if "INHERITS" not in made_by:
            execute(DROP)
        execute(made_by)

        assert (sums.misfit() == "") == UNIQUE[made_by]


@contextmanager
def averaged(alter: str) -> Iterator[tuple[Any, Any]]:
    """Averages of prices, whose column was altered by hand before."""
    sale = model(
        "MadeSale",
        shop=models.IntegerField(),
        price=models.DecimalField(max_digits=10, decimal_places=4),
    )
    view = derived_view(
        lambda cls: sale._base_manager.values("shop").annotate(mean=Avg("price")),
        options={"additive": True},
        shop=models.IntegerField(unique=True),
        mean=models.DecimalField(max_digits=50, decimal_places=30, null=True),
    )
    with made(sale, view):
        execute(alter)
        changes.install(engine.alias())
        try:
            yield sale, view
        finally:
            changes.remove(engine.alias())


LIKE_NO_MODEL = {
    "postgresql": "ALTER TABLE shapes_madesale ALTER price TYPE numeric",
    "mysql": "ALTER TABLE shapes_madesale MODIFY price decimal(10, 2)",
}


@pytest.mark.only_on("postgres", "mariadb", reason="decimals are floats on SQLite")
def test_averages_have_the_digits_that_the_database_gives_them() -> None:
    """On PostgreSQL those of the number with the most digits, on MariaDB those of the column."""
    with averaged(LIKE_NO_MODEL[connection.vendor]) as (sale, view):
        for price in ("1", "1", "2"):
            sale._base_manager.create(shop=1, price=price)
        refreshed(view)
        assert engine.verify(view).equal
        execute("INSERT INTO shapes_madesale (shop, price) VALUES (1, 1.12345678901234567890123)")
        refreshed(view)
        execute("DELETE FROM shapes_madesale WHERE price > 1.1 AND price < 1.2")
        refreshed(view)

        assert engine.verify(view).equal


SECURED = (
    "ALTER TABLE made_region ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY few ON made_region USING (zone < 5)",
)


@pytest.mark.only_on("postgres", reason="others have no row security")
def test_sums_never_show_what_row_security_hides() -> None:
    with looked_up() as shop:
        execute(*SECURED, "INSERT INTO made_region VALUES (3, 9)")
        engine.distrust_misfits()
        assert kept_of(shop.View).drain_number == ViewSums.FAILED
        assert "row security" in kept_of(shop.View).reason
        with database_role("worker") as role:
            sources = ("made_region", shop.Sale._meta.db_table)
            may_work(role, *sources, views=(shop.View._meta.db_table,))
            may(role, "SELECT, INSERT, UPDATE, DELETE", *kept_of(shop.View).logs)
            shop.sell(3)
            with as_role(role):
                refreshed(shop.View)

                assert list(shop.View._base_manager.values_list("zone", "sales")) == [(1, 1)]
                assert differences_now(shop.View) == []


def test_a_batch_that_finds_it_first_has_all_rows_recomputed() -> None:
    """Until then, rows may have been written from wrong sums."""
    with looked_up() as shop:
        execute(DROP, "INSERT INTO made_region VALUES (1, 9)")
        refreshed(shop.View)
        shop.sell(1)
        refreshed(shop.View)
        engine_sums.distrust_sums(kept_of(shop.View).view_id)
        shop.sell(2)
        refreshed(shop.View)
        assert kept_of(shop.View).drain_number == ViewSums.FAILED

        refreshed(shop.View)
        assert engine.verify(shop.View).equal
        assert not ViewChange.objects.exists(), "it is done once"


def test_a_view_whose_source_fails_keeps_no_other_wrong(caplog: pytest.LogCaptureFixture) -> None:
    faulty = False

    def source(rows: Any) -> Any:
        if faulty:
            raise ValueError("a faulty new version")
        return counted(rows)

    with Sales(source, prefix="A").tracked() as sales, looked_up() as shop:
        sales.add((1, 2, "1"))
        refreshed(sales.View)
        assert kept_of(sales.View).pk < kept_of(shop.View).pk, "it comes first"
        execute(DROP)
        faulty = True
        plan_of.__globals__["_plan_of"].cache_clear()
        try:
            engine.distrust_misfits()
        finally:
            faulty = False
            plan_of.__globals__["_plan_of"].cache_clear()

        assert "view=shapes.AShopTotal" in caplog.text
        assert kept_of(shop.View).drain_number == ViewSums.FAILED
        assert kept_of(sales.View).drain_number >= 0
