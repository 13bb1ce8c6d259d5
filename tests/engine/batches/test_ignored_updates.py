"""Rows that UPDATE IGNORE leaves alone: MariaDB and MySQL fire the triggers for them, too."""

from collections.abc import Iterator

import pytest
from django.db import connection

from matviews import changes, engine
from tests.helpers.additive_views import Sales, extremes
from tests.helpers.current import differences_now
from tests.helpers.sums import sums_differ
from tests.helpers.tables import defined, execute, refreshed

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("sqlite", "mariadb", reason="PostgreSQL has no such UPDATE"),
]

IGNORING = "UPDATE IGNORE" if connection.vendor == "mysql" else "UPDATE OR IGNORE"
on_mysql = pytest.mark.only_on("mariadb", reason="SQLite refuses what breaks a foreign key")


@pytest.fixture
def sales(alone: None) -> Iterator[Sales]:
    """A view of three shops, refreshed; each row has a code, which is unique."""
    with Sales(extremes).tracked() as made:
        made.add((1, 2, "1.10"), (1, None, None), (2, 3, "0.30"), (None, 1, "1"), (3, 5, "2"))
        for number, each in enumerate(made.Sale._base_manager.order_by("pk"), 1):
            made.Sale._base_manager.filter(pk=each.pk).update(code=number)
        refreshed(made.View)
        yield made


def assert_right(sales: Sales) -> None:
    assert differences_now(sales.View) == []
    refreshed(sales.View)
    assert engine.verify(sales.View).equal
    assert sums_differ(sales.View) == 0


@pytest.mark.parametrize(
    "changed",
    [
        "shop = 3, qty = 50, code = 2",
        "shop = shop + 1, code = code + 1",
        "id = (SELECT * FROM (SELECT MAX(id) FROM {table}) last), shop = 7, qty = 5",
    ],
)
def test_what_a_unique_index_refuses_is_not_counted(sales: Sales, changed: str) -> None:
    table = sales.Sale._meta.db_table
    execute(f"{IGNORING} {table} SET {changed.format(table=table)}")

    assert_right(sales)


@on_mysql
def test_nor_in_an_update_of_several_tables(sales: Sales) -> None:
    table = sales.Sale._meta.db_table
    execute(
        f"UPDATE IGNORE {table} one JOIN {table} other ON other.id = one.id + 1 "
        f"SET one.shop = 7, one.code = other.code, other.qty = 9"
    )

    assert_right(sales)


@on_mysql
@pytest.mark.parametrize("key", ["PRIMARY KEY", ""])
def test_nor_is_what_a_foreign_key_refuses(sales: Sales, key: str) -> None:
    """Without a primary key, it is not known which row was left alone."""
    table = sales.Sale._meta.db_table
    without = "" if key else ", DROP PRIMARY KEY, MODIFY id bigint"
    with defined(
        "CREATE TABLE made_shops (shop int PRIMARY KEY)",
        "INSERT INTO made_shops VALUES (1), (2), (3)",
        f"ALTER TABLE {table} ADD CONSTRAINT made FOREIGN KEY (shop) REFERENCES made_shops (shop)"
        f"{without}",
        undone=(f"ALTER TABLE {table} DROP FOREIGN KEY made", "DROP TABLE made_shops"),
    ):
        changes.install(engine.alias())
        refreshed(sales.View)

        execute(f"UPDATE IGNORE {table} SET shop = shop + 1, qty = 50")

        assert_right(sales)
