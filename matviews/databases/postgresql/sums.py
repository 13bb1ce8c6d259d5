"""The tables of additive views on PostgreSQL."""

from collections.abc import Sequence

from django.db import connections

from ..base.sums import WEIGHT, SumTables, sum_name
from .table_names import regclass

__all__ = ["PostgreSQLSumTables"]


class PostgreSQLSumTables(SumTables):
    """Whole numbers are added up as NUMERIC: in BIGINT, AVG would become an integer division."""

    adds_decimals = True

    def create_log(self, log: str, table: str, columns: Sequence[str]) -> list[str]:
        names = ", ".join(map(self.name, columns))
        created = (
            f"CREATE TABLE {self.name(log)} AS SELECT NULL::pg_catalog.int8 AS {WEIGHT}, {names} "
            f"FROM ONLY {self.name(table)} WITH NO DATA"
        )
        return [created]

    #: Entries have no numbers: a sequence would cost the writers more.
    entry = "ctid"

    def sum_type(self, places: int) -> str:
        return "NUMERIC"

    def whole(self, value: str) -> str:
        return f"CAST({value} AS bigint)"

    def exact(self, value: str, places: int) -> str:
        return f"CAST({value} AS numeric)"

    def mean(self, total: str, count: str, places: int) -> str:
        return f"{total} / {count}"

    def suspect(self, places: Sequence[int]) -> str:
        """NaN and Infinity never leave a sum."""
        names = [sum_name(number) for number, _places in enumerate(places)]
        not_finite = [f"{name} - {name} <> 0" for name in names]
        return " OR ".join([*self._impossible(places), *not_finite])

    def columns(self, table: str) -> dict[str, str]:
        with connections[self.using].cursor() as cursor:
            cursor.execute(
                "SELECT a.attname, concat(pg_catalog.format_type(a.atttypid, a.atttypmod), ' ', "
                "a.attcollation) FROM pg_attribute a "
                "WHERE a.attrelid = pg_catalog.to_regclass(%s)::pg_catalog.oid "
                "AND a.attnum > 0 AND NOT a.attisdropped",
                [regclass(self.name(table))],
            )
            return dict(cursor.fetchall())
