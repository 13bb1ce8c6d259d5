"""Filling the shop and changing it, by the ORM, in bulk and in raw SQL."""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import connection, models, transaction
from django.db.models import Value

from tests.shapes.models import Customer, Order, Product, Region, Tag

__all__ = ["COLUMNS", "RAW", "TEXTS", "Shop"]

TEXTS = ["a", "A", "a ", "b", "Ä", "ä", "", "日本", "'; --", "%s", "😀", '\\"', "100%"]
JSON_NULL = Value(None, models.JSONField())

# Values that columns of the source may take, by model.
COLUMNS: dict[type[models.Model], dict[str, list[Any]]] = {
    Region: {"name": TEXTS},
    Customer: {"name": TEXTS, "nickname": [None, *TEXTS], "active": [None, False, True]},
    Product: {
        "name": TEXTS,
        "price": [None, Decimal("0.99"), Decimal("1.50"), Decimal(-3), Decimal("7000.05")],
    },
    Tag: {"label": TEXTS},
    Order: {
        "basket": [None, *(UUID(int=number << 120) for number in (0, 1, 2, 250))],
        "quantity": [None, 0, 1, 2, -3, 10**6],
        "slot": [None, -(10**6), -2, -1, 0, 1, 2, 10**9],
        "price": [
            Decimal(each)
            for each in ("0", "0.001", "0.005", "1.005", "-2.675", "10", "99.995", "1234.567")
        ],
        "weight": [None, 0.0, 0.1, 0.2, 0.3, 1 / 3, 1e6],
        "status": ["a", "b", "B", "b ", "ß", "", "'; --"],
        "note": TEXTS,
        "paid": [False, True],
        "extra": [
            None,
            JSON_NULL,
            {},
            {"kind": "a"},
            {"kind": "A "},
            {"kind": None},
            {"kind": True},
            {"kind": 1.5},
            {"kind": [1, {"ä": "😀"}]},
            ["kind"],
            "a",
        ],
        "scan": [None, b"", b"\x00\xff'", b"a"],
        "placed_at": [
            None,
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2023, 12, 31, 18, 30, tzinfo=UTC),
            datetime(2024, 1, 1, 0, 0, tzinfo=UTC),
            datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
            datetime(2024, 3, 10, 6, 59, 59, tzinfo=UTC),
            datetime(2024, 3, 10, 7, 0, tzinfo=UTC),
            datetime(2024, 3, 31, 4, 0, tzinfo=UTC),
            # Before the hour that New York has twice: which of the two it is truncated to differs.
            datetime(2024, 11, 3, 4, 30, tzinfo=UTC),
        ],
        "shipped_on": [None, date(1999, 12, 31), date(2024, 2, 28), date(2024, 2, 29)],
        "took": [None, timedelta(), timedelta(seconds=90, microseconds=1), timedelta(days=-1)],
    },
}
# Statements on orders whose key leaves a remainder: `{}` is a condition, names need no quotes.
RAW = [
    "UPDATE shapes_order SET quantity = NULL WHERE {}",
    "UPDATE shapes_order SET quantity = quantity - 1, slot = slot + 1 WHERE {}",
    "UPDATE shapes_order SET price = price + 0.005 WHERE {}",
    "UPDATE shapes_order SET status = UPPER(status), note = LOWER(note) WHERE {}",
    "UPDATE shapes_order SET note = REPLACE(note, 'a', 'a ') WHERE {}",
    "UPDATE shapes_order SET customer_id = NULL WHERE {}",
    "UPDATE shapes_order SET shipped_on = '2024-02-29', paid = NOT paid WHERE {}",
    "DELETE FROM shapes_order_tags WHERE order_{}",
]


class Shop:
    """The source tables. Keys are of our own, so that a history is the same when it is run again.

    A choice is a number: it takes one of the rows there are, or none.
    """

    def __init__(self) -> None:
        self.next_key = -4
        for model in (Order.tags.through, Order, Customer, Region, Product, Tag):
            model._base_manager.all().delete()

    def key(self) -> int:
        """A key that is unused; never 0, which MariaDB takes for the next one."""
        self.next_key += 1 + (self.next_key == -1)
        return self.next_key

    def skip(self, keys: int) -> None:
        """Leave keys out."""
        self.next_key = max(1, self.next_key) + keys

    def open_region(self, name: str) -> None:
        """A new region."""
        Region.objects.create(pk=self.key(), name=name)

    def add_customer(self, region: int, referrer: int, **values: Any) -> None:
        """A new customer."""
        key = self.key()
        Customer.objects.create(
            pk=key,
            token=UUID(int=(key % 7) << 120 | (key + 100)),
            region_id=_chosen(Region, region),
            referrer_id=_chosen(Customer, referrer),
            **values,
        )

    def add_product(self, sku: str, **values: Any) -> None:
        """A new product, or new values of the one that has the key."""
        Product.objects.update_or_create({"name": "", **values}, sku=sku)

    def add_orders(self, rows: list[dict[str, Any]]) -> None:
        """New orders, with `customer`, `product` and `tags` as choices."""
        customers, products, tags = _keys(Customer), _keys(Product), _keys(Tag)
        orders = [
            Order(
                pk=self.key(),
                customer_id=_chosen_of(customers, row["customer"]),
                product_id=_chosen_of(products, row["product"]),
                **{name: row[name] for name in COLUMNS[Order]},
            )
            for row in rows
        ]
        Order.objects.bulk_create(orders)
        for order, row in zip(orders, rows, strict=True):
            if chosen := {_chosen_of(tags, tag) for tag in row["tags"]} - {None}:
                order.tags.add(*chosen)

    def change(self, model: type[models.Model], which: int, column: str, value: Any) -> None:
        """Give some rows another value."""
        model._base_manager.filter(pk__in=_some(model, which)).update(**{column: value})

    def move(self, which: int, customer: int, product: int) -> None:
        """Give some orders to another customer, and of another product."""
        Order.objects.filter(pk__in=_some(Order, which)).update(
            customer=_chosen(Customer, customer), product=_chosen(Product, product)
        )

    def move_customers(self, which: int, region: int) -> None:
        """Give some customers another region."""
        some = Customer.objects.filter(pk__in=_some(Customer, which))
        some.update(region=_chosen(Region, region))

    def delete(self, model: type[models.Model], which: int) -> None:
        """Delete some rows, in the way of Django."""
        model._base_manager.filter(pk__in=_some(model, which)).delete()

    def save_each(self, which: int) -> None:
        """Change some orders one by one."""
        for order in Order.objects.filter(pk__in=_some(Order, which)):
            order.quantity = (order.quantity or 0) + 1
            order.save()

    def take_back(self, which: int, savepoint: bool) -> None:
        """Change and delete some orders, and undo it: by a savepoint or the whole transaction."""
        with transaction.atomic():
            with transaction.atomic():
                self.save_each(which)
                self.delete(Order, which)
                transaction.set_rollback(savepoint)
            transaction.set_rollback(not savepoint)

    def run_sql(self, statement: str, which: int) -> None:
        """Run one of the raw statements."""
        keys = ", ".join(map(str, _some(Order, which))) or "NULL"
        with connection.cursor() as cursor:
            cursor.execute(statement.format(f"id IN ({keys})"))

    @transaction.atomic
    def fill(self, chance: random.Random) -> None:
        """Some rows in every table."""
        for name in ("a", "Ä", "b"):
            self.open_region(name)
            Tag.objects.create(pk=self.key(), label=name)
        for _ in range(5):
            self.add_customer(chance.randrange(5), chance.randrange(5), **_row(Customer, chance))
        for sku in TEXTS:
            self.add_product(sku, **_row(Product, chance))
        self.add_orders([_order(chance) for _ in range(16)])

    @transaction.atomic
    def stir(self, chance: random.Random) -> None:
        """Changes of many kinds, so that rows of views come, go and change."""
        for statement in RAW:
            self.run_sql(statement, chance.randrange(3))
        for model, columns in COLUMNS.items():
            for column, values in columns.items():
                which, value = chance.randrange(9), chance.choice(values)
                self.change(model, which, column, value)
        self.move(chance.randrange(3), chance.randrange(5), chance.randrange(5))
        self.move_customers(chance.randrange(3), chance.randrange(5))
        for model in (Order, Customer, Product):
            self.delete(model, chance.randrange(9))
        self.skip(1000)
        self.add_orders([_order(chance) for _ in range(3)])


def _row(model: type[models.Model], chance: random.Random) -> dict[str, Any]:
    return {name: chance.choice(values) for name, values in COLUMNS[model].items()}


def _order(chance: random.Random) -> dict[str, Any]:
    tags = [chance.randrange(4) for _ in range(chance.randrange(3))]
    choices = {"customer": chance.randrange(9), "product": chance.randrange(9), "tags": tags}
    return {**_row(Order, chance), **choices}


def _keys(model: type[models.Model]) -> list[Any]:
    return sorted(model._base_manager.values_list("pk", flat=True))


def _some(model: type[models.Model], which: int) -> list[Any]:
    """A third of the rows, or all of them."""
    return [pk for number, pk in enumerate(_keys(model)) if which == 3 or number % 3 == which]


def _chosen(model: type[models.Model], choice: int) -> Any:
    """The key of one row; None where the choice is 0 or there is no row."""
    return _chosen_of(_keys(model), choice)


def _chosen_of(keys: list[Any], choice: int) -> Any:
    return keys[choice % len(keys)] if keys and choice else None
